"""What changes while a program runs: its fingerprint stays, in its copies too, and what its user sets is seen."""

import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from dspyc.evaluation import metric_fingerprint
from dspyc.signatures import copy_program, program_fingerprint

from .test_code import Program


class Search:
    found = 0

    def __init__(self, k: int = 3, lock: Any = None) -> None:
        self.k, self.lock = k, lock
        self.last_call: str | None = None
        self.cache: dict[str, Any] = {}
        self._calls = 0
        self._client: Any = None

    def query(self, city: str) -> str:
        self.last_call, self._client = city, threading.Lock()
        self._calls += 1
        type(self).found += 1
        self.cache[city] = [city, Search]
        return self.index[0]

    @functools.cached_property
    def index(self) -> list[str]:
        return ["sunny"]


class Slotted:
    __slots__ = ("__weakref__", "calls")

    def __init__(self) -> None:
        self.calls = 0

    def query(self, city: str) -> str:
        self.calls += 1
        return city


class Caching(Program):
    cache: dict[str, Any] = {}  # noqa: RUF012 (shared by all objects, as people write it)

    def forward(self, question: str) -> Any:
        self.cache[question] = self
        self.asked = question
        return question


def remembering(question: str, seen: list[str] = []) -> str:  # noqa: B006
    seen.append(question)
    return question


def counting() -> Callable[[str], str]:
    count, memory = 0, set[str]()

    def tool(question: str) -> str:
        nonlocal count
        count += 1
        memory.add(question)
        return question

    return tool


def tried() -> dspy.Module:
    def reward(args: Any, prediction: Any) -> float:
        raise ValueError

    return dspy.BestOfN(dspy.Predict("q -> a"), 3, reward, 0.5, fail_count=9)


def ask(program: dspy.Module) -> None:
    with dspy.context(lm=dspy.utils.DummyLM([{"a": "x"}] * 9), trace=[]):
        program(q="?")


RUNS: dict[str, tuple[Callable[[], dspy.Module], Callable[[Any], Any]]] = {
    "a class": (Caching, lambda program: program(question="?")),
    "a tool's object": (lambda: Program(tool=Search().query), lambda program: program.tool("Rome")),
    "an object with a lock": (lambda: Program(tool=Search(lock=threading.Lock()).query), lambda p: p.tool("Rome")),
    "an object": (lambda: Program(tool=Search()), lambda program: program.tool.query("Rome")),
    "slots": (lambda: Program(tool=Slotted().query), lambda program: program.tool("Rome")),
    "a default": (lambda: Program(tool=remembering), lambda program: program.tool("Rome")),
    "a closure": (lambda: Program(tool=counting()), lambda program: program.tool("Rome")),
    "a partial": (lambda: Program(tool=functools.partial(remembering, seen=[])), lambda program: program.tool("Rome")),
    "DSPy's counter": (tried, ask),
}


@pytest.mark.parametrize("case", RUNS.values(), ids=RUNS)
def test_a_run_does_not_change_a_program(case: tuple[Callable[[], dspy.Module], Callable[[Any], Any]]) -> None:
    program = case[0]()
    before = program_fingerprint(program)
    early = copy_program(program)
    case[1](program)
    assert program_fingerprint(program) == program_fingerprint(early) == before
    assert program_fingerprint(copy_program(program)) == before  # as a teacher is, or a candidate


def test_what_a_user_sets_is_seen_before_and_after_a_run() -> None:
    search = Search()
    program = Program(tool=search.query)
    prints = [program_fingerprint(program), metric_fingerprint(search.query)]
    search.k = 4
    prints += [program_fingerprint(program), metric_fingerprint(search.query)]
    search.query("Rome")
    search.k = 5
    prints += [program_fingerprint(program), metric_fingerprint(search.query)]
    search.cache = {"Rome": "rainy"}  # another one
    prints += [program_fingerprint(program), metric_fingerprint(search.query)]
    prints += [program_fingerprint(Program(tool=Search(6).query))]
    assert len(set(prints)) == len(prints)


def test_programs_are_not_kept_alive() -> None:
    program = Program(tool=Search().query)
    program_fingerprint(program)
    program_fingerprint(copy_program(program))
    left = [weakref.ref(program), weakref.ref(program.tool.__self__)]
    del program
    gc.collect()
    assert [found() for found in left] == [None, None]


def test_programs_are_described_while_they_run() -> None:
    program = Program(tool=Search().query)
    program.tool.__self__.cache = {str(i): Search for i in range(2000)}  # holds code, so it is read each time
    plain = Program(tool=Search().query)
    still = {program_fingerprint(plain)}
    done = threading.Event()

    def run() -> None:
        number = 0
        while not done.is_set():
            program.tool(str(number := number + 1))
            program.tool.__self__.cache.pop(str(number - 500), None)
            plain.tool(str(number % 500))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(20):
            program_fingerprint(program)
            still.add(program_fingerprint(plain))
    finally:
        done.set()
        thread.join()
    assert len(still) == 1
