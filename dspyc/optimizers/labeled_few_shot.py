"""LabeledFewShot: training examples, as they are, become the demos of every predictor."""

import random
import time
from collections.abc import Sequence

import dspy
from dspy.teleprompt import Teleprompter

from ..compiler import artifact
from ..compiler.demos import labelled
from ..compiler.examples import check_examples
from ..compiler.fitting import FitContext, fitted
from ..compiler.plan import Plan
from ..compiler.report import CompileReport
from ..signatures import copy_program, predictors, program_fingerprint
from .checks import check_count, check_fit
from .runs import data_fingerprint


class LabeledFewShot(Teleprompter):
    """Put `k` training examples into the prompt of each predictor. Nothing is run.

    Args:
        k: Demos for each predictor; all examples where there are fewer.
        seed: Of the draw; the demos of seed 0 are those that DSPy's own class draws.
        diverse: Choose examples that are as unlike each other as can be, by the words of each predictor's inputs; needs
            scikit-learn (`pip install "dspyc[search]"`).
        fit_context: Leave out demos that would make a predictor's longest prompt too long for its language model's
            context, counted by its own tokenizer; a number of tokens sets the limit instead. Default: where the model is
            on this machine.
    """

    def __init__(self, k: int = 16, *, seed: int = 0, diverse: bool = False, fit_context: FitContext = None) -> None:
        super().__init__()
        check_count("k", k)
        check_fit(fit_context)
        self.k, self.seed, self.diverse, self.fit_context = k, seed, diverse, fit_context

    def compile(self, student: dspy.Module, *, trainset: Sequence[dspy.Example], sample: bool = True) -> dspy.Module:
        """A copy of `student` with new demos, its own language models, `report` and `save`; with `sample=False` the first `k`.

        Raises:
            ProgramError: `student` is no program.
            DataError: `trainset` is no list of examples.
        """
        started = time.monotonic()
        examples = check_examples(trainset, "trainset", allow_empty=True, inputs=False)
        compiled = self.with_demos(student, examples, sample)
        named = {"student": program_fingerprint(student), "data": _named(examples)}
        return artifact.attach(compiled, self._report(compiled, named, time.monotonic() - started))

    def with_demos(self, student: dspy.Module, examples: Sequence[dspy.Example], sample: bool = True) -> dspy.Module:
        """What `compile` makes of examples that were checked, without a report."""
        rng = random.Random(self.seed)
        made = blank_copy(student)
        number = min(self.k, len(examples))
        for name, predictor in predictors(made, frozen=False).items():
            demos = [example.copy() for example in examples[:number]]
            if sample:
                demos = labelled(predictor, examples, number, rng, diverse=self.diverse)
            predictor.demos = fitted(name, predictor, demos, examples, self.fit_context)
        return made

    def plan(self, student: dspy.Module, *, trainset: Sequence[dspy.Example], sample: bool = True) -> Plan:
        """What `compile` with the same arguments asks for: nothing."""
        check_examples(trainset, "trainset", allow_empty=True, inputs=False)
        return Plan([], 1)

    def _report(self, compiled: dspy.Module, fingerprints: dict[str, str], seconds: float) -> CompileReport:
        demos = {name: len(predictor.demos) for name, predictor in predictors(compiled, frozen=False).items()}
        return CompileReport(
            verdict=None,
            calls={},
            seconds=seconds,
            rows={},
            dataset={"demos": demos},
            training=[],
            run_dir="",
            seed=self.seed,
            fingerprints=fingerprints,
            plan=Plan([], 1).to_dict(),
        )


def _named(examples: Sequence[dspy.Example]) -> str:
    """A fingerprint of examples that need not say which of their fields are inputs."""
    return data_fingerprint([e if e._input_keys is not None else e.with_inputs() for e in examples])


def blank_copy(program: dspy.Module) -> dspy.Module:
    """A copy without demos, like DSPy's `reset_copy`; but its predictors keep their language models."""
    copied = copy_program(program)
    for parameter in copied.parameters():
        lm = getattr(parameter, "lm", None)
        parameter.reset()
        if lm is not None:
            parameter.lm = lm
    return copied


def with_labelled_demos(
    program: dspy.Module, trainset: Sequence[dspy.Example], number: int, *, fit_context: FitContext, seed: int = 0
) -> dspy.Module:
    """A copy whose predictors each have `number` labelled demos; the program itself where it is compiled, or gets none."""
    if not number or program._compiled:
        return program
    return LabeledFewShot(number, seed=seed, fit_context=fit_context).with_demos(program, trainset)
