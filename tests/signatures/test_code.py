"""What a callable does: each way in which one can change changes its key, and nothing else does."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from dspyc.evaluation import metric_fingerprint
from dspyc.signatures import program_fingerprint

METRICS = """
import dspy, functools
LIMIT = {limit}
WEIGHTS = {{"a": {weight}}}

def helper(value):
    return value + {added}

def metric(example, prediction, trace=None, least={least}):
    return helper(1) >= LIMIT and WEIGHTS["a"] > least

def closing(over):
    def inner(example, prediction):
        return over
    return inner

class Judge:
    scale = {scale}
    def __init__(self, limit):
        self.limit = limit
    def __call__(self, example, prediction):
        return self.score(prediction) > self.limit
    def score(self, prediction):
        return {score}

    def helped(self):
        return {helped}
    def by_help(self, example, prediction):
        return self.helped()

class Strict(Judge):
    pass

@functools.cache
def slow(value):
    return {cached}

def with_slow(example, prediction):
    return slow(1)

def at_least(function, threshold):
    @functools.wraps(function)
    def wrapper(example, prediction):
        return function(example, prediction) >= threshold
    return wrapper

def plain(example, prediction):
    return 1.0

judge = dspy.Predict(dspy.Signature("q -> a: bool", "Say {asks}."))

def asking(example, prediction):
    return judge(q="?").a

COUNT, MEMORY = 0, {{}}

def counting(example, prediction):
    global COUNT
    COUNT += 1
    MEMORY[COUNT] = prediction
    return prediction in {{"one", "two", "three", "four"}}

MADE = {{
    "function": metric,
    "partial": functools.partial(metric, least={partial}),
    "closure": closing({closed}),
    "object": Judge({limit_of_object}),
    "subclass": Strict(1),
    "method": Judge({limit_of_object}).score,
    "helped": Judge(3).by_help,
    "cached": with_slow,
    "wrapped": at_least(plain, {wrapped}),
    "asking": asking,
    "lambda": lambda example, prediction: [x.a{inner} for x in prediction] in ({{"one", "two", "three"}}, 1),
    "counting": counting,
}}
"""
AS_IT_IS = {
    **{"limit": 1, "weight": 2, "added": 3, "least": 4, "scale": 5},
    **{"score": 6, "partial": 7, "closed": 0.5, "limit_of_object": 9},
    **{"helped": 10, "cached": 11, "wrapped": 12, "asks": 13, "inner": 14},
}
CHANGES = {
    "limit": {"function", "partial"},  # a constant of its module
    "weight": {"function", "partial"},
    "added": {"function", "partial"},  # a function of its module
    "least": {"function", "partial"},  # a default
    "partial": {"partial"},
    "closed": {"closure"},
    "limit_of_object": {"object", "method"},
    "score": {"object", "subclass", "method", "helped"},  # another method
    "scale": {"object", "subclass", "method", "helped"},  # a constant of the class
    "helped": {"helped", "object", "subclass", "method"},  # what a method calls
    "cached": {"cached"},  # a function behind functools.cache
    "wrapped": {"wrapped"},  # what a decorator closes over
    "asks": {"asking"},  # the instructions of a judge
    "inner": {"lambda"},  # an attribute within a comprehension of a lambda
}


# Each folder's metrics in a process of their own, forked from one that has imported DSPy.
PRINT = """
import json, os, sys
import dspy
from dspyc.evaluation import metric_fingerprint
for folder in sys.argv[1:]:
    if os.fork() == 0:
        sys.path.insert(0, folder)
        import metrics
        print(json.dumps({name: metric_fingerprint(made) for name, made in metrics.MADE.items()}), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def prints(seed: str, *folders: Path) -> list[dict[str, str]]:
    command = [sys.executable, "-B", "-c", PRINT, *map(str, folders)]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def write(folder: Path, **changed: Any) -> Path:
    folder.mkdir()
    (folder / "metrics.py").write_text(METRICS.format(**{**AS_IT_IS, **changed}))
    return folder


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Which metrics each change changed."""
    folder = tmp_path_factory.mktemp("metrics")
    (before,) = prints("1", write(folder / "as_it_is"))
    after = prints("2", *(write(folder / name, **{name: 1234}) for name in CHANGES))
    return {name: {key for key in before if now[key] != before[key]} for name, now in zip(CHANGES, after, strict=True)}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_counts_where_it_is_read_in_another_process(name: str, changed: dict[str, set[str]]) -> None:
    assert changed[name] == CHANGES[name]


def test_functions_that_read_each_other_end() -> None:
    assert metric_fingerprint(even) == metric_fingerprint(even)
    assert metric_fingerprint(even) != metric_fingerprint(odd)


def even(number: int, _: Any = None) -> bool:
    return number == 0 or odd(number - 1)


def odd(number: int, _: Any = None) -> bool:
    return number != 0 and even(number - 1)


def test_what_a_function_remembers_is_no_change() -> None:
    before = metric_fingerprint(counting)
    assert counting("e", "p")
    assert metric_fingerprint(counting) == before
    globals()["MEMORY"] = {}  # another one
    assert metric_fingerprint(counting) == before
    globals()["MEMORY"] = {"a": 1}
    assert metric_fingerprint(counting) != before


COUNT, MEMORY = 0, dict[Any, Any]()


def counting(example: Any, prediction: Any) -> bool:
    global COUNT
    COUNT += 1
    MEMORY[COUNT] = prediction
    return len(MEMORY) > 0


def test_numbers_of_numpy_are_numbers() -> None:
    assert len({metric_fingerprint(functools.partial(even, number=kind(3))) for kind in (np.float32, float)}) == 1
    assert metric_fingerprint(functools.partial(even, np.int64(3))) != metric_fingerprint(
        functools.partial(even, np.int64(4))
    )


def test_functions_that_share_others_are_described_once() -> None:
    names = [f"helper_{i}" for i in range(40)]
    space: dict[str, Any] = {"__name__": "shared"}
    for i, name in enumerate(names):
        after = " + ".join(f"{n}()" for n in names[i + 1 : i + 3]) or "1"
        exec(f"def {name}():\n    return {after}", space)
    # Described again wherever they are read, they would be 2**40 descriptions.
    assert metric_fingerprint(space["helper_0"]) != metric_fingerprint(space["helper_1"])


def test_objects_and_what_they_hold_have_no_addresses() -> None:
    class Client:
        pass

    def judged_by(client: Any, judge: Any) -> Callable[..., bool]:
        return lambda example, prediction: bool(client and judge)

    one, other = (judged_by(Client(), dspy.Predict("q -> a")) for _ in range(2))
    assert metric_fingerprint(one) == metric_fingerprint(other)
    small, large = (judged_by(Client(), dspy.LM(f"a/{size}")) for size in ("small", "large"))
    assert metric_fingerprint(small) != metric_fingerprint(large)
    assert metric_fingerprint(functools.partial(len)) == metric_fingerprint(functools.partial(len))


class Program(dspy.Module):
    def __init__(self, options: Any = None, tool: Any = None) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.options, self.tool = options, tool

    def forward(self, question: str) -> Any:
        return self.answer(question=question)


class Agent(Program):
    """It keeps its own methods, as agents do."""

    def __init__(self) -> None:
        super().__init__()
        self.tools: list[Any] = [self.search, dspy.Tool(self.forward)]
        self.ways = {"search": self.search}
        self.react = dspy.ReAct("question -> answer", tools=self.tools)

    def search(self, city: str) -> str:
        return city


def test_an_agent_that_holds_its_own_methods_has_a_fingerprint() -> None:
    assert program_fingerprint(Agent()) == program_fingerprint(Agent())
    assert metric_fingerprint(Agent().search) == metric_fingerprint(Agent().search)


class Spoiled(Program):
    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.answer(question=question).answer + "?")


def test_a_program_is_its_code_its_data_and_its_tools() -> None:
    Spoiled.__name__ = Spoiled.__qualname__ = "Program"
    programs = [
        *(Program(), Spoiled(), Program({"depth": 1}), Program({"depth": 2}), Program({1, 2}), Program(["a"])),
        *(Program(tool=lambda city: "sunny"), Program(tool=lambda city: "rainy"), Program(tool=dspy.Tool(even))),
        *(dspy.ReAct("q -> a", tools=[even]), dspy.ReAct("q -> a", tools=[odd])),
    ]
    assert len({program_fingerprint(program) for program in programs}) == len(programs)
    assert program_fingerprint(Program({"a", "b"})) == program_fingerprint(Program({"b", "a"}))
    assert program_fingerprint(Program({"api_key": "sk-canary-of-one"})) == program_fingerprint(
        Program({"api_key": "sk-canary-of-two"})
    )
