"""Demos that fit the context of the language model that reads them, counted by its own tokenizer.

fitting("answer", predictor, predictor.demos, inputs)      # those that leave room for the longest inputs and a reply
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from ..signatures import adapter_of, prompt
from ..signatures.render import Prompt

logger = logging.getLogger(__name__)

_REPLY_SHARE = 0.25  # of the context, where the language model sets no `max_tokens`


def fitting(
    name: str,
    predictor: dspy.Predict,
    demos: Sequence[Any],
    inputs: Sequence[Mapping[str, Any]],
    *,
    limit: int | None = None,
) -> list[Any]:
    """The demos, in their order, that fit: one that would make the prompt too long is left out, and that is logged.

    The prompt is what the predictor sends with its adapter on the longest of `inputs`. Without a language model, or where
    its context is not known, all fit.

    Args:
        name: The predictor's name, for the log.
        predictor: Its language model, or else DSPy's, is the one that reads.
        demos: Those to choose from, the most wanted first.
        inputs: Inputs that the predictor was or will be given.
        limit: Tokens of the prompt. Default: the context, less the reply: `max_tokens`, else a quarter of the context.

    Raises:
        RenderError: The adapter cannot write the prompt.
    """
    lm = predictor.lm or dspy.settings.lm
    limit = limit if limit is not None or lm is None else prompt_limit(lm)
    if lm is None or limit is None or not demos:
        return list(demos)
    count, adapter = token_counter(lm), adapter_of(predictor)
    # Where an example of the whole program lacks a field of this predictor, the adapter still writes its header.
    given = [{field: one.get(field, "") for field in predictor.signature.input_fields} for one in (*inputs, {})]
    longest = max(given, key=lambda one: sum(len(str(value)) for value in one.values()))

    def fits(some: Sequence[Any]) -> bool:
        return count(prompt(predictor, longest, adapter=adapter, lm=lm, demos=some)) <= limit

    if fits(demos):
        return list(demos)
    kept: list[Any] = []
    for demo in demos:
        if fits([*kept, demo]):
            kept.append(demo)
    left = len(demos) - len(kept)
    logger.warning("%d of %d demos of `%s` are left out: its prompt may have %d tokens.", left, len(demos), name, limit)
    return kept


def prompt_limit(lm: dspy.BaseLM) -> int | None:
    """The tokens that a prompt to `lm` may have beside its reply; None where its context is not known."""
    context = _context(lm)
    if context is None:
        return None
    reply = lm.kwargs.get("max_tokens") or lm.kwargs.get("max_completion_tokens") or round(context * _REPLY_SHARE)
    return context - min(reply, context // 2)


def token_counter(lm: dspy.BaseLM) -> Callable[[Prompt], int]:
    """Counts the tokens of a prompt: by the model's own tokenizer here, else by LiteLLM's for its name."""
    chat = getattr(_local(lm), "chat", None)
    if chat is not None:
        return lambda made: len(chat.prompt_ids(made.messages, made.tools or None))
    import litellm

    def count(made: Prompt) -> int:
        return int(litellm.token_counter(model=lm.model, messages=made.messages, tools=made.tools or None))

    return count


def _context(lm: dspy.BaseLM) -> int | None:
    """Tokens of prompt and reply together."""
    engine = _local(lm)
    if engine is not None:
        served = getattr(engine, "served", engine)  # a server's engine keeps what it serves apart
        length: int | None = served.max_length
        return length
    import litellm

    try:
        known = litellm.get_model_info(lm.model)
    except Exception:  # LiteLLM raises a bare Exception for a name that its table does not have
        return None
    context: int | None = known.get("max_input_tokens") or known.get("max_tokens")
    return context


def _local(lm: dspy.BaseLM) -> Any:
    """The engine that holds the weights behind `lm`, on this machine or a server of ours."""
    engine: Any = getattr(lm, "engine", None)
    return engine.serving(lm.model) if hasattr(engine, "serving") else None
