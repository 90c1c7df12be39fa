"""TerseAdapter: the prompt of a student whose weights already carry the task.

A general adapter explains the task in every prompt: field descriptions, the layout, the type of each answer. A fine-tuned
student has learned all that, so here the system message is a short task name, the user message the input values and
the reply the output values: one value a line, in the signature's order.

The line grammar, which `encode` and `decode` implement and which no value can break:

- text stands as it is when it is one line that could not be mistaken for anything else, and as a JSON string otherwise;
- every other value is one line of JSON (models by their fields' names), except that a string in the place of a wider
  type (`Literal`, `Enum`, `str | None`, dates) drops its quotes when it is not itself valid JSON;
- the last field, when it is text, runs to the end of the message, so prose and code keep their line breaks;
- an empty line is a value that was not given.

One thing no JSON can keep: which member of a union a value was, when two members look alike, as in `UUID | str`.
"""

import json
import unicodedata
from enum import Enum, EnumMeta
from typing import Any, get_args

from dspy.adapters.base import Adapter
from dspy.adapters.types import Audio, Code, File, Image, Reasoning, Tool
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER, Type
from dspy.adapters.types.document import Document
from dspy.adapters.utils import apply_output_field_defaults, format_field_value, parse_value, serialize_for_json
from dspy.signatures.signature import Signature
from dspy.utils.exceptions import AdapterParseError
from pydantic.fields import FieldInfo

from .values import is_text, type_adapter

_MEDIA = (Audio, Document, File, Image, Tool)


class TerseAdapter(Adapter):
    """A `dspy.Adapter` that sends values only.

    Two predictors that one set of weights serves must have different task names: name their signature classes apart, or
    train each on its own (`multitask=False`). `dspyc.BootstrapFinetune` checks this before it calls a teacher.

    Example:
        >>> import dspy, dspyc
        >>> signature = dspy.Signature("text -> label: Literal['card', 'cash']")
        >>> [m["content"] for m in dspyc.TerseAdapter().format(signature, demos=[], inputs={"text": "Where is it?"})]
        ['text -> label', 'Where is it?']
    """

    def format_system_message(self, signature: type[Signature]) -> str:
        return task_name(signature)

    def format_user_message_content(
        self,
        signature: type[Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        if not any(name in inputs for name in signature.input_fields):
            return ""  # a history entry may hold outputs only
        return _encode_fields(signature.input_fields, inputs)

    def format(
        self, signature: type[Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = super().format(signature, demos, inputs)
        if messages[-1]["role"] in ("system", "assistant"):  # no input was given, yet there must be a turn to answer
            messages.append({"role": "user", "content": task_name(signature)})
        return messages

    def format_assistant_message_content(
        self,
        signature: type[Signature],
        outputs: dict[str, Any],
        missing_field_message: str | None = None,
    ) -> str:
        return _encode_fields(signature.output_fields, outputs)

    def parse(self, signature: type[Signature], completion: str) -> dict[str, Any]:
        """Read the values back, in order. Missing trailing lines take the fields' defaults.

        Raises:
            dspy.utils.exceptions.AdapterParseError: A line does not hold its field's type, or a required one is missing.
        """
        names = list(signature.output_fields)
        lines = completion.strip().split("\n", len(names) - 1) if names else []
        values: dict[str, Any] = {}
        for name, line in zip(names, lines, strict=False):
            if not line.strip():
                continue
            try:
                values[name] = decode(line.strip(), signature.output_fields[name].annotation)
            except ValueError as error:
                raise AdapterParseError(
                    adapter_name="TerseAdapter",
                    signature=signature,
                    lm_response=completion,
                    message=f"Line {names.index(name) + 1} is not a value of field `{name}`: {error}",
                    parsed_result=values,
                ) from error
        values = apply_output_field_defaults(signature, values)
        if values.keys() != signature.output_fields.keys():
            raise AdapterParseError(
                adapter_name="TerseAdapter", signature=signature, lm_response=completion, parsed_result=values
            )
        return values

    def format_finetune_data(
        self, signature: type[Signature], demos: list[dict[str, Any]], inputs: dict[str, Any], outputs: dict[str, Any]
    ) -> dict[str, list[Any]]:
        reply = {"role": "assistant", "content": self.format_assistant_message_content(signature, outputs)}
        return {"messages": [*self.format(signature, demos, inputs), reply]}


def task_name(signature: type[Signature]) -> str:
    """The class name of a declared signature, the field names of one made from a string."""
    if signature.__name__ not in ("StringSignature", "Signature"):
        return str(signature.__name__)
    return f"{', '.join(signature.input_fields)} -> {', '.join(signature.output_fields)}"


def encode(value: Any, field: FieldInfo, *, last: bool = False) -> str:
    """One value as the adapter writes it; `last` lets text keep its line breaks."""
    annotation = field.annotation
    if _holds_media(annotation, value):
        return str(format_field_value(field, value))  # DSPy makes content parts of what stands here
    if isinstance(value, (Code, Reasoning)):
        value = value.format()
    if is_text(annotation) and isinstance(value, str):
        bare = _is_plain(value, multiline=last) and _as_text(value, annotation) == _as_text(value, str)
        return value if bare else _dumps(value)
    jsonable = _jsonable(value, annotation)
    if isinstance(jsonable, str) and not is_text(annotation) and _is_plain(jsonable) and not _is_json(jsonable):
        return jsonable
    return _dumps(jsonable)


def decode(text: str, annotation: Any) -> Any:
    """The value that `encode` wrote.

    Raises:
        ValueError: The text is not a value of `annotation` (pydantic's ValidationError is one).
    """
    if is_text(annotation):
        value = _unquote(text)
        if annotation is str:
            return value
        if value != text and issubclass(annotation, Code):
            return annotation.model_construct(code=value)  # quoted because reading it would look for fences in it
        return type_adapter(annotation).validate_python(value)
    adapter = type_adapter(annotation)
    try:
        if _is_json(text):
            return adapter.validate_json(text, by_alias=True, by_name=True)
        return adapter.validate_python(text)
    except ValueError as error:
        return _leniently(_unquote(text), annotation, error)


def _encode_fields(fields: dict[str, FieldInfo], values: dict[str, Any]) -> str:
    names = list(fields)
    return "\n".join(
        encode(values[name], fields[name], last=name == names[-1]) if name in values else "" for name in names
    )


def _is_plain(text: str, *, multiline: bool = False) -> bool:
    """Whether text can stand without quotes: nothing to strip, no opening quote, no control characters or markers."""
    if not text or text != text.strip() or text.startswith('"') or CUSTOM_TYPE_START_IDENTIFIER in text:
        return False
    allowed = "\n\t" if multiline else "\t"
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in allowed for c in text)


def _leniently(text: str, annotation: Any, error: ValueError) -> Any:
    """Enum members inside a Literal, which pydantic does not read, and what models write: `3` for Literal['3']."""
    for option in get_args(annotation):
        if isinstance(option, Enum) and text in (str(option.value), option.name):
            return option
    try:
        return parse_value(text, annotation)
    except ValueError:
        raise error from None


def _as_text(text: str, annotation: Any) -> str:
    return text if annotation is str else str(type_adapter(annotation).validate_python(text).format())


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _unquote(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _dumps(value: Any) -> str:
    # DSPy makes content parts of its marker wherever it stands: in the user's own text it must not be seen.
    escaped = f"\\u003c{CUSTOM_TYPE_START_IDENTIFIER[1:]}"
    text = json.dumps(value, ensure_ascii=False).replace(CUSTOM_TYPE_START_IDENTIFIER, escaped)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form; its escape has
        return json.dumps(value).replace(CUSTOM_TYPE_START_IDENTIFIER, escaped)
    return text


def _jsonable(value: Any, annotation: Any) -> Any:
    if isinstance(annotation, EnumMeta) and isinstance(value, Enum) and not isinstance(value.value, (str, int, float)):
        return value.name  # a member whose value JSON may not tell
    try:
        dumped = type_adapter(annotation).dump_python(
            value, mode="json", by_alias=False, round_trip=True, warnings="error"
        )
    except Exception:
        # A caller may pass an input that is not what the signature declares; DSPy accepts it, and so do we.
        dumped = serialize_for_json(value)
    if isinstance(value, (set, frozenset)) and isinstance(dumped, list):
        return sorted(dumped, key=json.dumps)  # a set has no order that two processes would agree on
    return dumped


def _holds_media(annotation: Any, value: Any) -> bool:
    """Images, audio, files and tools become content parts that only DSPy's own formatting writes."""
    if any(issubclass(kind, _MEDIA) for kind in Type.extract_custom_type_from_annotation(annotation)):
        return True
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    return any(
        isinstance(item, Tool)
        or (isinstance(item, Type) and type(item).format is not Type.format and isinstance(item.format(), list))
        for item in items
    )
