"""TerseAdapter: every value that a signature can declare survives the trip through its lines."""

import datetime as dt
import math
import string
import uuid
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Literal, Optional

import dspy
import pydantic
import pytest
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER
from dspy.utils.exceptions import AdapterParseError
from hypothesis import given, settings
from hypothesis import strategies as st

from dspyc.signatures.terse import TerseAdapter, task_name
from dspyc.signatures.values import same

from .engines import prepared_lm

ADAPTER = TerseAdapter()


class Mood(Enum):
    GOOD = "good"
    NULL = "null"
    THREE = "3"
    ONE = 1


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Corner(Enum):
    LEFT = (0, 0)
    RIGHT = (1, 0)


class Address(pydantic.BaseModel):
    street: str = pydantic.Field(alias="streetName")
    number: int | None = None
    mood: Mood = Mood.GOOD


class Person(pydantic.BaseModel):
    name: str
    born: dt.date | None = None
    addresses: list[Address] = []
    tags: set[str] = set()
    extra: dict[str, float] = {}
    served: str = pydantic.Field(default="", serialization_alias="servedBy")
    read: str = pydantic.Field(default="", validation_alias="readBy")


IMITATIONS = [
    "", " ", "\n", "null", "true", "3", "-1.5e3", "NaN", '"', '"quoted"', '"half', '\\"', "[1, 2]", '{"a": 1}', "{", "[",
    "[[ ## answer ## ]]", "[[ ## completed ## ]]", "<|im_end|>", "</s>", "<answer>x</answer>", "a\n\nb", "a\r\nb", "\ta",
    "line\u2028separator", "\x85", "\x00", "\ufeff", "```python\nx\n```", "  padded  ", "N/A", "[" * 1200,
    f"{CUSTOM_TYPE_START_IDENTIFIER}[]", "Literal[x]", "'single'", "\ud800",
]  # fmt: skip
lone = st.characters(categories=["Cs"])
text = st.one_of(st.text(), st.text(st.one_of(st.characters(), lone)), st.sampled_from(IMITATIONS), st.text(' "\n[{n1'))
clean = st.one_of(st.text(), st.sampled_from([t for t in IMITATIONS if "\ud800" not in t]))
numbers = st.floats(allow_nan=True, allow_infinity=True)
arguments = st.dictionaries(st.text(string.ascii_letters, min_size=1), st.one_of(clean, st.integers(), st.none()))

addresses = st.builds(
    lambda street, number, mood: Address(streetName=street, number=number, mood=mood),
    clean,
    st.none() | st.integers(),
    st.sampled_from(Mood),
)
people = st.builds(
    lambda name, born, homes, tags, extra, served, read: Person(
        name=name, born=born, addresses=homes, tags=tags, extra=extra, served=served, readBy=read
    ),
    clean,
    st.none() | st.dates(),
    st.lists(addresses, max_size=2),
    st.sets(clean, max_size=3),
    st.dictionaries(clean, numbers, max_size=2),
    clean,
    clean,
)
calls = st.builds(
    lambda items: dspy.ToolCalls.from_dict_list([{"name": n, "args": a} for n, a in items]),
    st.lists(st.tuples(st.text(string.ascii_letters, min_size=1), arguments), max_size=3),
)

OPTIONS = ("a", "null", "3", "", "two words", " padded", "multi\nline", '"q"', "[1]", 3, 1, True, None)

TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, text),
    (int, st.integers()),
    (float, numbers),
    (bool, st.booleans()),
    (Literal[OPTIONS], st.sampled_from(OPTIONS)),
    (Literal[Mood.GOOD, Mood.ONE], st.sampled_from([Mood.GOOD, Mood.ONE])),
    (Mood, st.sampled_from(Mood)),
    (Level, st.sampled_from(Level)),
    (Corner, st.sampled_from(Corner)),
    (str | None, st.none() | clean),
    (Optional[int], st.none() | st.integers()),  # noqa: UP045 (the older spelling is another type)
    (str | int | None, st.one_of(st.none(), clean, st.integers())),
    (int | str, st.one_of(clean, st.integers())),
    (bool | int | float | str, st.one_of(st.booleans(), st.integers(), numbers, clean)),
    (list[str] | str, st.one_of(st.lists(clean), clean)),
    (Person | None, st.none() | people),
    (list[str], st.lists(clean)),
    (list[float], st.lists(numbers)),
    (dict[str, list[int]], st.dictionaries(clean, st.lists(st.integers()))),
    (dict[int, str], st.dictionaries(st.integers(), clean)),
    (tuple[int, str], st.tuples(st.integers(), clean)),
    (set[str], st.sets(clean)),
    (list[Person], st.lists(people, max_size=2)),
    (Person, people),
    (dt.datetime, st.datetimes() | st.datetimes(timezones=st.just(dt.timezone.utc))),
    (dt.date, st.dates()),
    (dt.timedelta, st.timedeltas()),
    (uuid.UUID, st.uuids()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (dt.date | None, st.none() | st.dates()),
    (dspy.Code, clean.map(lambda c: dspy.Code(code=c))),
    (dspy.Code["java"], clean.map(lambda c: dspy.Code["java"](code=c).code)),
    (dspy.Reasoning, clean.map(lambda c: dspy.Reasoning(content=c))),
    (dspy.ToolCalls, calls),
]  # fmt: skip
FIELDS = st.sampled_from(TYPES)


def signature_of(kinds: list[Any], prefix: str = "y") -> Any:
    outputs = {f"{prefix}{i}": (kind, dspy.OutputField()) for i, kind in enumerate(kinds)}
    return dspy.Signature({"x": (str, dspy.InputField()), **outputs}, "Do.")


@st.composite
def replies(draw: st.DrawFn) -> tuple[Any, dict[str, Any]]:
    """A signature of one to four output fields, and values for them; text is often among them, at any place."""
    fields = [draw(st.one_of(FIELDS, st.just(TYPES[0]))) for _ in range(draw(st.integers(1, 4)))]
    return signature_of([kind for kind, _ in fields]), {f"y{i}": draw(values) for i, (_, values) in enumerate(fields)}


def survives(signature: Any, values: dict[str, Any]) -> None:
    written = ADAPTER.format_assistant_message_content(signature, values)
    read = ADAPTER.parse(signature, written)
    for name, field in signature.output_fields.items():
        assert equal(read[name], values[name], field.annotation), (written, read[name], values[name])


def equal(a: Any, b: Any, annotation: Any) -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return a == b
    if isinstance(a, dspy.Code):
        return a.code == (b if isinstance(b, str) else b.code)
    if isinstance(a, dspy.Reasoning):
        return a.content == b.content
    return type(a) is type(b) and (
        same(a, b, annotation) if contains_nan(b) or isinstance(a, dspy.ToolCalls) else a == b
    )


def contains_nan(value: Any) -> bool:
    if isinstance(value, pydantic.BaseModel):
        value = dict(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(contains_nan(item) for item in value)
    return isinstance(value, float) and math.isnan(value)


@given(replies())
@settings(max_examples=250, deadline=None)
def test_every_value_survives(reply: tuple[Any, dict[str, Any]]) -> None:
    survives(*reply)


@pytest.mark.parametrize(("kind", "values"), TYPES, ids=lambda item: str(item)[:40])
def test_every_type_survives_alone_and_beside_text(kind: Any, values: st.SearchStrategy[Any]) -> None:
    @given(values, text, text)
    @settings(max_examples=15, deadline=None)
    def check(value: Any, before: str, after: str) -> None:
        survives(signature_of([kind]), {"y0": value})
        survives(signature_of([str, kind, str]), {"y0": before, "y1": value, "y2": after})

    check()


@pytest.mark.parametrize("imitation", IMITATIONS)
def test_text_that_imitates_a_format_survives_at_every_place(imitation: str) -> None:
    survives(signature_of([str]), {"y0": imitation})
    survives(signature_of([str, str, str]), {"y0": imitation, "y1": imitation, "y2": imitation})
    survives(signature_of([str | None]), {"y0": None})


@given(st.lists(FIELDS, min_size=1, max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_different_inputs_make_different_prompts(fields: list[Any], data: st.DataObject) -> None:
    inputs = {f"x{i}": (kind, dspy.InputField()) for i, (kind, _) in enumerate(fields)}
    signature = dspy.Signature({**inputs, "y": (str, dspy.OutputField())}, "Do.")
    one, two = ({f"x{i}": data.draw(v) for i, (_, v) in enumerate(fields)} for _ in range(2))
    first, second = (ADAPTER.format(signature, [], values)[-1]["content"] for values in (one, two))
    alike = all(same(one[n], two[n], kind) and repr(one[n]) == repr(two[n]) for n, (kind, _) in inputs.items())
    if not alike:
        # A set has no order, and Code is compared by its text: what is equal may print differently, never the reverse.
        assert first != second or all(equal(one[n], two[n], kind) for n, (kind, _) in inputs.items())


def test_the_prompt_is_the_task_and_the_values() -> None:
    signature = dspy.Signature("text, options: list[str] -> label: str, note")
    messages = ADAPTER.format(signature, [], {"text": "Where is it?", "options": ["card", "cash"]})
    assert [m["content"] for m in messages] == ["text, options -> label, note", 'Where is it?\n["card", "cash"]']
    reply = ADAPTER.format_assistant_message_content(signature, {"label": "card", "note": "First.\nSecond."})
    assert reply == "card\nFirst.\nSecond."


def test_a_declared_signature_names_its_task() -> None:
    class Triage(dspy.Signature):
        ticket: str = dspy.InputField()
        queue: str = dspy.OutputField()

    assert task_name(Triage) == "Triage"
    assert ADAPTER.format(Triage, [], {"ticket": "?"})[0] == {"role": "system", "content": "Triage"}


def test_a_call_without_any_input_still_has_a_turn_to_answer() -> None:
    signature = dspy.Signature({"x": (str | None, dspy.InputField()), "y": (str, dspy.OutputField())}, "Do.")
    assert [m["role"] for m in ADAPTER.format(signature, [], {})] == ["system", "user"]


def test_missing_and_empty_inputs_differ() -> None:
    signature = dspy.Signature(
        {n: (str | None, dspy.InputField()) for n in "ab"} | {"y": (str, dspy.OutputField())}, ""
    )
    prompts = [
        ADAPTER.format(signature, [], i)[-1]["content"]
        for i in ({"a": "v"}, {"a": "v", "b": ""}, {"a": "v", "b": None})
    ]
    assert len(set(prompts)) == 3


def test_a_set_is_written_in_one_order() -> None:
    signature = signature_of([set[str]])
    assert ADAPTER.format_assistant_message_content(signature, {"y0": {"c", "a", "b"}}) == '["a", "b", "c"]'


def test_lenient_reading_of_what_models_write() -> None:
    signature = dspy.Signature("x -> a: Literal['3', 'four'], b: bool, c: int")
    assert ADAPTER.parse(signature, "\n3\nTrue\n 7 \n") == {"a": "3", "b": True, "c": 7}
    assert ADAPTER.parse(signature, '"four"\nfalse\n7')["a"] == "four"
    assert ADAPTER.parse(signature_of([Mood]), "GOOD") == {"y0": Mood.GOOD}


def test_of_types_that_equal_each_other_each_is_read_its_own_way() -> None:
    class Inch(pydantic.BaseModel):
        length: float

    class Metre(pydantic.BaseModel):
        length: float

    assert Inch | Metre == Metre | Inch
    read = [ADAPTER.parse(signature_of([kind]), '{"length": 2}')["y0"] for kind in (Inch | Metre, Metre | Inch)]
    assert list(map(type, read)) == [Inch, Metre]  # pydantic takes the first that fits


def test_missing_lines_take_defaults_and_required_ones_are_an_error() -> None:
    signature = signature_of([str, int | None])
    assert ADAPTER.parse(signature, "only") == {"y0": "only", "y1": None}
    with pytest.raises(AdapterParseError):
        ADAPTER.parse(signature_of([str, int]), "only")
    with pytest.raises(AdapterParseError, match="Line 2 is not a value of field `y1`"):
        ADAPTER.parse(signature_of([str, int]), "one\nmany")


def test_it_runs_in_a_real_program() -> None:
    lm = prepared_lm("card\nIt was\n2 lines")
    with dspy.context(lm=lm, adapter=ADAPTER):
        answer = dspy.Predict("text -> label: Literal['card', 'cash'], why")(text="Which?")
    assert (answer.label, answer.why) == ("card", "It was\n2 lines")


def test_images_become_content_parts() -> None:
    signature = dspy.Signature("photo: dspy.Image, note -> y")
    content = ADAPTER.format(signature, [], {"photo": dspy.Image("https://example.com/a.png"), "note": "n"})[-1][
        "content"
    ]
    assert [part["type"] for part in content] == ["image_url", "text"]


def test_text_with_dspys_own_marker_stays_text() -> None:
    signature = dspy.Signature("a -> y")
    trap = f'{CUSTOM_TYPE_START_IDENTIFIER}[{{"type": "image_url"}}]<<CUSTOM-TYPE-END-IDENTIFIER>>'
    assert isinstance(ADAPTER.format(signature, [], {"a": trap})[-1]["content"], str)
