"""How long a reply may be: what it may have where nobody says, and what a prompt leaves of a model's context."""

from dspy import lm15

DEFAULT_MAX_TOKENS = 1024


def room(prompt: int, context: int, model: str) -> int:
    """The tokens that a reply may have behind a prompt of so many, in a context that holds both.

    Raises:
        dspy.lm15.ContextLengthError: The prompt leaves none; it names the model.
    """
    if prompt >= context:
        raise lm15.ContextLengthError(
            f"The prompt has {prompt} tokens and {model} holds {context}, the reply included. "
            "Shorten the inputs, use fewer demos, or take a model with a longer context."
        )
    return context - prompt
