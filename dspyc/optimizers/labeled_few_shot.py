"""LabeledFewShot: training examples, as they are, become the demos of every predictor."""

import random
from collections.abc import Sequence
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from ..compiler.bootstrap import check_examples
from ..errors import ConfigError
from ..signatures import copy_program, predictors


class LabeledFewShot(Teleprompter):
    """Put `k` training examples into the prompt of each predictor. Nothing is run.

    Args:
        k: Demos for each predictor; all examples where there are fewer.
        seed: Of the draw; the demos of seed 0 are those that DSPy's own class draws.
    """

    def __init__(self, k: int = 16, *, seed: int = 0) -> None:
        super().__init__()
        check_count("k", k)
        self.k, self.seed = k, seed

    def compile(self, student: dspy.Module, *, trainset: Sequence[dspy.Example], sample: bool = True) -> dspy.Module:
        """A copy of `student` with new demos and its own language models; without `sample` the first `k` examples.

        Raises:
            ProgramError: `student` is no program.
            DataError: `trainset` is no list of examples.
        """
        examples = check_examples(trainset, "trainset", allow_empty=True, inputs=False)
        rng = random.Random(self.seed)
        compiled = blank_copy(student)
        for predictor in predictors(compiled, frozen=False).values():
            number = min(self.k, len(examples))
            chosen = rng.sample(examples, number) if sample else examples[:number]
            predictor.demos = [example.copy() for example in chosen]
        return compiled


def blank_copy(program: dspy.Module) -> dspy.Module:
    """A copy without demos, like DSPy's `reset_copy`; but its predictors keep their language models."""
    copied = copy_program(program)
    for parameter in copied.parameters():
        lm = getattr(parameter, "lm", None)
        parameter.reset()
        if lm is not None:
            parameter.lm = lm
    return copied


def check_count(name: str, value: Any, *, least: int = 0) -> None:
    """Raises ConfigError unless `value` is a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"`{name}` is {value!r}; a whole number from {least} is allowed.")
