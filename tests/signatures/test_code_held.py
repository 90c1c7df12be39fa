"""What code holds: each way in which it can differ gives another fingerprint, in a metric and in a program."""

import ast
import functools
import operator
import os
import re
import string
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import dspy
import pytest
from pydantic import BaseModel

import dspyc
from dspyc.evaluation import metric_fingerprint
from dspyc.signatures import adapt, copy_program, program_fingerprint

from .programs import Spicy
from .test_code import Program
from .test_first_seen import RUNS


@dataclass
class Config:
    limit: int


class Settings(BaseModel):
    limit: int


class Invoice(BaseModel):
    total: float


class Receipt(BaseModel):
    total: str


class F1:
    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def __call__(self, example: Any, prediction: Any) -> bool:
        return bool(prediction.score > self._threshold)


class Other(F1):
    def __call__(self, example: Any, prediction: Any) -> bool:
        return bool(prediction.score >= self._threshold)


class Slots:
    __slots__ = ("limit",)

    def __init__(self, limit: int) -> None:
        self.limit = limit


class Node:
    def __init__(self, value: int, after: Any = None) -> None:
        self.value, self.after = value, after


class Judge(dspy.Module):
    """Its sub-module is compiled, so DSPy names none of its predictors."""

    def __init__(self, signature: str) -> None:
        super().__init__()
        self.inner = dspy.ChainOfThought(signature)
        self.inner._compiled = True


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "patterns": (re.compile("a"), re.compile("b")),
    "flags of patterns": (re.compile("a"), re.compile("a", re.IGNORECASE)),
    "ends of patterns": (re.compile("a" * 300 + "b"), re.compile("a" * 300 + "c")),
    "bytes": (b"a", b"b"),
    "decimals": (Decimal("0.1"), Decimal("0.2")),
    "dates": (date(2024, 1, 1), date(2025, 1, 1)),
    "data classes": (Config(1), Config(2)),
    "pydantic models": (Settings(limit=1), Settings(limit=2)),
    "examples": (dspy.Example(a=1), dspy.Example(a=2)),
    "objects": (F1(0.5), F1(0.7)),
    "classes of objects": (F1(0.5), Other(0.5)),
    "slots": (Slots(1), Slots(2)),
    "objects in objects": (Node(1, Node(2)), Node(1, Node(3))),
    "classes": (Invoice, Receipt),
    "classes in types": (list[Invoice], list[Receipt]),
    "builtins": (str.lower, str.upper),
    "methods of builtin objects": (re.compile("a").search, re.compile("b").search),
    "operators": (operator.itemgetter("a"), operator.itemgetter("b")),
    "compiled sub-modules": (Judge("q -> a"), Judge("q -> b")),
    "functions within DSPy's": (
        dspy.BestOfN(dspy.Predict("q -> a"), 2, lambda args, prediction: 1.0, 0.5),
        dspy.BestOfN(dspy.Predict("q -> a"), 2, lambda args, prediction: 2.0, 0.5),
    ),
}


def in_closure(held: Any) -> Callable[..., bool]:
    return lambda example, prediction: bool(held)


def read(example: Any, prediction: Any) -> bool:
    return bool(HELD)  # type: ignore[name-defined]  # noqa: F821


def in_module(held: Any) -> Callable[..., bool]:
    function = types.FunctionType(read.__code__, {"HELD": held, "__name__": "elsewhere"})
    function.__module__ = held.__module__ if isinstance(held, type) else "elsewhere"  # where a class is seen
    return function


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_values_that_differ_are_seen_wherever_code_holds_them(pair: tuple[Any, Any]) -> None:
    for hold in (in_closure, in_module, functools.partial(functools.partial, read)):
        one, same, other = (metric_fingerprint(hold(value)) for value in (pair[0], *pair))
        assert one == same != other
    one, same, other = (program_fingerprint(Program(value)) for value in (pair[0], *pair))
    assert one == same != other


def everywhere() -> list[str]:
    """The fingerprints of programs that hold each of these values, and of those that runs change."""
    programs = [Program(value) for pair in DIFFERENT.values() for value in pair]
    return [program_fingerprint(program) for program in (*programs, *(make() for make, _ in RUNS.values()))]


def test_they_are_the_same_in_every_process() -> None:
    there = subprocess.run(
        [sys.executable, "-c", "from tests.signatures.test_code_held import everywhere; print(everywhere())"],
        env={**os.environ, "PYTHONHASHSEED": "2"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert ast.literal_eval(there) == everywhere()


class Private(Program):
    def __init__(self, k: int) -> None:
        super().__init__()
        self._k = k


def test_the_code_of_a_users_predictor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = program_fingerprint(Spicy("q -> a"))
    monkeypatch.setattr(Spicy, "flavour", "sweet")
    assert program_fingerprint(Spicy("q -> a")) != before


class Careful(dspy.Predict):
    """A predictor that is set to something, and counts its calls."""

    def __init__(self, signature: str, threshold: int) -> None:
        super().__init__(signature)
        self.threshold, self.calls = threshold, 0

    def forward(self, **kwargs: Any) -> Any:
        self.calls += 1
        return super().forward(**kwargs)


def test_what_a_users_predictor_is_set_to_counts_and_what_it_counts_does_not() -> None:
    program = Careful("q -> a", 3)
    before = program_fingerprint(program)
    assert program_fingerprint(Careful("q -> a", 3)) == before
    assert program_fingerprint(Careful("q -> a", 4)) != before
    program.calls = 7  # as a run leaves it
    assert program_fingerprint(program) == program_fingerprint(copy_program(program)) == before
    program.threshold = 4
    assert program_fingerprint(program) == program_fingerprint(Careful("q -> a", 4))


class Repairing(dspy.Predict):
    """A predictor that has another repair what it wrote."""

    def __init__(self, signature: str, repair: dspy.Module) -> None:
        super().__init__(signature)
        self.repair = repair


def test_modules_in_a_users_predictor_count() -> None:
    def repairing(**changes: Any) -> Any:
        made = Repairing("q -> a", dspy.Predict("a -> b"))
        for name, value in changes.items():
            setattr(made.repair, name, value)
        return made

    programs = [
        repairing,
        lambda: repairing(demos=[{"a": "1", "b": "2"}]),
        lambda: repairing(lm=dspy.LM("a/b")),
        lambda: Repairing("q -> a", dspy.Predict("a -> c")),
        lambda: Repairing("q -> a", dspy.ChainOfThought("a -> b")),
        lambda: Repairing("q -> a", dspy.ChainOfThought("a -> c")),
    ]
    assert len({program_fingerprint(make()) for make in programs}) == len(programs)
    assert len({metric_fingerprint(in_closure(make())) for make in programs}) == len(programs)
    for make in programs:
        program = make()
        assert program_fingerprint(program) == program_fingerprint(make()) == program_fingerprint(copy_program(program))
    asked = repairing()
    asked.repair.lm = dspyc.ScriptedLM(lambda inputs: {"b": "2"}, model="a/b")
    before = program_fingerprint(asked)
    asked.repair(a="1")
    assert program_fingerprint(asked) == before


def test_a_judge_counts_with_its_own_adapter_and_settings() -> None:
    class Judge:
        def __init__(self, predictor: dspy.Predict) -> None:
            self.predictor = predictor

        def __call__(self, example: Any, prediction: Any) -> bool:
            return bool(self.predictor(q=prediction.a).a)

    def judged(adapter: dspy.Adapter | None = None, threshold: int = 1) -> str:
        predictor = Careful("q -> a: bool", threshold)
        if adapter is not None:
            adapt(predictor, adapter)
        return metric_fingerprint(Judge(predictor))

    assert judged() == judged()
    assert judged(dspy.ChatAdapter()) == judged(dspy.ChatAdapter())
    assert len({judged(), judged(dspy.ChatAdapter()), judged(dspy.JSONAdapter()), judged(threshold=2)}) == 4


def test_private_attributes_count_where_they_are_plain() -> None:
    assert metric_fingerprint(F1(0.5)) != metric_fingerprint(F1(0.7))
    assert metric_fingerprint(Slots(1).__init__) != metric_fingerprint(Slots(2).__init__)
    assert program_fingerprint(Private(3)) != program_fingerprint(Private(5))


def test_of_a_librarys_object_only_what_is_public_counts() -> None:
    made = [string.Formatter() for _ in range(3)]
    for number, formatter in enumerate(made):
        formatter._id, formatter.limit = number, number // 2  # type: ignore[attr-defined]
    prints = [metric_fingerprint(in_closure(formatter.format)) for formatter in made]
    assert prints[0] == prints[1] != prints[2]


def test_objects_that_hold_each_other_and_long_chains_end() -> None:
    one, other = Node(1), Node(2)
    one.after, other.after = [other], {"next": one}
    assert metric_fingerprint(in_closure(one)) != metric_fingerprint(in_closure(other))
    chain = Node(0)
    for number in range(5000):
        chain = Node(number, chain)
    assert program_fingerprint(Program(chain)) != program_fingerprint(Program(one))


def field_match(example: Any, prediction: Any, key: str = "") -> bool:
    return bool(example[key] == prediction[key])


class Named:
    def __init__(self, key: Any) -> None:
        self.key = key

    def __call__(self, example: Any, prediction: Any) -> bool:
        return field_match(example, prediction, self.key)


def lookup(code: Callable[[str], str]) -> dspy.ReAct:
    def api_lookup(city: str) -> str:
        return code(city)

    return dspy.ReAct("q -> a", tools=[api_lookup])


def test_what_only_has_a_name_like_a_secrets_counts() -> None:
    prints = [metric_fingerprint(functools.partial(field_match, key=key)) for key in ("intent", "urgency")]
    prints += [metric_fingerprint(Named(key)) for key in ("intent", "urgency", 1, ["intent"], Named)]
    prints += [program_fingerprint(lookup(code)) for code in (str.lower, str.upper)]
    prints += [program_fingerprint(Program({"api_version": version})) for version in ("v1", "v2")]
    assert len(set(prints)) == len(prints)


SECRETS: dict[str, tuple[Any, Any]] = {
    "api_key": ("sk-canary-1234567890", "sk-canary-0987654321"),
    "token": (b"canary1234567890", b"canary0987654321"),
    "extra_headers": ({"X-User": "Bearer canary1234567890"}, {"X-User": "Bearer canary0987654321"}),
    "api_base": ("http://one", "localhost:8000"),
}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_and_addresses_do_not_count(name: str) -> None:
    one, other = SECRETS[name]
    assert program_fingerprint(Program({name: one})) == program_fingerprint(Program({name: other}))
    made = [functools.partial(field_match, **{name: value}) for value in (one, other)]
    assert metric_fingerprint(made[0]) == metric_fingerprint(made[1])
