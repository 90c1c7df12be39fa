"""Demos from a teacher's good runs: the pass that BootstrapFewShot makes once, and random search for each candidate."""

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import dspy

from ..compiler.attempts import Attempt, Begin, first_good
from ..compiler.bootstrap import observe
from ..compiler.calls import in_round
from ..compiler.demos import Compare, demos_of, labelled
from ..compiler.examples import example_keys
from ..compiler.fitting import FitContext, fitted
from ..compiler.pool import Pool
from ..compiler.recorded_attempts import recorded_attempts
from ..compiler.recording import Subject
from ..compiler.trace import Trace
from ..compiler.withheld import withheld, withhold
from ..evaluation.metrics import Metric
from ..progress import bar
from ..signatures import copy_program, fingerprint, predictors, program_fingerprint
from ..signatures.likeness import likeness_to
from .checks import errors_allowed
from .labeled_few_shot import blank_copy, with_labelled_demos
from .no_good_run import no_good_run


@dataclass(frozen=True)
class Sizes:
    """How many demos a predictor gets, how they are tried for and which are chosen; the names are BootstrapFewShot's."""

    max_bootstrapped_demos: int = 4
    max_labeled_demos: int = 16
    max_rounds: int = 1
    diverse: bool = False
    fit_context: FitContext = None


@dataclass(frozen=True)
class Demonstrated:
    """A program with its new demos, and the attempts that they come from, in the order of the training examples."""

    program: dspy.Module
    attempts: list[Attempt]


def demonstrate(
    student: dspy.Module,
    teacher: dspy.Module,
    trainset: Sequence[dspy.Example],
    *,
    pool: Pool,
    sizes: Sizes,
    metric_threshold: float | None = None,
    max_errors: int | None = None,
    teacher_settings: Mapping[str, Any] | None = None,
    fit_labels: FitContext = None,
    seed: int = 0,
    ahead: bool = True,
    show_progress: bool = False,
    keys: Sequence[str] | None = None,
    likeness: Compare = likeness_to,
) -> Demonstrated:
    """A copy of `student` with demos from `teacher`'s good runs, made in an open pool; what is passed is not changed.

    Several threads may call this on one pool. A run that two of them need, one teacher with the same demos on the same
    example, is made once, and later from the ledger.

    Args:
        student: The program that gets the demos.
        teacher: A program whose every predictor has an LM, as `demo_teacher` chooses it. Unless it is compiled, it runs
            with labelled demos, `sizes.max_labeled_demos` of them; a run is never shown its own example.
        trainset: Examples with inputs, in the order in which they are tried; `check_examples` has seen them.
        pool: Runs the teacher and scores by its metric. Fewer than `pool.num_threads` examples are run beyond those
            that are needed, and none while every run is good.
        sizes: How many demos, and how many rounds.
        metric_threshold: The lowest score of a good run. None: any above 0.
        max_errors: Failed runs that stop it. None: DSPy's setting.
        teacher_settings: DSPy settings that the teacher runs under, such as `{"rm": …}`.
        fit_labels: Whether the teacher's labelled demos have to fit its own context: the `fit_context` of an optimizer, of
            which a number counts for students only.
        seed: Of the labelled demos' draw; 0 draws as DSPy does.
        ahead: Whether examples are run that may turn out not to be needed.
        show_progress: Whether a bar is drawn where a person can see it.
        keys: The examples' `example_keys`, where they are known.
        likeness: Compares texts for diverse demos.

    Raises:
        BootstrapError: No run was good, or `max_errors` failed.
        BudgetError: The ledger's budget did not allow one good run; where it allowed some, their demos are there.
        LedgerError: The ledger cannot be written.
    """
    wanted = sizes.max_bootstrapped_demos
    with (
        dspy.context(**(teacher_settings or {})),
        bar(f"teacher: looking for {wanted} good runs", wanted, show=show_progress) as advance,
    ):
        own = fit_labels if isinstance(fit_labels, bool) else None  # a number is the student's
        shown = with_labelled_demos(teacher, trainset, sizes.max_labeled_demos, fit_context=own, seed=seed)
        rounds = _rounds(shown, sizes.max_rounds)
        attempts = first_good(
            _begin(rounds, trainset, example_keys(trainset) if keys is None else keys, pool),
            len(trainset),
            wanted=wanted,
            max_rounds=sizes.max_rounds,
            good=lambda run: _is_good(run, metric_threshold),
            advance=advance,
            ledger=pool.ledger,
            num_threads=pool.num_threads if ahead else 1,
            max_errors=errors_allowed(max_errors),
        )
    return _demonstrated(student, attempts, trainset, sizes, metric_threshold, seed, likeness)


def demonstrate_recorded(
    student: dspy.Module,
    traces: Sequence[Trace],
    trainset: Sequence[dspy.Example],
    *,
    sizes: Sizes,
    metric: Metric | None,
    metric_threshold: float | None = None,
    seed: int = 0,
) -> Demonstrated:
    """As `demonstrate`, with runs that were made before in place of a teacher; they are scored anew by `metric`.

    Raises:
        BootstrapError: No run was good.
        DataError: No trace is of one of the examples, or one gave a predictor what it does not take.
    """
    attempts = recorded_attempts(
        traces,
        trainset,
        predictors(student, frozen=False),
        metric=metric,
        good=lambda run: _is_good(run, metric_threshold),
        wanted=sizes.max_bootstrapped_demos,
    )
    return _demonstrated(student, attempts, trainset, sizes, metric_threshold, seed)


def _rounds(teacher: dspy.Module, number: int) -> list[Subject]:
    """The teacher as each round runs it: after the first with other replies, which no cache has."""
    identity = program_fingerprint(teacher)
    rounds = []
    for at in range(number):
        program = copy_program(teacher, partial(in_round, at=at))
        shared = None if dspy.settings.lm is None else in_round(dspy.settings.lm, at)
        subject = observe(program, "teacher", identity=fingerprint([identity, at]), lm=shared, round=at)
        withhold(subject.program)
        rounds.append(subject)
    return rounds


def _begin(rounds: list[Subject], trainset: Sequence[dspy.Example], keys: Sequence[str], pool: Pool) -> Begin:
    def begin(index: int, at: int) -> "Future[Trace]":
        with dspy.context(**withheld(trainset[index])):
            return pool.submit(rounds[at], trainset[index], keys[index], index)

    return begin


def _is_good(run: Trace, threshold: float | None) -> bool:
    if run.error is not None:
        return False
    if run.score is None:  # there is no metric
        return True
    return run.score > 0 if threshold is None else run.score >= threshold


def _demonstrated(
    student: dspy.Module,
    attempts: list[Attempt],
    trainset: Sequence[dspy.Example],
    sizes: Sizes,
    threshold: float | None,
    seed: int,
    likeness: Compare = likeness_to,
) -> Demonstrated:
    if attempts and not any(attempt.good for attempt in attempts):
        raise no_good_run(attempts, trainset, threshold)
    return Demonstrated(_with_demos(student, attempts, trainset, sizes, seed, likeness), attempts)


def _with_demos(
    student: dspy.Module,
    attempts: list[Attempt],
    trainset: Sequence[dspy.Example],
    sizes: Sizes,
    seed: int,
    likeness: Compare,
) -> dspy.Module:
    good = {attempt.index for attempt in attempts if attempt.good}
    shown = [demos_of(attempt.runs[-1]) for attempt in attempts if attempt.good]
    unused = [example for i, example in enumerate(trainset) if i not in good]
    random.Random(seed).shuffle(unused)
    rng = random.Random(seed)
    compiled = blank_copy(student)
    for name, predictor in predictors(compiled, frozen=False).items():
        taught = [demos[name] for demos in shown if name in demos]
        number = max(0, min(sizes.max_labeled_demos - len(taught), len(unused)))
        more = labelled(predictor, unused, number, rng, diverse=sizes.diverse, beside=taught, likeness=likeness)
        asked = [
            step.inputs for attempt in attempts for run in attempt.runs for step in run.steps if step.predictor == name
        ]
        predictor.demos = fitted(name, predictor, taught + more, asked or trainset, sizes.fit_context)
    compiled._compiled = True
    return compiled
