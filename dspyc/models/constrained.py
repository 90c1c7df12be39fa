"""A `dspy.LM` whose replies to predictors follow their signatures.

The grammar of a reply travels in the request itself (`config.extensions["metadata"]["grammar"]`), put there by the LM, in the
thread or task that calls it. An engine could look up the caller as well; but DSPy's cache, which stands between the two,
knows requests only. With the grammar in the request, a constrained answer and a free one never share a cache entry, nor do
the answers to two signatures that look alike in a prompt; and whoever holds the request, another process included,
has all that the reply depends on.
"""

from typing import Any

from ..signatures.asked import asked
from ..signatures.grammar import reply_grammar
from .candidates import CandidatesLM
from .decisions import Evidence, answered, answered_later

GRAMMAR = "grammar"  # the key of the grammar, as JSON text, in a request's metadata


class ConstrainedLM(CandidatesLM):
    """A `dspy.LM` over an engine that takes grammars, such as `LocalEngine`.

    Only requests that a predictor makes through ChatAdapter, JSONAdapter or TerseAdapter are constrained; those that
    offer tools are not, since a call to a tool is no value of the signature.

    Raises:
        ConfigError: In a call: an output's type has no grammar.
    """

    constrained = True

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        evidence, settings = self._asked(messages, kwargs)
        if evidence is None:
            return super().__call__(prompt, messages=messages, **settings)
        replies = super().__call__(messages=evidence.messages, **settings) if evidence.replies else self._blank(kwargs)
        return [evidence.put(reply, answered(evidence.text(reply, self), self)) for reply in replies]

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        evidence, settings = self._asked(messages, kwargs)
        if evidence is None:
            return await super().acall(prompt, messages=messages, **settings)
        blank = self._blank(kwargs)
        replies = await super().acall(messages=evidence.messages, **settings) if evidence.replies else blank
        return [evidence.put(reply, await answered_later(evidence.text(reply, self), self.acall)) for reply in replies]

    def bound_by(self, messages: Any, kwargs: dict[str, Any]) -> list[Any]:
        """What the answer to such a call depends on besides its messages and settings.

        That is the grammar and, where decisions are asked for, the prompt that replaces the messages; nothing if the reply is
        unconstrained.
        """
        evidence, settings = self._asked(messages, kwargs)
        if settings is kwargs:
            return []
        return [settings["metadata"][GRAMMAR], *(evidence.messages if evidence else [])]

    def _asked(self, messages: Any, kwargs: dict[str, Any]) -> tuple[Evidence | None, dict[str, Any]]:
        """The decisions that a call asks for, if any, and its settings with the grammar of the reply."""
        settings = {**self.kwargs, **kwargs}
        found = None if not messages or settings.get("tools") else asked(messages)
        if found is None:
            return None, kwargs
        evidence = None if settings.get("logprobs") else Evidence.of(found, self)
        grammar = reply_grammar(found.signature if evidence is None else evidence.signature, found.adapter)
        if grammar is None:
            return None, kwargs
        metadata = {**(self.kwargs.get("metadata") or {}), **(kwargs.get("metadata") or {}), GRAMMAR: grammar}
        return evidence, {**kwargs, "metadata": metadata}

    def _blank(self, kwargs: dict[str, Any]) -> list[str]:
        """In the place of replies where there is nothing to write."""
        return [""] * (kwargs.get("n") or self.kwargs.get("n") or 1)
