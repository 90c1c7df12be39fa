"""What cannot become training rows, said before a teacher is paid."""

import inspect
from collections.abc import Collection, Iterator
from typing import Any, get_args

import dspy
from dspy.adapters.decision_state import DecisionState
from dspy.adapters.types import Audio, File, History, Image, Tool
from dspy.adapters.types.base_type import Type
from dspy.adapters.types.citation import Citations
from dspy.adapters.types.decision import Choice, Noul, Score
from dspy.adapters.types.document import Document
from dspy.adapters.types.reasoning import Reasoning
from dspy.adapters.types.tool import ToolCalls
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..errors import ConfigError, RenderError
from .adapted import adapter_of
from .asked import plain_choice, retyped
from .grammar import reply_grammar
from .render import silenced
from .structure import predictors
from .terse import TerseAdapter
from .values import type_adapter

_MEDIA = {Image: "image", Audio: "audio", File: "file", Document: "file"}
_UNWRITABLE = (*_MEDIA, Citations, History, Tool)
ADAPTERS: dict[str, type[dspy.Adapter]] = {  # by the names that people type
    "terse": TerseAdapter,
    "chat": dspy.ChatAdapter,
    "json": dspy.JSONAdapter,
    "xml": dspy.XMLAdapter,
}
_ADAPTERS = "dspy.ChatAdapter, JSONAdapter, XMLAdapter, BAMLAdapter or dspyc.TerseAdapter"


def adapter_of_name(given: Any) -> dspy.Adapter:
    """The adapter that an argument gives: one itself, or "terse", "chat", "json" or "xml".

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(given, dspy.Adapter):
        return given
    if isinstance(given, str) and given in ADAPTERS:
        return ADAPTERS[given]()
    allowed = f"an adapter, {', '.join(map(repr, list(ADAPTERS)[:-1]))} or {list(ADAPTERS)[-1]!r} is allowed"
    if isinstance(given, type) and issubclass(given, dspy.Adapter):
        raise ConfigError(f"`adapter` is the class {given.__name__}; {allowed}.", hint=f"Write {given.__name__}().")
    shown = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
    raise ConfigError(f"`adapter` is {shown}; {allowed}.", hint="For example adapter=dspyc.TerseAdapter().")


def check_renderable(
    name: str,
    predictor: dspy.Predict,
    *,
    adapter: dspy.Adapter,
    lm: dspy.BaseLM,
    modalities: Collection[str] | None = None,
) -> None:
    """Whether calls of this predictor can be written as rows for `lm`. No language model is called.

    Args:
        name: The predictor's name in its program, for the message.
        predictor: The student's predictor.
        adapter: The adapter that the student will run with.
        lm: The student's LM.
        modalities: What the student can read: any of "text", "image", "audio", "file". None for all.

    Raises:
        RenderError: It names the predictor, the field, what is allowed and what to do.
        ConfigError: `lm` follows signatures, and an output's type has no grammar.
    """
    _check_adapter(name, adapter)
    if not isinstance(lm, dspy.BaseLM):
        raise RenderError(
            f"Predictor `{name}` runs on a {type(lm).__name__}, which takes no chat messages; a dspy.LM is allowed.",
            hint="Set a student LM: program.set_lm(dspyc.LocalLM(...)).",
        )
    signature = predictor.signature
    for field, info in signature.input_fields.items():
        _check_readable(name, field, info, modalities)
    for field, info in signature.output_fields.items():
        _check_writable(name, field, info)
        _check_written_as_text(name, field, info, predictor, adapter, lm)
    _check_tools(name, signature, adapter)
    _check_formats(name, predictor, adapter)
    _check_constrained(name, predictor, adapter, lm)


def check_replies_possible(student: dspy.Module) -> None:
    """Whether local models that follow signatures can reply to a program's predictors as they are.

    Raises:
        ConfigError: An output's type has no grammar; it names the predictor, the output and its type.
    """
    for name, predictor in predictors(student).items():
        _check_constrained(name, predictor, adapter_of(predictor), predictor.lm or dspy.settings.lm)


def _check_adapter(name: str, adapter: dspy.Adapter) -> None:
    kind = type(adapter)
    if not isinstance(adapter, dspy.Adapter):
        shown = f"the class {adapter.__name__}" if isinstance(adapter, type) else f"a {kind.__name__}"
        raise RenderError(
            f"The adapter of predictor `{name}` is {shown}; an object is allowed.",
            hint=f"Pass {_ADAPTERS}, as an object.",
        )
    if isinstance(adapter, dspy.TwoStepAdapter):
        why = "a second language model reads its replies, so no text can teach the first one"
    elif _lacks(kind, "format_assistant_message_content"):
        why = "it does not say how a reply is written (format_assistant_message_content)"
    elif _lacks(kind, "parse"):
        why = "it does not say how a reply is read (parse)"
    else:
        return
    raise RenderError(
        f"Predictor `{name}` cannot be trained for {kind.__name__}: {why}.", hint=f"Pass another adapter: {_ADAPTERS}."
    )


def _lacks(kind: type, method: str) -> bool:
    """DSPy wraps some methods of every subclass anew, inherited ones included."""
    return inspect.unwrap(getattr(kind, method)) is inspect.unwrap(getattr(dspy.Adapter, method))


def _check_readable(name: str, field: str, info: FieldInfo, modalities: Collection[str] | None) -> None:
    if modalities is None:
        return
    for kind in _types_in(info.rebuild_annotation(), set()):
        for media, modality in _MEDIA.items():
            if issubclass(kind, media) and modality not in modalities:
                raise RenderError(
                    f"Predictor `{name}` takes a dspy.{media.__name__} in `{field}`; its student reads "
                    f"{', '.join(sorted(modalities))} only.",
                    hint="Use a student that reads it, or describe it in text before this predictor.",
                )


def _check_writable(name: str, field: str, info: FieldInfo) -> None:
    annotation: Any = info.annotation
    for kind in _types_in(info.rebuild_annotation(), set()):
        if issubclass(kind, (Choice, Noul, Score)):
            raise RenderError(
                f"Predictor `{name}` decides `{field}` ({kind.__name__}): such a reply holds probabilities that nobody "
                f"observed.",
                hint="Declare a Literal, bool or int instead.",
            )
        if issubclass(kind, _UNWRITABLE):
            raise RenderError(
                f"Predictor `{name}` answers with a dspy.{kind.__name__} in `{field}`, which a reply of text cannot hold.",
                hint="Declare it as str, a list of str or a pydantic model.",
            )
    try:
        type_adapter(annotation).json_schema()
    except Exception as error:  # pydantic's own errors, or what a custom type's hook raises
        raise RenderError(
            f"Predictor `{name}` answers with {annotation} in `{field}`, which cannot be written as text: "
            f"{type(error).__name__}.",
            hint="Declare a type that pydantic can validate from JSON.",
        ) from error


def _check_written_as_text(
    name: str, field: str, info: FieldInfo, predictor: dspy.Predict, adapter: dspy.Adapter, lm: dspy.BaseLM
) -> None:
    """DSPy asks each native type of the adapter whether this LM delivers it outside of the text."""
    kind = info.annotation
    if not (isinstance(kind, type) and issubclass(kind, Type) and kind in adapter.native_response_types):
        return
    options = dict(predictor.config)
    if field in kind.adapt_to_native_lm_feature(predictor.signature, field, lm, options).output_fields:
        return
    remedy = "Set reasoning_effort=None on the student LM" if issubclass(kind, Reasoning) else "Use another student LM"
    raise RenderError(
        f"Predictor `{name}` leaves `{field}` to the native channel of {lm.model}, where rows of text cannot teach it.",
        hint=f"{remedy}, or declare `{field}` as str.",
    )


def _check_tools(name: str, signature: Any, adapter: dspy.Adapter) -> None:
    calls = [field for field, info in signature.output_fields.items() if info.annotation == ToolCalls]
    if adapter.use_native_function_calling and calls and adapter._get_tool_call_input_field_name(signature) is None:
        raise RenderError(
            f"Predictor `{name}` answers with tool calls in `{calls[0]}`, but no input field declares the tools.",
            hint="Add an input field of type list[dspy.Tool].",
        )


def _check_formats(name: str, predictor: dspy.Predict, adapter: dspy.Adapter) -> None:
    """The parts of every prompt that depend on no input."""
    quiet = silenced(adapter)
    try:
        quiet.format_system_message(predictor.signature)
        quiet.format_demos(predictor.signature, list(predictor.demos))
    except Exception as error:  # the user's types, demos and adapters may raise anything
        raise RenderError(
            f"Predictor `{name}` has a prompt that {type(adapter).__name__} cannot write: {type(error).__name__}: {error}",
            hint="Check the predictor's demos and types, or use another adapter.",
        ) from error


def _check_constrained(name: str, predictor: dspy.Predict, adapter: dspy.Adapter, lm: Any) -> None:
    """What a call of this predictor would find out, where `lm` follows signatures and offers no tools."""
    signature = predictor.signature
    if not getattr(lm, "constrained", False) or _offers_tools(signature, adapter, lm):
        return
    decided = DecisionState(signature, predictor.fields).types  # asked for as plain choices
    plain = tuple((field, plain_choice(kind), None) for field, kind in decided.items())
    try:
        reply_grammar(retyped(signature, plain), adapter)
    except ConfigError as error:
        raise ConfigError(f"Predictor `{name}`: {error.message}", hint=error.hint) from error


def _offers_tools(signature: Any, adapter: dspy.Adapter, lm: Any) -> bool:
    native = adapter.use_native_function_calling and adapter._get_tool_call_output_field_name(signature) is not None
    return bool(native and lm.supports_function_calling)


def _types_in(annotation: Any, seen: set[Any]) -> Iterator[type]:
    """Classes inside an annotation: its arguments', and those of pydantic models' fields."""
    if isinstance(annotation, type) and not get_args(annotation):
        if annotation in seen:
            return
        seen.add(annotation)
        yield annotation
        if issubclass(annotation, BaseModel) and not issubclass(annotation, Type):
            for info in annotation.model_fields.values():
                yield from _types_in(info.annotation, seen)
    for argument in get_args(annotation):
        yield from _types_in(argument, seen)
