"""Which predictor's signature a request asks about, read from DSPy's settings and from the messages themselves.

An LM is called with messages only. DSPy keeps, for each call, the modules that it goes through (`settings.caller_modules`, in
a context variable, so threads and tasks do not mix them up): the innermost is the predictor. Its adapter is the one in
force, or the JSONAdapter that ChatAdapter falls back to. What is found so is believed only where the messages end with, or
for TerseAdapter begin with, the very words in which that adapter asks for that signature's outputs. So a module that
calls its LM itself and an adapter that rewrites signatures are never taken for what they are not: no grammar is found for
them, nor for a call with another `signature=`, which is seen where DSPy has it.
"""

import inspect
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import dspy
from dspy.adapters.decision import evidence_type
from dspy.adapters.decision_state import DecisionState
from dspy.adapters.types.decision import Noul, Score

from .terse import TerseAdapter, task_name

Retyping: TypeAlias = tuple[tuple[str, Any, str | None], ...]  # (output, type, description or None to leave it)


class Asked(NamedTuple):
    """Whose outputs a request asks for, in which adapter's words, and as which signature: DSPy asks for the evidence of a
    decision in the decision's place. `decisions` has these. `call` is the predictor's (see `_call_of`)."""

    predictor: dspy.Predict
    adapter: dspy.Adapter
    signature: type[dspy.Signature]
    decisions: DecisionState
    call: dict[str, Any] | None


def asked(messages: Sequence[Any]) -> Asked | None:
    """What these messages ask the calling predictor's LM for; None if unknown."""
    modules = dspy.settings.caller_modules
    if not modules or not isinstance(modules[-1], dspy.Predict) or not messages:
        return None
    call = _call_of(modules[-1])
    if call is not None and call["signature"] is not modules[-1].signature:
        return None
    decisions = DecisionState(modules[-1].signature, modules[-1].fields)
    evidence = tuple((name, evidence_type(kind), None) for name, kind in decisions.types.items())
    signature = _with_evidence(modules[-1].signature, evidence)
    for adapter in _adapters(dspy.settings.adapter or dspy.ChatAdapter()):
        if _asks(adapter, signature, messages):
            return Asked(modules[-1], adapter, signature, decisions, call)
    return None


def retyped(signature: type[dspy.Signature], changes: Retyping) -> type[dspy.Signature]:
    """A signature with other types."""
    for name, kind, desc in changes:
        signature = signature.with_updated_fields(name, type_=kind, **({} if desc is None else {"desc": desc}))
    return signature


def plain_choice(kind: Any) -> Any:
    """The type with the options of one of DSPy's decision types: a bool, a Literal, or a Literal of a score's levels."""
    if issubclass(kind, Noul):
        return bool
    if issubclass(kind, Score):
        return Literal[tuple(range(len(kind.criteria())))]
    return kind.model_fields["value"].annotation


_with_evidence = lru_cache(maxsize=256)(retyped)  # kept, as its grammar is


_FORWARDS = {inspect.unwrap(each).__code__ for each in (dspy.Predict.forward, dspy.Predict.aforward)}


def _call_of(predictor: dspy.Predict) -> dict[str, Any] | None:
    """The `signature`, `kwargs` (inputs) and `demos` of the predictor's call under way; None where it is not to be seen.

    DSPy tells an LM only what it has made of them, so they are read where DSPy has them.
    """
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code in _FORWARDS and frame.f_locals.get("self") is predictor:
            return dict(frame.f_locals)
    return None


def _adapters(adapter: dspy.Adapter) -> Iterator[dspy.Adapter]:
    yield adapter
    if isinstance(adapter, dspy.ChatAdapter) and not isinstance(adapter, dspy.JSONAdapter):
        yield dspy.JSONAdapter()


def _asks(adapter: dspy.Adapter, signature: type[dspy.Signature], messages: Sequence[Any]) -> bool:
    if isinstance(adapter, TerseAdapter):
        return bool(_text(messages[0]) == task_name(signature))
    if isinstance(adapter, dspy.ChatAdapter):
        wanted = adapter.user_message_output_requirements(signature)
        return bool(wanted) and _text(messages[-1]).endswith(wanted.strip())
    return False


def _text(message: Any) -> str:
    """The text of a message, or the last text among its parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content.strip()
    texts = [part["text"] for part in content or () if part.get("type") == "text"]
    return texts[-1].strip() if texts else ""
