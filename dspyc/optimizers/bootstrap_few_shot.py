"""BootstrapFewShot: a teacher's good runs become demos in a student's prompts.

The method is DSPy's (Khattab et al., 2023, arXiv 2310.03714): run a teacher over the training examples in their order,
take from each run that the metric accepts one call of every predictor as a demo, and fill up with labelled examples.
The teacher runs on many examples at once, and every call is in a ledger before the next.
"""

import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from ..compiler import artifact
from ..compiler.attempts import Attempt, Begin, first_good
from ..compiler.bootstrap import observe
from ..compiler.budget import Budget
from ..compiler.calls import in_round
from ..compiler.demos import demos_of, labelled, spread
from ..compiler.examples import check_examples, example_keys
from ..compiler.fitting import FitContext, fitted
from ..compiler.ledger import Ledger
from ..compiler.plan import Plan
from ..compiler.pool import Pool
from ..compiler.ray_workers import Executor, workers_of
from ..compiler.recorded_attempts import recorded_attempts
from ..compiler.recording import Subject
from ..compiler.report import CompileReport
from ..compiler.trace import Trace
from ..compiler.traces_file import given_traces
from ..compiler.usage import Usage
from ..compiler.withheld import withheld, withhold
from ..errors import ConfigError, ProgramError
from ..evaluation import check_metric, metric_fingerprint
from ..evaluation.metrics import Metric
from ..progress import bar
from ..signatures import adapt, adapter_of, check_equivalent, copy_program, fingerprint, predictors, program_fingerprint
from ..signatures.checks import check_replies_possible
from .checks import (
    check_count,
    check_executor,
    check_fit,
    check_limits,
    check_number,
    check_teacher_settings,
    check_threads,
)
from .labeled_few_shot import LabeledFewShot, blank_copy
from .no_good_run import no_good_run
from .plans import bootstrap_stages
from .runs import data_fingerprint, run_folder
from .teachers import choose_teachers


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
) -> Demonstrated:
    """A copy of `student` with demos from `teacher`'s good runs, made in an open pool; what is passed is not changed.

    Several threads may call this on one pool. A run that two of them need, one teacher with the same demos on the same
    example, is made once, and later from the ledger.

    Args:
        student: The program that gets the demos.
        teacher: A program whose every predictor has an LM, as `choose_teachers` makes it. Unless it is compiled, it runs
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
        rounds = _rounds(_with_labels(teacher, trainset, sizes, fit_labels, seed), sizes.max_rounds)
        attempts = first_good(
            _begin(rounds, trainset, pool),
            len(trainset),
            wanted=wanted,
            max_rounds=sizes.max_rounds,
            good=lambda run: _is_good(run, metric_threshold),
            advance=advance,
            ledger=pool.ledger,
            num_threads=pool.num_threads if ahead else 1,
            max_errors=max_errors if max_errors is not None else dspy.settings.max_errors,
        )
    if attempts and not any(attempt.good for attempt in attempts):
        raise no_good_run(attempts, trainset, metric_threshold)
    return Demonstrated(_with_demos(student, attempts, trainset, sizes, seed), attempts)


class BootstrapFewShot(Teleprompter):
    """Compose demos for every predictor of a student from a teacher's good runs and from labelled examples.

    Args:
        metric: `metric(example, prediction, trace=None)` as a bool or number, higher is better. None takes every run that
            ends without an error.
        metric_threshold: The lowest score of a run that becomes a demo, 0 included. Default: any score above 0.
        teacher_settings: DSPy settings that the teacher runs under. Its `lm` serves the teacher's predictors that have no
            language model of their own; where no teacher is given it runs the student's program.
        max_bootstrapped_demos: Good runs to find; each predictor gets at most one demo from each.
        max_labeled_demos: Demos of a predictor in all, filled up with examples that gave no good run. An uncompiled teacher
            runs with so many labelled examples, never its own among them.
        max_rounds: Runs of an example until one is good; from the second on at temperature 1.
        max_errors: Failed runs that stop the compile. Default: DSPy's setting.
        budget: What the teacher may spend, a hard limit: at it the compile ends with the demos that it has, and its report
            says so.
        num_threads: Examples that run at once. Default: DSPy's setting, else 8. Fewer than `num_threads` examples are run
            beyond those that are needed, and none while every run is good.
        executor: Who makes the requests to models elsewhere: "threads" of this process, or the workers of a "ray" cluster
            (`pip install "dspyc[ray]"`). Programs, metrics and models of this machine run here in either case.
        run_dir: The folder of the ledger; the same compile in the same folder resumes with no call repeated. Default: a
            folder named after the compile under `$DSPYC_HOME`, else `~/.cache/dspyc`.
        seed: Of the draw of labelled examples. The demos of seed 0 are those that DSPy's own class chooses.
        diverse: Run the teacher on examples that are as unlike each other as can be first, and choose labelled ones that
            are unlike these, by tf-idf of each predictor's inputs; needs scikit-learn (`pip install "dspyc[search]"`).
        fit_context: Leave out demos that would make a predictor's longest prompt too long for the student's context,
            counted by its own tokenizer; a number of tokens sets the limit instead. Default: where the student is on this
            machine, whose context is known exactly. Of a teacher's labelled demos True, False and the default say the same
            for the teacher's own context; a number says nothing of them.
        show_progress: Whether a bar is drawn on a terminal or notebook.
    """

    fits_demos = True  # False where the demos are a pool, which is fitted by who knows how many are shown at once

    def __init__(
        self,
        metric: Metric | None = None,
        metric_threshold: float | None = None,
        teacher_settings: Mapping[str, Any] | None = None,
        max_bootstrapped_demos: int = 4,
        max_labeled_demos: int = 16,
        max_rounds: int = 1,
        max_errors: int | None = None,
        *,
        budget: Budget | None = None,
        num_threads: int | None = None,
        executor: Executor = "threads",
        run_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        diverse: bool = False,
        fit_context: FitContext = None,
        show_progress: bool = True,
    ) -> None:
        super().__init__()
        if metric is not None:
            check_metric(metric)
        check_teacher_settings(teacher_settings)
        check_count("max_bootstrapped_demos", max_bootstrapped_demos)
        check_count("max_labeled_demos", max_labeled_demos)
        check_count("max_rounds", max_rounds, least=1)
        check_limits(max_errors, budget)
        check_executor(executor)
        check_fit(fit_context)
        self.metric, self.metric_threshold = metric, check_number("metric_threshold", metric_threshold)
        self.teacher_settings = dict(teacher_settings or {})
        self.max_bootstrapped_demos, self.max_labeled_demos = max_bootstrapped_demos, max_labeled_demos
        self.max_rounds, self.max_errors = max_rounds, max_errors
        self.budget, self.num_threads, self.executor, self.run_dir = budget, num_threads, executor, run_dir
        self.diverse, self.fit_context = diverse, fit_context
        self.seed, self.show_progress = seed, show_progress

    def compile(
        self,
        student: dspy.Module,
        *,
        teacher: dspy.Module | None = None,
        trainset: Sequence[dspy.Example],
        traces: Sequence[Trace] | str | os.PathLike[str] | None = None,
    ) -> dspy.Module:
        """A compiled copy of `student`, with `report` and `save`; the arguments are left as they were.

        With no teacher the student's own program teaches, run by `teacher_settings["lm"]` if that is given. `traces`, as
        `dspyc.load_traces` reads them, or the path of their file, teach in place of a teacher: those of examples of
        `trainset`, scored anew.

        Raises:
            DspycError: Its subclass says what was wrong. A compile that was stopped, however, resumes.
        """
        started = time.monotonic()
        train = check_examples(trainset, "trainset")
        if self.diverse:
            train = spread(train, self.max_bootstrapped_demos, first=random.Random(self.seed).randrange(len(train)))
        threads = check_threads(self.num_threads)
        recorded = given_traces(traces)
        program = self._teacher(student, teacher, recorded)
        taught_by = [trace.id for trace in recorded or []] if program is None else program_fingerprint(program)
        sizes = Sizes(
            self.max_bootstrapped_demos,
            self.max_labeled_demos,
            self.max_rounds,
            self.diverse,
            self.fit_context if self.fits_demos else False,
        )
        asks = fingerprint([program_fingerprint(student), taught_by, data_fingerprint(train), asdict(sizes), self.seed])
        identity = fingerprint([asks, metric_fingerprint(self.metric), self.metric_threshold])
        folder = run_folder(self.run_dir, asks)
        plan = self._plan(program, train)
        with (
            Ledger(folder, budget=self.budget) as ledger,
            workers_of(self.executor, num_threads=threads, ledger=ledger) as workers,
        ):
            ledger.event("compile", identity=identity, train=len(train), plan=plan.to_dict())
            with Pool(ledger, metric=self.metric, num_threads=threads, workers=workers) as pool:
                if program is None:
                    made = self._recorded(student, train, recorded or [], sizes)
                else:
                    made = demonstrate(
                        student,
                        program,
                        train,
                        pool=pool,
                        sizes=sizes,
                        metric_threshold=self.metric_threshold,
                        max_errors=self.max_errors,
                        teacher_settings=self.teacher_settings,
                        fit_labels=self.fit_context,
                        seed=self.seed,
                        show_progress=self.show_progress,
                    )
            named = {"compile": identity, "data": data_fingerprint(train)}
            report = _report(made, ledger, started, self.seed, named, plan)
            ledger.event("report", **report.to_dict())
        return artifact.attach(made.program, report)

    def plan(
        self,
        student: dspy.Module,
        *,
        teacher: dspy.Module | None = None,
        trainset: Sequence[dspy.Example],
        traces: Sequence[Trace] | str | os.PathLike[str] | None = None,
    ) -> Plan:
        """What `compile` with the same arguments will ask for: an estimate, at no cost."""
        train = check_examples(trainset, "trainset")
        return self._plan(self._teacher(student, teacher, given_traces(traces)), train)

    def _teacher(
        self, student: dspy.Module, teacher: dspy.Module | None, traces: Sequence[Trace] | None
    ) -> dspy.Module | None:
        """Who teaches; None where traces do."""
        if traces is None:
            return choose_teacher(student, teacher, self.teacher_settings)
        if teacher is not None:
            raise ConfigError("`teacher` and `traces` both say what to learn from; pass one of them.")
        return None

    def _recorded(
        self, student: dspy.Module, train: list[dspy.Example], traces: Sequence[Trace], sizes: Sizes
    ) -> Demonstrated:
        """By runs that were made before."""
        attempts = recorded_attempts(
            traces,
            train,
            predictors(student, frozen=False),
            metric=self.metric,
            good=lambda run: _is_good(run, self.metric_threshold),
            wanted=sizes.max_bootstrapped_demos,
        )
        if attempts and not any(attempt.good for attempt in attempts):
            raise no_good_run(attempts, train, self.metric_threshold)
        return Demonstrated(_with_demos(student, attempts, train, sizes, self.seed), attempts)

    def _plan(self, teacher: dspy.Module | None, train: list[dspy.Example]) -> Plan:
        if teacher is None:
            return Plan([], check_threads(self.num_threads))
        sizes = {"labels": self.max_labeled_demos, "rounds": self.max_rounds}
        stages = bootstrap_stages(teacher, train, [self.max_bootstrapped_demos], **sizes)
        return Plan(stages, check_threads(self.num_threads))


def choose_teacher(
    student: dspy.Module, teacher: dspy.Module | None, teacher_settings: Mapping[str, Any]
) -> dspy.Module:
    """The program that teaches, each of its predictors with a language model.

    Raises:
        ProgramError: The student is compiled, or the teacher is not its equal or has no language model.
        ConfigError: The student's language model cannot reply to one of its predictors.
    """
    with dspy.context(**teacher_settings):
        chosen = choose_teachers(student, None if teacher is None else [teacher], teacher_settings.get("lm"))
        if "adapter" in teacher_settings:
            for predictor in predictors(chosen[0].program).values():
                adapt(predictor, adapter_of(predictor))
    check_equivalent(student, chosen[0].program)
    check_replies_possible(student)
    if student._compiled:
        raise ProgramError(
            f"The student {type(student).__name__} is compiled already, and its predictors are to stay as they are.",
            hint="Pass the program that it was compiled from, or set `_compiled = False` on a copy.",
        )
    return chosen[0].program


def _with_labels(
    teacher: dspy.Module, trainset: Sequence[dspy.Example], sizes: Sizes, fit: FitContext, seed: int
) -> dspy.Module:
    if not sizes.max_labeled_demos or teacher._compiled:
        return teacher
    own = fit if isinstance(fit, bool) else None  # a number is the student's
    return LabeledFewShot(sizes.max_labeled_demos, seed=seed, fit_context=own).compile(teacher, trainset=trainset)


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


def _begin(rounds: list[Subject], trainset: Sequence[dspy.Example], pool: Pool) -> Begin:
    keys = example_keys(trainset)

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


def _with_demos(
    student: dspy.Module, attempts: list[Attempt], trainset: Sequence[dspy.Example], sizes: Sizes, seed: int
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
        demos = taught + labelled(predictor, unused, number, rng, diverse=sizes.diverse, beside=taught)
        asked = [
            step.inputs for attempt in attempts for run in attempt.runs for step in run.steps if step.predictor == name
        ]
        predictor.demos = fitted(name, predictor, demos, asked or trainset, sizes.fit_context)
    compiled._compiled = True
    return compiled


def _report(
    made: Demonstrated, ledger: Ledger, started: float, seed: int, fingerprints: dict[str, str], plan: Plan
) -> CompileReport:
    runs = [run for attempt in made.attempts for run in attempt.runs]
    usage = Usage.of(runs)
    named = predictors(made.program, frozen=False)
    return CompileReport(
        verdict=None,
        calls=ledger.calls(),
        replayed=usage.replayed,
        cost=usage.cost,
        seconds=time.monotonic() - started,
        rows={},
        dataset={
            "runs": len(runs),
            "failed": sum(run.error is not None for run in runs),
            "bootstrapped": sum(attempt.good for attempt in made.attempts),
            "demos": {name: len(predictor.demos) for name, predictor in named.items()},
            "budget_spent": ledger.meter.exhausted,
        },
        training=[],
        run_dir=str(ledger.run_dir),
        seed=seed,
        fingerprints=fingerprints,
        plan=plan.to_dict(),
        spent=ledger.meter.spent.to_dict(),
        stopped=ledger.meter.exhausted,
    )
