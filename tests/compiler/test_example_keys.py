"""Keys of examples: the same in every process and in every version."""

import datetime
import os
import subprocess
import sys
from enum import Enum
from pathlib import Path

import dspy
import pydantic

from dspyc.compiler.examples import example_keys

PRINT = """
import dspy, numpy, pydantic
from dspyc.compiler.examples import example_keys

class Plain:
    def __init__(self, tags):
        self.tags = tags

class Tagged(pydantic.BaseModel):
    tags: set[str]

class Open(pydantic.BaseModel, arbitrary_types_allowed=True):
    held: Plain

words = ["red", "green", "blue", "white", "black"]
values = [set(words), frozenset(words), [{"tags": set(words)}], Plain(set(words)), Plain, Tagged(tags=words),
          Open(held=Plain(set(words))), {Plain(1): 2}, len, lambda: 3, numpy.arange(3)]
print(example_keys([dspy.Example(value=value, answer="a").with_inputs("value") for value in values]))
"""


def test_keys_depend_on_no_hash_and_no_address() -> None:
    printed = []
    for seed in ("1", "2"):
        padding = f"held = [object() for _ in range({10_000 * int(seed)})]\n"  # other addresses
        done = subprocess.run(
            [sys.executable, "-c", padding + PRINT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        printed.append(done.stdout.split())
    assert printed[0] == printed[1]
    assert len(set(printed[0])) == len(printed[0]) == 11


class Colour(Enum):
    RED = 1


class Ticket(pydantic.BaseModel):
    text: str
    lines: list[int]


def test_keys_stay_what_they_are() -> None:
    """Default run folders and exported traces are found by them."""
    inputs = {
        "text": "ä question",
        "numbers": [1, 2.5, True, None, (3, "4")],
        "nested": {"a": {"b": [1]}, "c": "", "1": 2},
        "counts": {1: "one", 2: "two"},
        "ticket": Ticket(text="late", lines=[1, 2]),
        "image": dspy.Image("https://example.com/a.png"),
        "history": dspy.History(messages=[{"question": "q", "answer": "a"}]),
        "day": datetime.date(2024, 5, 1),
        "colour": Colour.RED,
    }
    keys = example_keys([dspy.Example(**{name: value}, label="x").with_inputs(name) for name, value in inputs.items()])
    assert dict(zip(inputs, keys, strict=True)) == {
        "text": "2f4be9d4e3e610b9#0",
        "numbers": "15ac5d173891907b#0",
        "nested": "a793c0243c374a3f#0",
        "counts": "46637c902ac15ea4#0",
        "ticket": "77dc622f7e0707b3#0",
        "image": "a51bf4a3290e70ad#0",
        "history": "1433c668b21966f1#0",
        "day": "e210aa43c55cede7#0",
        "colour": "7f97b360c475db94#0",
    }


def test_equal_examples_are_numbered() -> None:
    one, other = dspy.Example(tags={"a", "b"}).with_inputs("tags"), dspy.Example(tags={"b", "a"}).with_inputs("tags")
    different = dspy.Example(tags={"a", "c"}).with_inputs("tags")
    first, second, third = (key.split("#") for key in example_keys([one, other, different]))
    assert first[0] == second[0] != third[0]
    assert [key[1] for key in (first, second, third)] == ["0", "1", "0"]
