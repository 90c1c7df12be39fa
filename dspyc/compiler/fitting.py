"""Demos that fit the context of the language model that reads them, counted by its own tokenizer."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from ..errors import RenderError
from ..signatures import adapter_of, prompt
from ..signatures.render import Prompt

logger = logging.getLogger(__name__)

FitContext = bool | int | None  # an optimizer's setting: whether prompts have to fit, or into how many tokens
_REPLY_SHARE = 0.25  # of the context, where the language model sets no `max_tokens`


def fitted(
    name: str,
    predictor: dspy.Predict,
    demos: Sequence[Any],
    inputs: Sequence[Mapping[str, Any]] | Sequence[dspy.Example],
    fit_context: FitContext,
    *,
    shown: int | None = None,
) -> list[Any]:
    """The demos, in their order, that fit: those that would make the prompt too long are left out, and that is logged.

    The prompt is what the predictor sends with its adapter on the longest of `inputs`. Without a language model, or where its
    context is not known, all fit.

    Args:
        name: The predictor's name, for the log.
        predictor: Its language model, or else DSPy's, is the one that reads.
        demos: Those to choose from, the most wanted first.
        inputs: Inputs that the predictor was or will be given.
        fit_context: The tokens that a prompt may have; True: the context, less the reply (`prompt_limit`); False: any number;
            None: True where tokens are counted by the model's own tokenizer here, and False elsewhere.
        shown: Where `demos` is a pool of which so many are in a prompt at once; any choice of them must fit.

    Raises:
        RenderError: The adapter cannot write the prompt; with None, all demos are returned instead.
    """
    lm = predictor.lm or dspy.settings.lm
    limit = _limit(lm, fit_context)
    if lm is None or limit is None:
        return list(demos)
    reader = _Reader.of(predictor, inputs, lm, limit)
    try:
        kept = _that_fit(reader, demos) if shown is None else _of_a_pool(reader, demos, shown)
    except RenderError:
        if fit_context is None:
            return list(demos)
        raise
    if left := len(demos) - len(kept):
        said = "%d of %d demos of `%s` are left out: its prompt may have %d tokens."
        logger.warning(said, left, len(demos), name, limit)
    return kept


def _that_fit(reader: "_Reader", demos: Sequence[Any]) -> list[Any]:
    if reader.fits(demos):
        return list(demos)
    kept: list[Any] = []
    for demo in demos:
        if reader.fits([*kept, demo]):
            kept.append(demo)
    return kept


def _of_a_pool(reader: "_Reader", pool: Sequence[Any], k: int) -> list[Any]:
    """The pool without its longest demos, so that any `k` of them fit."""
    if len(pool) <= k and reader.fits(pool):
        return list(pool)
    length = [reader.length([demo]) for demo in pool]
    by_length = sorted(range(len(pool)), key=length.__getitem__)
    fit = bisect_left(
        range(len(pool)), True, key=lambda n: not reader.fits([pool[at] for at in by_length[: n + 1][-k:]])
    )
    return [pool[at] for at in sorted(by_length[:fit])]


def _limit(lm: dspy.BaseLM | None, fit_context: FitContext) -> int | None:
    """The tokens that a prompt may have by an optimizer's setting; None for any number."""
    if lm is None or fit_context is False:
        return None
    if fit_context is None and getattr(_local(lm), "chat", None) is None:
        return None
    return prompt_limit(lm) if fit_context is None or fit_context is True else fit_context


@dataclass(frozen=True)
class _Reader:
    """A predictor's prompts as its language model counts them; `longest` are the inputs that leave least room for demos."""

    predictor: dspy.Predict
    longest: Mapping[str, Any]
    lm: dspy.BaseLM
    limit: int  # tokens

    @classmethod
    def of(cls, predictor: dspy.Predict, inputs: Iterable[Any], lm: dspy.BaseLM, limit: int) -> "_Reader":
        # Where an example of the whole program lacks a field of this predictor, the adapter still writes its header.
        given = [{field: one.get(field, "") for field in predictor.signature.input_fields} for one in (*inputs, {})]
        return cls(predictor, max(given, key=lambda one: sum(len(str(value)) for value in one.values())), lm, limit)

    def length(self, demos: Sequence[Any]) -> int:
        made = prompt(self.predictor, self.longest, adapter=adapter_of(self.predictor), lm=self.lm, demos=demos)
        return token_counter(self.lm)(made)

    def fits(self, demos: Sequence[Any]) -> bool:
        return self.length(demos) <= self.limit


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
