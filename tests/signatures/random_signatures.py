"""Hypothesis strategies for signatures: one to four outputs of types nested up to three deep."""

import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal

import dspy
from hypothesis import strategies as st
from pydantic import Field, create_model

NAMES = st.sampled_from(["answer", "label", "score", "tags", "a", "x_1", "summary", "total"])
WORDS = st.text(st.sampled_from("abcXYZ 019\"'\\[]{}#.,:-_/éß日😀"), min_size=1, max_size=8)
LINES = WORDS.filter(lambda word: word == word.strip() and "[[ ##" not in word)


def literals() -> st.SearchStrategy[Any]:
    options = st.lists(st.one_of(LINES, st.integers(-20, 200)), min_size=1, max_size=5, unique_by=str)
    # Options that a reader of text cannot tell apart are no fault of a grammar's.
    return options.filter(_distinct).map(lambda found: Literal[tuple(found)])


def _distinct(options: list[Any]) -> bool:
    bare = [str(option).strip("\"'") for option in options]
    return (
        len(set(bare)) == len(bare)
        and all(bare)
        and not any(_is_number(b) for b, o in zip(bare, options, strict=True) if isinstance(o, str))
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@st.composite
def enums(draw: st.DrawFn) -> Any:
    values = draw(
        st.lists(st.sampled_from(["red", "deep blue", "n/a", "Ü", "a.b"]), min_size=1, max_size=4, unique=True)
    )
    return enum.Enum("Colour", [(f"M{i}", value) for i, value in enumerate(values)])


@st.composite
def models(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Any:
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    fields: dict[str, Any] = {}
    for name in names:
        kind = draw(inner)
        fields[name] = (
            (kind, None) if draw(st.booleans()) and type(None) in getattr(kind, "__args__", ()) else (kind, ...)
        )
    return create_model("Record", **fields)


BOUNDED = st.sampled_from(
    [
        Annotated[int, Field(ge=1, le=5)],
        Annotated[int, Field(ge=-120, lt=1035)],
        Annotated[int, Field(gt=0)],
        Annotated[float, Field(ge=0, le=1)],
        Annotated[float, Field(ge=-2, le=17)],
        Annotated[str, Field(min_length=2, max_length=5)],
        Annotated[str, Field(pattern=r"^[A-Z]{2}-\d+$")],
        Annotated[list[int], Field(min_length=1, max_length=3)],
    ]
)
SCALARS = st.sampled_from(
    [str, int, float, bool, datetime.date, datetime.datetime, uuid.UUID, decimal.Decimal, datetime.timedelta]
)


def nested() -> st.SearchStrategy[Any]:
    """Types as they stand inside others."""
    return st.recursive(
        st.one_of(SCALARS, BOUNDED, literals(), enums()),
        lambda inner: st.one_of(
            inner.map(lambda kind: list[kind]),
            inner.map(lambda kind: dict[str, kind]),
            inner.map(lambda kind: dict[int, kind]),
            inner.map(lambda kind: tuple[kind, int]),
            inner.map(lambda kind: kind | None),
            models(inner),
        ),
        max_leaves=4,
    )


def outputs() -> st.SearchStrategy[Any]:
    """Types as outputs have them."""
    simple = st.sampled_from([str, int, float, bool, int | None, str | None, int | str, set[int], list, dict, Any])
    deep = nested()
    boxed = st.one_of(deep.map(lambda kind: list[kind]), deep.map(lambda kind: dict[str, kind]), models(deep))
    return st.one_of(simple, literals(), enums(), boxed, boxed.map(lambda kind: kind | None))


@st.composite
def signatures(draw: st.DrawFn) -> type[dspy.Signature]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    fields: dict[str, Any] = {"question": (str, dspy.InputField())}
    fields |= {name: (draw(outputs()), dspy.OutputField()) for name in names}
    return dspy.Signature(fields, "Answer.")
