"""Values of a type, as an adapter writes them: the grammar takes each, and the adapter reads each back."""

import datetime
import json
import random
import sys
import uuid
from decimal import Decimal
from enum import Enum
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    UUID4,
    AwareDatetime,
    BaseModel,
    Field,
    FutureDate,
    HttpUrl,
    NaiveDatetime,
    StringConstraints,
)

import dspyc
from dspyc.errors import ConfigError
from dspyc.models.automaton import Automaton
from dspyc.signatures import expressions as e
from dspyc.signatures.grammar import reply_grammar
from dspyc.signatures.json_numbers import number

CHAT, JSON, TERSE = dspy.ChatAdapter(), dspy.JSONAdapter(), dspyc.TerseAdapter()
ADAPTERS = [CHAT, JSON, TERSE]
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


class Grammar:
    """The replies to a signature with one output `x` of a type."""

    def __init__(self, annotation: Any, adapter: dspy.Adapter) -> None:
        self.adapter = adapter
        self.signature = dspy.Signature({"q": (str, dspy.InputField()), "x": (annotation, dspy.OutputField())})
        found = reply_grammar(self.signature, adapter)
        assert found is not None
        self.grammar = json.loads(found)
        self.automaton = Automaton(self.grammar)

    def takes(self, text: str) -> bool:
        return self.automaton.ends(self.automaton.run(self.automaton.start, text.encode()))

    def written(self, value: Any) -> str:
        return self.adapter.format_assistant_message_content(self.signature, {"x": value})

    def read(self, text: str) -> Any:
        return self.adapter.parse(self.signature, text)["x"]

    def check(self, value: Any) -> None:
        """The value's own reply is allowed, and read as the value."""
        text = self.written(value)
        assert self.takes(text), text
        assert self.read(text) == value

    def check_random(self, count: int = 60) -> None:
        """Whatever the grammar allows is read."""
        draw = random.Random(1)
        for _ in range(count):
            text = "".join(e.sample(part, self.grammar["rules"], draw) for _, part in self.grammar["fields"])
            self.read(text)


class When(BaseModel):
    date: datetime.date
    at: datetime.datetime
    aware: AwareDatetime
    naive: NaiveDatetime
    clock: datetime.time
    took: datetime.timedelta


LONGEST = datetime.timedelta(days=995_000_000)
zones = st.none() | st.integers(-1439, 1439).map(lambda m: datetime.timezone(datetime.timedelta(minutes=m)))
whens = st.builds(
    When,
    date=st.dates(),
    at=st.datetimes(timezones=zones),
    aware=st.datetimes(timezones=zones.filter(bool)),
    naive=st.datetimes(),
    clock=st.times(timezones=zones),
    took=st.timedeltas(-LONGEST, LONGEST),
)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_day_of_a_leap_year_and_no_other_is_a_date(adapter):
    grammar = Grammar(datetime.date, adapter)
    text = grammar.written(datetime.date(2024, 1, 1))
    for year in (1, 999, 1900, 2000, 2023, 2024):
        for month in range(14):
            for day in range(33):
                written = f"{year:04}-{month:02}-{day:02}"
                try:
                    datetime.date.fromisoformat(written)
                except ValueError:
                    assert not grammar.takes(text.replace("2024-01-01", written)), written
                else:
                    assert grammar.takes(text.replace("2024-01-01", written)), written


@pytest.mark.parametrize("adapter", ADAPTERS)
@given(when=whens)
@PROPERTY
def test_dates_and_times(adapter, when):
    _grammar(When, adapter).check(when)
    _grammar(datetime.datetime, adapter).check(when.at)


_known: dict[Any, Grammar] = {}


def _grammar(annotation: Any, adapter: dspy.Adapter) -> Grammar:
    key = str(annotation), type(adapter)
    if key not in _known:
        _known[key] = Grammar(annotation, adapter)
    return _known[key]


class Part(BaseModel):
    of: Annotated[float, Field(ge=0, le=1)]
    inside: Annotated[float, Field(gt=0, lt=1)]
    below: Annotated[float, Field(lt=5)]
    above: Annotated[float, Field(gt=-2.5)]
    between: Annotated[float, Field(ge=0.25, le=0.75)]
    money: Decimal
    positive: Annotated[Decimal, Field(ge=0)]
    id: uuid.UUID
    id4: UUID4


def inner(*, low: float | None = None, high: float | None = None) -> st.SearchStrategy[float]:
    """Floats that are no closer than 1e-12 to a bound, and none of the last power of ten on either side."""
    least, most = (end if bound is None else bound for bound, end in ((low, -1.6e308), (high, 1.6e308)))
    return (
        st.floats(least, most)
        .filter(lambda n: n == 0 or abs(n) >= 1e-307)
        .filter(
            lambda n: (
                all(bound is None or n == bound or abs(n - bound) > 1e-12 for bound in (low, high)) and str(n) != "-0.0"
            )
        )
    )


decimals = st.decimals(-(10**9), 10**9, allow_nan=False, places=4)
parts = st.builds(
    Part,
    of=inner(low=0, high=1) | st.sampled_from([1e-05, 2.5e-300]),
    inside=inner(low=0.0, high=1.0).filter(lambda n: 0 < n < 1),
    below=inner(high=5).filter(lambda n: n < 5),
    above=inner(low=-2.5).filter(lambda n: n > -2.5),
    between=inner(low=0.25, high=0.75),
    money=decimals,
    positive=decimals.map(abs),
    id=st.uuids() | st.integers(0, 2**128 - 1).map(lambda n: uuid.UUID(int=n)),
    id4=st.uuids(version=4),
)


@pytest.mark.parametrize("adapter", ADAPTERS)
@given(part=parts)
@PROPERTY
def test_numbers_between_bounds_decimals_and_ids(adapter, part):
    _grammar(Part, adapter).check(part)
    _grammar(Decimal, adapter).check(part.money)
    _grammar(uuid.UUID, adapter).check(part.id)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("annotation", [When, Part, list[HttpUrl], HttpUrl])
def test_whatever_their_grammars_allow_is_read(annotation, adapter):
    Grammar(annotation, adapter).check_random()


@given(
    st.tuples(st.booleans(), st.booleans()), st.lists(st.decimals(-3, 3, places=2), min_size=2, max_size=2, unique=True)
)
@PROPERTY
def test_a_number_lies_between_its_bounds_as_a_float_does(open_, bounds):
    low, high = map(float, sorted(bounds))
    expression = number(low, high, low_open=open_[0], high_open=open_[1])
    automaton = Automaton({"fields": [["x", expression]], "rules": {}})
    draw = random.Random(0)
    for value in [float(e.sample(expression, {}, draw)) for _ in range(20)] + [draw.uniform(-3, 3) for _ in range(20)]:
        inside = low < value < high or (value == low and not open_[0]) or (value == high and not open_[1])
        assert automaton.ends(automaton.run(automaton.start, repr(value).encode())) == inside or "-0.0" in repr(value)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_addresses_as_they_are_on_the_web(adapter):
    for url in (
        "https://example.com/",
        "http://localhost:8080/",
        "https://my-site.co.uk/a-b/index.html?q=1&r=a%20b#top",
        "http://127.0.0.1:11434/v1/",
        "https://en.wikipedia.org/wiki/Ruby_(language)",
    ):
        Grammar(HttpUrl, adapter).check(HttpUrl(url))


PATTERNS = {
    r"^\S+@\S+$": ["a@b", 'é"\\@x.org'],
    r"^/[^/]+/$": ["/a/", '/"é b"/', "/\n/"],
    r"^[A-Z].$": ['A"', "Z\\", "Bé"],
    r"^.*[0-9].{10}$": ["0123456789x", '7"""""\\\\\\\\\\'],
    r"[0-9]": ["a1b", "7", '"3'],
    r"^(red|blue)": ["red", "blues"],
    r"(^x|y)$": ["x", "my"],
    r'^"\w+"$': ['"q"'],
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_of_a_pattern(pattern, adapter):
    grammar = Grammar(list[Annotated[str, Field(pattern=pattern)]], adapter)
    for text in PATTERNS[pattern]:
        grammar.check([text, text])
    grammar.check_random()
    assert not grammar.takes(grammar.written(["%"]))


@pytest.mark.parametrize(
    ("constraints", "taken", "refused"),
    [
        ({"pattern": "^[a-z_]+$", "max_length": 6}, ["a", "abc_ef"], ["", "abcdefg", "A"]),
        ({"pattern": "^[a-z]+$", "min_length": 8}, ["abcdefgh", "abcdefghij"], ["abcdefg", "a"]),
        ({"pattern": r"^\d{3}-\w*$", "min_length": 5, "max_length": 6}, ["123-a", "123-ab"], ["123-", "123-abc"]),
        ({"pattern": "^(ab)*$", "min_length": 3, "max_length": 7}, ["abab", "ababab"], ["ab", "abababab"]),
        ({"pattern": '["x]', "min_length": 1}, ["x", '"'], ["y"]),
        ({"strip_whitespace": True, "min_length": 3}, ["abc", "a c"], ["ab", " ab", "a  "]),
    ],
)
def test_patterns_with_lengths(constraints, taken, refused):
    grammar = Grammar(list[Annotated[str, StringConstraints(**constraints)]], JSON)
    assert [text for text in [*taken, *refused] if grammar.takes(grammar.written([text]))] == taken
    grammar.check_random()


@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        (list[Annotated[str, Field(pattern="^[a-z]+@[a-z]+$", max_length=9)]], "length together with a pattern"),
        (list[Annotated[str, Field(pattern="(?i)^a$")]], "flags"),
        (list[Annotated[str, Field(pattern="^a$", min_length=3)]], "minLength"),
        (list[Annotated[datetime.date, Field(ge=datetime.date(2020, 1, 1))]], "ge: 2020-01-01"),
        (list[FutureDate], "now_op"),
        (IPv6Address, "ipv6"),
        (list[Annotated[Decimal, Field(max_digits=5)]], "max_digits"),
        (list[Annotated[float, Field(gt=1, lt=1)]], "numbers from 1"),
    ],
)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_stays_out_is_named(annotation, named, adapter):
    with pytest.raises(ConfigError, match="Output `x`") as caught:
        Grammar(annotation, adapter)
    assert named in str(caught.value)


class Color(Enum):
    RED = "red"
    GREEN = "dark green"
    INT = 3


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("annotation", [Color | None, Color | list[int], Color | int | None])
def test_members_of_an_enum_in_a_union_are_written_as_the_union_reads_them(annotation, adapter):
    grammar = Grammar(annotation, adapter)
    for value in Color:
        text = grammar.written(value)
        assert grammar.takes(text), text
        assert grammar.read(text) in (value, value.value)
    grammar.check_random()


def test_names_of_members_are_no_values_of_a_union():
    grammar = Grammar(Color | None, CHAT)
    assert not grammar.takes(grammar.written("RED"))
    assert grammar.takes(grammar.written(3))


class Pair(Enum):
    ONE = (1, 2)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_members_that_no_union_reads_are_named(adapter):
    with pytest.raises(ConfigError, match="Output `x`"):
        Grammar(Pair | None, adapter)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("form", ["option number {}", "{}"])
def test_many_options_cost_as_much_as_so_many_times_one(adapter, form):
    def calls(number):
        """How often a function is called for so many options."""
        made, events = Literal[tuple(form.format(n) for n in range(number))], []
        sys.setprofile(lambda frame, event, argument: events.append(event))
        try:
            grammar = Grammar(made, adapter)
        finally:
            sys.setprofile(None)
        grammar.check(form.format(number - 1))
        return events.count("call")

    assert calls(400) < 3 * calls(200)  # four times as often where each is read among all others


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_options_that_look_alike_are_told_apart_or_refused(adapter):
    Grammar(Literal["", "x"], adapter).check("")
    Grammar(Literal["", "x"], adapter).check_random()
    for options in (("nan", "inf"), ("10", "1e1"), ("a", "'a'"), (True, "x"), ("a", 1, None)):
        grammar = Grammar(Literal[options], adapter)
        for option in options:
            grammar.check(option)
    if adapter is CHAT:  # which writes both alike
        with pytest.raises(ConfigError, match="1, which ChatAdapter cannot read back"):
            Grammar(Literal["1", 1], adapter)
    else:
        for option in ("1", 1):
            grammar = Grammar(Literal["1", 1], adapter)
            assert type(grammar.read(grammar.written(option))) is type(option)
            grammar.check(option)


LINES = [
    "é", "5 apples", "123abc", 'say "hi"', "- item", "10%", "5'10\"", "2024-01-05", "1.2.3", "24h", "b", "set", "日本語",
    "1,000 people", "None of these", "True, but late", "truely", "note (x)", "\\alpha", "C:\\x", "# x", "x\ty",
    "(sic)", "a [b] {c}", "'tis",
]  # fmt: skip
NOT_IN_CHAT = ["(sic)", "a [b] {c}", "'tis"]  # what DSPy looks for JSON or a literal in


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("annotation", [int | str, str | list[str], str | bool | float, Any])
def test_text_beside_other_types(annotation, adapter):
    grammar = _grammar(annotation, adapter)
    for text in LINES:
        if adapter is TERSE or text not in NOT_IN_CHAT:
            grammar.check(text)
    for text in ["a\nb", "say:\n\n  5 apples\n"] if adapter is not CHAT else ["a\nb", "say:\n\n  5 apples"]:
        grammar.check(text)
    grammar.check_random()


PIECES = st.sampled_from(
    [
        *"019+-.,()#'\"ejxobs_ \\:/%`~é\n",
        "None",
        "True",
        "false",
        "null",
        "NaN",
        "Infinity",
        "set",
        "()",
        "0x",
        "5j",
        "a",
        " if ",
    ]
)


@pytest.mark.parametrize("adapter", ADAPTERS)
@given(text=st.lists(PIECES, max_size=6).map("".join))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_text_that_could_be_a_value_is_allowed_only_where_it_is_read_as_text(adapter, text):
    grammar = _grammar(str | list[str], adapter)
    reply = grammar.written(text)
    if adapter is CHAT and text.startswith('"'):
        return  # in quotes it is another text
    if grammar.takes(reply):
        assert grammar.read(reply) == (text.strip() if adapter is CHAT else text)
    elif adapter is TERSE:
        assert not text.strip()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text('aé"\\ []{}\n', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab"', max_size=2), inner, max_size=2),
    max_leaves=8,
)


@pytest.mark.parametrize("adapter", ADAPTERS)
@given(value=st.lists(ANYTHING, max_size=2))
@PROPERTY
def test_lists_and_dicts_of_anything(adapter, value):
    _grammar(list, adapter).check(value)
    _grammar(dict, adapter).check({"value": value})


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_anything_nests_twelve_deep(adapter):
    _grammar(list, adapter).check([[[[[[[[[[[[1]]]]]]]]]]]])


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("annotation", [Path, Path | None, Path | int, bytes])
def test_kinds_of_text_are_read_as_text(annotation, adapter):
    grammar = Grammar(annotation, adapter)
    grammar.check(b"a b" if annotation is bytes else Path("a/b c.txt"))
    grammar.check_random()


def test_a_text_with_bounds_beside_none_stands_in_quotes_and_is_refused_where_quotes_do_not_help():
    annotation = Annotated[str, Field(pattern="^[0-9a-z]+$")] | None
    for adapter in (CHAT, TERSE):
        Grammar(annotation, adapter).check_random()
    with pytest.raises(ConfigError, match="a pattern or a length beside other types"):
        Grammar(annotation, JSON)
