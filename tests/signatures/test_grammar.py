import json
import re
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator

import dspyc
from dspyc.errors import ConfigError
from dspyc.models.automaton import DEAD, Automaton
from dspyc.signatures import expressions as e
from dspyc.signatures.grammar import reply_grammar
from dspyc.signatures.patterns import whole

CHAT, JSON, TERSE = dspy.ChatAdapter(), dspy.JSONAdapter(), dspyc.TerseAdapter()


def matches(expression: Any, *texts: str) -> list[str]:
    """Those of the texts that an expression has whole."""
    automaton = Automaton({"fields": [["x", expression]], "rules": e.JSON_RULES})
    return [text for text in texts if automaton.ends(automaton.run(automaton.start, text.encode()))]


def allows(annotation: Any, adapter: dspy.Adapter, *texts: str) -> list[str]:
    """Those of the texts that are replies to a signature with one output of that type."""
    signature = dspy.Signature({"q": (str, dspy.InputField()), "x": (annotation, dspy.OutputField())})
    grammar = reply_grammar(signature, adapter)
    assert grammar is not None
    automaton = Automaton(json.loads(grammar))
    found = [text for text in texts if automaton.ends(automaton.run(automaton.start, text.encode()))]
    for text in found:
        adapter.parse(signature, text)
    return found


def chat(value: str) -> str:
    return f"[[ ## x ## ]]\n{value}\n\n[[ ## completed ## ]]\n"


@given(st.integers(-1200, 1200), st.integers(-1200, 1200))
@settings(max_examples=40, deadline=None)
def test_whole_numbers_between_bounds_and_no_others(one, other):
    low, high = sorted((one, other))
    tried = [*range(low - 3, low + 3), *range(high - 2, high + 4), 0, (low + high) // 2, 10, 99, 100, 1000, -10, -100]
    expected = [str(n) for n in tried if low <= n <= high]
    assert matches(e.integer(low, high), *map(str, tried)) == expected


@pytest.mark.parametrize(
    "regex", [r"[A-Z]{2}-\d+", r"a|bc*|d?", r"[^x-z]{1,3}", r"(\w+)@(a|b)\.com", r"v\d(\.\d){0,2}"]
)
def test_patterns_match_what_python_matches(regex):
    tried = ["AB-1", "AB-", "a", "bccc", "d", "", "xx", "abc", "ab1@a.com", "@b.com", "v1", "v1.2.3", "v1.2.3.4", "qq"]
    assert matches(whole(regex), *tried) == [text for text in tried if re.fullmatch(regex, text)]


@pytest.mark.parametrize("regex", [r"(a)\1", r"(?=a)b", r"a\bb"])
def test_patterns_beyond_a_grammar_are_refused(regex):
    with pytest.raises(e.UnsupportedError):
        whole(regex)


class Colour(Enum):
    RED = "red"
    DEEP = "deep blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@pytest.mark.parametrize(
    ("annotation", "read", "refused"),
    [
        (bool, ["True", "false", "Yes", "no", "1"], ["maybe", "", "Truer"]),
        (int, ["0", "-12", "+3", "4.0", "007"], ["4.5", "x", "-", ""]),
        (float, ["0.5", ".5", "5.", "-1e-3", "7"], ["1.2.3", "e5", "one"]),
        (Literal["card", "card payment", 3], ["card", "card payment", '"card"', "3"], ["Card", "cardpayment", "4"]),
        (Colour, ["red", "RED", "deep blue"], ["blue", "Red"]),
        (int | None, ["5", "None", "null"], ["nothing"]),
        (int | str, ["5", "some words", '"[quoted]"'], ["[1]", "{"]),
        (list[int], ["[]", "[1, 2]"], ["[1,2]", "1", "[1, ]"]),
        (dict[int, bool], ["{}", '{"3": true}'], ['{"a": true}', "{3: true}"]),
    ],
)
def test_values_are_what_dspy_reads(annotation, read, refused):
    assert allows(annotation, CHAT, *map(chat, [*read, *refused])) == list(map(chat, read))


def test_members_that_only_their_names_bring_back_are_written_by_name():
    assert allows(Level, CHAT, chat("LOW"), chat("1")) == [chat("LOW")]
    assert allows(Level, JSON, '{\n  "x": 1\n}', '{\n  "x": "HIGH"\n}') == ['{\n  "x": 1\n}', '{\n  "x": "HIGH"\n}']


def test_text_ends_at_a_marker_that_begins_a_line_and_nowhere_else():
    texts = ["one [[ ## two", "matrix\n[[1, 2]]\n[[ #3", "a\n\nb", ""]
    assert allows(str, CHAT, *map(chat, texts)) == list(map(chat, texts))
    cut = "[[ ## x ## ]]\na\n  [[ ## completed ## ]]\n"  # DSPy sees a marker here and misreads what follows
    other = "[[ ## x ## ]]\na\n[[ ## y ## ]]\nb"
    assert allows(str, CHAT, cut, other, "[[ ## x ## ]]\na") == ["[[ ## x ## ]]\na"]


def test_terse_values_are_lines_and_a_last_text_runs_on():
    assert allows(str, TERSE, "a\nb", " a", "") == ["a\nb"]
    signature = dspy.Signature("q -> x: int, y: str")
    automaton = Automaton(json.loads(reply_grammar(signature, TERSE)))
    assert automaton.run(automaton.start, b"3\nwords\nmore") != DEAD
    assert automaton.run(automaton.start, b"\n") == DEAD


class Node(BaseModel):
    name: str
    children: list["Node"] = []


class Ticket(BaseModel):
    model_config = {"populate_by_name": True}
    level: Annotated[int, Field(ge=1, le=3)]
    kind: Literal["a", "b"] = Field(alias="Kind")
    root: Node | None = None


def test_models_are_written_whole_and_in_order():
    whole = '{"level": 2, "kind": "a", "root": {"name": "é", "children": [{"name": "", "children": []}]}}'
    short = '{"level": 2, "kind": "a"}'
    outside = whole.replace("2", "4")
    assert allows(Ticket, TERSE, whole, short, outside) == [whole]
    assert allows(Ticket, CHAT, chat(whole), chat(whole.replace("kind", "Kind"))) == [chat(whole)]
    leaf = {"name": "b", "children": []}
    pretty = json.dumps({"x": {"name": "a", "children": [leaf]}}, indent=2)
    assert allows(Node, JSON, pretty, '{"x": {"name": "a", "children": []}}') == [pretty]


class Even(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def is_even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("odd")
        return n


def test_a_validator_of_the_users_is_left_to_the_answer():
    assert reply_grammar(dspy.Signature({"q": (str, dspy.InputField()), "x": (Even, dspy.OutputField())}), CHAT)


@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        (dspy.Image, "Image"),
        (list[dspy.Image], "Image"),
        (list[Annotated[int, Field(multiple_of=3)]], "multipleOf"),
        (list[Annotated[str, Field(pattern=r"a\bb")]], "pattern"),
        (Literal["a\nb"], "a\\nb"),
    ],
)
def test_what_has_no_grammar_is_named_with_its_field(annotation, named):
    signature = dspy.Signature({"q": (str, dspy.InputField()), "answer": (annotation, dspy.OutputField())})
    with pytest.raises(ConfigError, match="Output `answer`") as caught:
        reply_grammar(signature, CHAT)
    assert named in str(caught.value)
    assert "constrained=False" in caught.value.hint


class Upper(dspy.ChatAdapter):
    def parse(self, signature, completion):
        return super().parse(signature, completion.lower())


class Polite(dspy.ChatAdapter):
    def format_task_description(self, signature):
        return "Please. " + super().format_task_description(signature)


def test_adapters_of_another_format_have_no_grammar():
    signature = dspy.Signature("q -> a: int")
    assert reply_grammar(signature, dspy.XMLAdapter()) is None
    assert reply_grammar(signature, Upper()) is None
    assert reply_grammar(signature, Polite()) == reply_grammar(signature, CHAT)
    assert reply_grammar(signature, BAMLAdapter()) == reply_grammar(signature, JSON)


def test_a_grammar_is_made_once():
    signature = dspy.Signature("q -> a: list[str]")
    assert reply_grammar(signature, CHAT) is reply_grammar(signature, dspy.ChatAdapter())
