"""A run does not see its own example among its predictors' demos, whatever the example holds."""

from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

import dspyc
from dspyc.compiler.withheld import withheld, withhold
from dspyc.signatures import copy_program


class Plain:
    """Equal to nothing but itself, as most classes' objects are."""

    def __init__(self, number: int) -> None:
        self.number = number


VALUES = {
    "text": str,
    "nan": lambda i: [float("nan"), i],
    "array": lambda i: np.array([i, 1.5]),
    "empty array": lambda i: [np.array([]), i],
    "arrays of several shapes": lambda i: np.zeros((i + 1, 2)),
    "nested": lambda i: {"rows": [np.arange(3) + i]},
    "set": lambda i: {"a", "b", str(i)},
    "object": Plain,
    "example": lambda i: dspy.Example(inner=np.array([i, i])),
}


@pytest.mark.parametrize("kind", VALUES)
def test_one_example_is_left_out_and_the_others_are_shown(kind: str) -> None:
    examples = [dspy.Example(value=VALUES[kind](i), answer="x").with_inputs("value") for i in range(3)]
    program = dspy.Predict("value -> answer")
    program.demos = [example.copy() for example in examples]
    program = copy_program(program)
    withhold(program)
    assert len(program.demos) == 3
    for i, example in enumerate(examples):
        with dspy.context(**withheld(example)):
            left = [j for j in range(3) if any(demo is vars(program)["demos"][j] for demo in program.demos)]
        assert left == [j for j in range(3) if j != i]


def test_a_demo_with_other_fields_is_shown() -> None:
    program = dspy.Predict("question -> answer")
    program.demos = [dspy.Example(question="q", answer="a", augmented=True), dspy.Example(question="q")]
    withhold(program)
    with dspy.context(**withheld(dspy.Example(question="q", answer="a").with_inputs("question"))):
        assert len(program.demos) == 2
    with dspy.context(**withheld(dspy.Example(answer="a", augmented=True, question="q").with_inputs("question"))):
        assert len(program.demos) == 1


def test_examples_with_arrays_teach(tmp_path: Path) -> None:
    trainset = [dspy.Example(values=np.array([i, i + 1]), total=str(2 * i + 1)).with_inputs("values") for i in range(6)]

    def answer(inputs: dict[str, str]) -> dict[str, Any]:
        return {"total": str(sum(int(part) for part in inputs["values"].strip("[]").replace(",", " ").split()))}

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return bool(example.total == prediction.total)

    teacher = dspy.Predict("values: list -> total")
    teacher.set_lm(dspyc.ScriptedLM(answer))
    optimizer = dspyc.BootstrapFewShot(
        metric, max_bootstrapped_demos=3, max_labeled_demos=6, num_threads=1, max_errors=1, run_dir=tmp_path
    )
    compiled = optimizer.compile(dspy.Predict("values: list -> total"), trainset=trainset, teacher=teacher)
    assert sum("augmented" in demo for demo in compiled.demos) == 3
