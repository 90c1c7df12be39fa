"""Which predictor's signature a request asks about, read from DSPy's settings and from the messages themselves.

An LM is called with messages only. DSPy keeps, for each call, the modules that it goes through (`settings.caller_modules`, in
a context variable, so threads and tasks do not mix them up): the innermost is the predictor. Its adapter is the one in
force, or the JSONAdapter that ChatAdapter falls back to. What is found so is believed only where the messages end with, or
for TerseAdapter begin with, the very words in which that adapter asks for that signature's outputs. So a module that
calls its LM itself, an adapter that rewrites signatures and a call with another `signature=` are never taken for what they
are not: no grammar is found for them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import dspy
from dspy.adapters.decision import evidence_type
from dspy.adapters.decision_state import DecisionState

from .grammar import reply_grammar
from .terse import TerseAdapter, task_name


def asked_grammar(messages: Sequence[Any]) -> str | None:
    """The grammar, as JSON text, of the reply that these messages ask the calling predictor's LM for; None if unknown.

    Raises:
        ConfigError: An output's type has no grammar.
    """
    modules = dspy.settings.caller_modules
    if not modules or not isinstance(modules[-1], dspy.Predict) or not messages:
        return None
    signature = _written(modules[-1])
    for adapter in _adapters(dspy.settings.adapter or dspy.ChatAdapter()):
        if _asks(adapter, signature, messages):
            return reply_grammar(signature, adapter)
    return None


def _adapters(adapter: dspy.Adapter) -> Iterator[dspy.Adapter]:
    yield adapter
    if isinstance(adapter, dspy.ChatAdapter) and not isinstance(adapter, dspy.JSONAdapter):
        yield dspy.JSONAdapter()


def _written(predictor: dspy.Predict) -> type[dspy.Signature]:
    """The signature that an LM is asked about: DSPy asks for the evidence of a decision in the decision's place."""
    signature = predictor.signature
    for name, kind in DecisionState(signature, predictor.fields).types.items():
        signature = signature.with_updated_fields(name, type_=evidence_type(kind))
    return signature  # type: ignore[no-any-return]


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
