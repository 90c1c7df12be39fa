"""Output values: labels read as their declared types, and equality after a trip through text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dspy.adapters.types import Code, Reasoning
from dspy.adapters.types.tool import ToolCalls
from dspy.adapters.utils import parse_value
from pydantic import BaseModel, TypeAdapter

from ..errors import RenderError


@dataclass(frozen=True, eq=False)
class _Itself:
    """An annotation as a key. Equal ones may read differently: `int | str` equals `str | int`."""

    annotation: Any

    def __hash__(self) -> int:
        return id(self.annotation)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.annotation is other.annotation


@lru_cache(maxsize=1024)
def _made(key: _Itself) -> TypeAdapter[Any]:
    return TypeAdapter(key.annotation)


def is_text(annotation: Any) -> bool:
    """Whether a reply's text is the value as it stands."""
    return annotation is str or (isinstance(annotation, type) and issubclass(annotation, (Code, Reasoning)))


def type_name(annotation: Any) -> str:
    """A type as its author would write it."""
    return annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")


def type_adapter(annotation: Any) -> TypeAdapter[Any]:
    """pydantic's reader and writer of a type, made once: making one takes longer than most that is done with it."""
    return _made(_Itself(annotation))


def fitted(name: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation`: itself when it is one, else what DSPy would read in its place ("3" for an int).

    Raises:
        RenderError: It is no such value.
    """
    validator = type_adapter(annotation)
    try:
        return validator.validate_python(value)
    except ValueError as error:
        reason = error
    if annotation is not str or isinstance(value, (bool, int, float)):
        try:
            return parse_value(value, annotation)
        except Exception as error:  # whatever a type's own parser raises, the value is none of its kind
            reason = error if isinstance(error, ValueError) else reason
    raise RenderError(
        f"Output `{name}` is {short(value)}, which is not of its type {annotation}.",
        hint="Give a value of the field's type, or change the type in the signature.",
    ) from reason


def same(written: Any, read: Any, annotation: Any) -> bool:
    """Whether a value survived: DSPy's adapters may strip the ends of texts and renew their line breaks."""
    return _equal(_plain(written, annotation), _plain(read, annotation))


def _plain(value: Any, annotation: Any) -> Any:
    if annotation == ToolCalls:  # native calls have ids that text has not; none and an empty list are the same
        calls = value.tool_calls if value is not None else []
        return [{"name": call.name, "args": call.args} for call in calls]
    try:
        return type_adapter(annotation).dump_python(value, warnings=False)
    except Exception:  # a custom type may not serialise; it can still be compared
        return value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return _lines(a) == _lines(b)
    if isinstance(a, float) and isinstance(b, (int, float)) and not isinstance(b, bool):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, BaseModel) and isinstance(b, BaseModel):
        return type(a) is type(b) and _equal(dict(a), dict(b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()


def short(value: Any, limit: int = 200) -> str:
    """A value in a message: an error as it reads, anything else as Python writes it."""
    return cut(str(value) if isinstance(value, BaseException) else repr(value), limit)


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
