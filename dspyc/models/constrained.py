"""A `dspy.LM` whose replies to predictors follow their signatures.

The grammar of a reply travels in the request itself (`config.extensions["metadata"]["grammar"]`), put there by the LM, in the
thread or task that calls it. An engine could look up the caller as well; but DSPy's cache, which stands between the two,
knows requests only. With the grammar in the request, a constrained answer and a free one never share a cache entry, nor do
the answers to two signatures that look alike in a prompt; and whoever holds the request, another process included,
has all that the reply depends on.
"""

from typing import Any

import dspy

from ..signatures.asked import asked_grammar
from .candidates import CandidatesLM
from .decisions import answered, answered_later, decides, evidence

GRAMMAR = "grammar"  # the key of the grammar, as JSON text, in a request's metadata


class ConstrainedLM(CandidatesLM):
    """A `dspy.LM` over an engine that takes grammars, such as `LocalEngine`.

    Only requests that a predictor makes through ChatAdapter, JSONAdapter or TerseAdapter are constrained; those that
    offer tools are not, since a call to a tool is no value of the signature.

    Raises:
        ConfigError: In a call: an output's type has no grammar.
    """

    @property
    def supports_decision_requests(self) -> bool:
        """Whether the calling predictor only decides: DSPy then asks for evidence, which is the model's own probabilities."""
        return (self.kwargs.get("n") or 1) == 1 and decides(_caller())

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        if "questions" in kwargs:
            return answered(evidence(_caller(), kwargs, self), self)
        return super().__call__(prompt, messages=messages, **self._with_grammar(messages, kwargs))

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        if "questions" in kwargs:
            return await answered_later(evidence(_caller(), kwargs, self), self.acall)
        return await super().acall(prompt, messages=messages, **self._with_grammar(messages, kwargs))

    def _with_grammar(self, messages: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if not messages or kwargs.get("tools") or self.kwargs.get("tools"):
            return kwargs
        grammar = asked_grammar(messages)
        if grammar is None:
            return kwargs
        metadata = {**(self.kwargs.get("metadata") or {}), **(kwargs.get("metadata") or {}), GRAMMAR: grammar}
        return {**kwargs, "metadata": metadata}


def _caller() -> Any:
    """The innermost module that DSPy is in; None outside of modules."""
    modules = dspy.settings.caller_modules
    return modules[-1] if modules else None
