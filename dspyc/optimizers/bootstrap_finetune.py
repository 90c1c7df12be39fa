"""BootstrapFinetune: a teacher's good runs become a student's weights.

The method is DSPy's (Khattab et al., 2023, arXiv 2310.03714; Soylu et al., 2024, arXiv 2407.10930): run a teacher over
the training examples, keep the runs that the metric accepts, turn each predictor call in them into a chat row, and
fine-tune. The passes are in `dspyc.compiler`; this file says in which order they run.
"""

import logging
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from ..compiler import artifact, gate
from ..compiler.budget import Budget
from ..compiler.dataset import Target, is_labelled
from ..compiler.examples import check_examples
from ..compiler.plan import Plan, Stage, plan_stages
from ..compiler.ray_workers import Executor
from ..compiler.report import CompileReport
from ..compiler.trace import Trace
from ..compiler.traces_file import given_traces
from ..errors import ConfigError
from ..evaluation import check_metric, metric_fingerprint
from ..evaluation.metrics import Metric
from ..signatures import (
    adapt,
    adapter_of,
    check_equivalent,
    check_renderable,
    check_student,
    copy_program,
    fingerprint,
    predictors,
    program_fingerprint,
)
from ..signatures.checks import adapter_of_name
from .checks import (
    check_executor,
    check_limits,
    check_number,
    check_one_source,
    check_share,
    check_threads,
)
from .folds import apart, warn_of_shared
from .passes import Passes
from .runs import data_fingerprint, sitting
from .teachers import Teacher, choose_teachers
from .units import Unit, check_rows, check_task_names, check_trainable, plan_units, train_units

logger = logging.getLogger(__name__)

_EXAMPLE = 'For example train_kwargs={"method": "full", "epochs": 3}.'


class BootstrapFinetune(Teleprompter):
    """Compile a program's prompts and a teacher's behaviour into the student's weights.

    Args:
        metric: `metric(example, prediction, trace=None)` as a bool or number, higher is better. None keeps every run that
            ends without an error, and leaves nothing to judge the result by.
        multitask: True trains one set of weights for all predictors that share an LM, False one for each predictor.
        train_kwargs: Settings of the training, by `dspyc.TrainingConfig`'s names or DSPy's; or a dict of them by LM.
        adapter: The adapter that the compiled predictors will run, and so are trained, with, or its name: "terse", "chat",
            "json" or "xml"; or a dict of them by LM. Without it each predictor keeps the adapter that it has now.
        exclude_demos: Train and run without the predictors' demos.
        num_threads: Examples that run at once. Default: DSPy's setting, else 8.
        teacher_lm: The LM of teacher predictors that have none of their own.
        metric_threshold: The lowest score that a run may teach with. Default: full marks, 1.0.
        max_errors: Bad examples that stop the bootstrap. Default: DSPy's setting.
        on_regression: What happens when the compiled program scores below the student: "warn", "raise" or "keep_student".
        executor: "threads", or "ray" for requests by the workers of a Ray cluster, as in BootstrapFewShot.
        run_dir: The folder of the ledger and the weights; the same compile in the same folder resumes. Default: a folder
            named after the compile under `$DSPYC_HOME`, else `~/.cache/dspyc`.
        balance: The name of a predictor whose distinct replies shall all have as many rows as the rarest.
        validation_fraction: Share of the training examples whose rows only measure the training's loss.
        holdout_fraction: Share of `trainset` that is held out for the gate when no `valset` is given; 0 for no gate.
        budget: Hard limits on calls, tokens, USD and time. Once one is reached, the rows so far are trained on, and the report
            says which it was.
        seed: Of every random choice.
        show_progress: Whether bars are drawn on a terminal or notebook.
    """

    def __init__(
        self,
        metric: Metric | None = None,
        multitask: bool = True,
        train_kwargs: Mapping[Any, Any] | None = None,
        adapter: dspy.Adapter | str | Mapping[dspy.LM, dspy.Adapter | str] | None = None,
        exclude_demos: bool = False,
        num_threads: int | None = None,
        *,
        teacher_lm: dspy.BaseLM | None = None,
        metric_threshold: float | None = None,
        max_errors: int | None = None,
        on_regression: gate.OnRegression = "warn",
        executor: Executor = "threads",
        run_dir: str | os.PathLike[str] | None = None,
        balance: str | None = None,
        validation_fraction: float = 0.1,
        holdout_fraction: float = 0.2,
        budget: Budget | None = None,
        seed: int = 0,
        show_progress: bool = True,
    ) -> None:
        super().__init__()
        if metric is not None:
            check_metric(metric)
        if on_regression not in ("warn", "raise", "keep_student"):
            raise ConfigError(f"`on_regression` is {on_regression!r}; 'warn', 'raise' and 'keep_student' are allowed.")
        check_share("validation_fraction", validation_fraction)
        check_share("holdout_fraction", holdout_fraction)
        check_limits(max_errors, budget)
        check_executor(executor)
        if teacher_lm is not None and not isinstance(teacher_lm, dspy.BaseLM):
            raise ConfigError(f"`teacher_lm` is a {type(teacher_lm).__name__}; a dspy.LM is allowed.")
        self.metric, self.metric_threshold = metric, check_number("metric_threshold", metric_threshold)
        self.multitask, self.exclude_demos, self.balance = multitask, exclude_demos, balance
        self.train_kwargs = _settings(train_kwargs)
        self.adapter, self.teacher_lm = _adapters(adapter), teacher_lm
        self.num_threads, self.max_errors = num_threads, max_errors
        self.on_regression, self.executor, self.run_dir = on_regression, executor, run_dir
        self.validation_fraction, self.holdout_fraction = validation_fraction, holdout_fraction
        self.budget, self.seed, self.show_progress = budget, seed, show_progress

    def compile(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | Sequence[dspy.Module] | None = None,
        *,
        valset: Sequence[dspy.Example] | None = None,
        traces: Sequence[Trace] | str | os.PathLike[str] | None = None,
        **unknown: Any,
    ) -> dspy.Module:
        """A compiled copy of `student`, with `report` and `save`; the arguments are left as they were.

        With no teacher, no `teacher_lm` and examples that name all predictors' outputs, rows come straight from the
        labels; with no teacher and no labels, the student teaches itself by its own good runs. With several teachers,
        all their good runs count, and the first is the one that the gate compares with. `traces`, as `dspyc.load_traces`
        reads them, or the path of their file, teach in place of a teacher: they are scored anew where `trainset` has their
        example, and those of held-out examples are left out.

        Raises:
            ConfigError, ProgramError, RenderError, DataError, ModelError: Before anything is asked: an argument, the student,
                a teacher, an example or an LM that cannot be used.
            BootstrapError, BudgetError, TrainingError, ProviderError, LedgerError: While it is at work; the same compile goes
                on from there.
            RegressionError: The result is worse, and `on_regression="raise"`; its weights stay in the run folder.
        """
        if unknown:
            allowed = "trainset, teacher, valset and traces are allowed"
            raise ConfigError(f"`compile` does not take {sorted(unknown)}; {allowed}.")
        recorded = given_traces(traces)
        train, held_out = self._split(check_examples(trainset, "trainset"), valset)
        targets = self._targets(student)
        units = plan_units(targets, self.multitask, self.train_kwargs)
        examples = len(train if recorded is None else recorded)
        for unit in units:
            check_trainable(unit, self.seed, validated=round(examples * self.validation_fraction) > 0)
            check_task_names(unit)
        teachers = self._teachers(student, teacher, train, recorded)
        threads = check_threads(self.num_threads)
        asks = self._asks(student, teachers, train, recorded)
        identity = fingerprint([asks, metric_fingerprint(self.metric), self.metric_threshold])
        plan = Plan(_stages(student, teachers, train, held_out), threads)
        named = {"compile": identity, "student": program_fingerprint(student), "data": data_fingerprint(train)}
        with sitting(
            self.run_dir,
            asks,
            plan=plan,
            fingerprints=named,
            seed=self.seed,
            budget=self.budget,
            executor=self.executor,
            train=len(train),
            held_out=len(held_out),
        ) as run:
            passes = Passes(self, run.ledger, threads, run.workers)
            if recorded is None:
                dataset = passes.rows(train, teachers, targets)
            else:
                dataset = passes.rows_of(recorded, train, held_out, targets)
            check_rows(units, dataset, run.ledger)
            before, taught = passes.judge_first(student, teachers, held_out)
            trained = train_units(units, dataset, run.ledger, self.seed, self.show_progress)
            compiled = self._assemble(student, targets, units, trained)
            after = passes.run(compiled, "compiled", held_out)
            verdict = gate.judge(before, after, taught, seed=self.seed)
            report = CompileReport(
                verdict=verdict,
                rows={name: len(rows) for name, rows in dataset.train.items()},
                dataset=dataset.report.to_dict(),
                training=[result.facts for result in trained],
                kept_student=bool(verdict and verdict.regressed and self.on_regression == "keep_student"),
                **run.facts(),
            )
            run.keep(report)
        return self._decide(student, compiled, report)

    def plan(
        self,
        student: dspy.Module,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | Sequence[dspy.Module] | None = None,
        *,
        valset: Sequence[dspy.Example] | None = None,
        traces: Sequence[Trace] | str | os.PathLike[str] | None = None,
    ) -> Plan:
        """What `compile` with the same arguments will ask for: an estimate, at no cost."""
        check_student(student)
        train, held_out = self._split(check_examples(trainset, "trainset"), valset)
        teachers = self._teachers(student, teacher, train, given_traces(traces))
        return Plan(_stages(student, teachers, train, held_out), check_threads(self.num_threads))

    def _split(
        self, train: list[dspy.Example], valset: Sequence[dspy.Example] | None
    ) -> tuple[list[dspy.Example], list[dspy.Example]]:
        """Examples to learn from, and examples that nothing but the gate sees."""
        if self.metric is None:
            return train, []
        if valset is not None:
            held = check_examples(valset, "valset", allow_empty=True)
            warn_of_shared("valset", held, "trainset", train)
            return train, held
        order = list(range(len(train)))
        random.Random(f"holdout {self.seed}").shuffle(order)
        count = min(round(len(train) * self.holdout_fraction), len(train) - 1)
        if not count and self.holdout_fraction:
            logger.warning("Too few examples to hold any out: the result will not be compared. Pass a `valset`.")
        drawn = set(order[:count])
        held = [e for i, e in enumerate(train) if i in drawn]
        return apart([e for i, e in enumerate(train) if i not in drawn], held, "learn from"), held

    def _targets(self, student: dspy.Module) -> dict[str, Target]:
        """The student's predictors as they will run once compiled. Raises before any teacher is called."""
        check_student(student)
        targets = {}
        for name, predictor in predictors(copy_program(student), frozen=False).items():
            lm = predictor.lm or dspy.settings.lm
            given = self.adapter.get(lm) if isinstance(self.adapter, Mapping) else self.adapter
            adapter = given or adapter_of(predictor)
            modalities = getattr(getattr(lm, "engine", None), "modalities", None)
            check_renderable(name, predictor, adapter=adapter, lm=lm, modalities=modalities)
            targets[name] = Target(predictor, adapter, lm, [] if self.exclude_demos else None)
        if self.balance is not None and self.balance not in targets:
            raise ConfigError(f"`balance` names {self.balance!r}; the student's predictors are {sorted(targets)}.")
        return targets

    def _teachers(
        self, student: dspy.Module, teacher: Any, train: list[dspy.Example], traces: Sequence[Trace] | None
    ) -> list[Teacher]:
        """The programs to learn from; none where labels or traces teach."""
        check_one_source(teacher, traces)
        if traces is not None:
            return []
        if teacher is None and self.teacher_lm is None and is_labelled(train, predictors(student)):
            return []
        teachers = choose_teachers(student, teacher, self.teacher_lm)
        for one in teachers:
            check_equivalent(student, one.program)
        return teachers

    def _asks(
        self,
        student: dspy.Module,
        teachers: list[Teacher],
        train: list[dspy.Example],
        traces: Sequence[Trace] | None,
    ) -> str:
        given = [] if traces is None else [[trace.id for trace in traces]]
        return fingerprint(
            [
                *given,
                program_fingerprint(student),
                [one.identity for one in teachers],
                data_fingerprint(train),
                self.seed,
            ]
        )

    def _assemble(
        self, student: dspy.Module, targets: Mapping[str, Target], units: list[Unit], trained: list[Any]
    ) -> dspy.Module:
        compiled = copy_program(student)
        lms = {name: result.lm for unit, result in zip(units, trained, strict=True) for name in unit.names}
        for name, predictor in predictors(compiled, frozen=False).items():
            predictor.lm = lms[name]
            adapt(predictor, targets[name].adapter)
            if self.exclude_demos:
                predictor.demos = []
        compiled._compiled = True
        return compiled

    def _decide(self, student: dspy.Module, compiled: dspy.Module, report: CompileReport) -> dspy.Module:
        verdict = report.verdict
        if verdict and verdict.regressed:
            if self.on_regression == "raise":
                raise gate.refuse(verdict, report.run_dir)
            logger.warning("%s", gate.refuse(verdict, report.run_dir).message)
        chosen = copy_program(student) if report.kept_student else compiled
        return artifact.attach(chosen, report)


def _settings(given: Any) -> dict[Any, Any]:
    """`train_kwargs` as a dict."""
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"`train_kwargs` is {given!r}; a dict of settings is allowed.", hint=_EXAMPLE)
    settings = dict(given or {})
    for lm, own in settings.items():
        if isinstance(lm, dspy.BaseLM) and not isinstance(own, Mapping):
            raise ConfigError(
                f"`train_kwargs` has {own!r} for {lm.model!r}; a dict of settings is allowed.", hint=_EXAMPLE
            )
    return settings


def _adapters(given: Any) -> dspy.Adapter | dict[dspy.BaseLM, dspy.Adapter] | None:
    """`adapter` with its names made adapters."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {lm: adapter_of_name(adapter) for lm, adapter in given.items()}
    return adapter_of_name(given)


def _stages(
    student: dspy.Module, teachers: Sequence[Teacher], train: Sequence[dspy.Example], held_out: Sequence[dspy.Example]
) -> list[Stage]:
    stages = [stage for one in teachers for stage in plan_stages(one.program, "teacher", train)]
    if held_out:
        stages += plan_stages(student, "student", held_out)
        others = [one for one in teachers[:1] if not one.is_program(student)]
        stages += [stage for one in others for stage in plan_stages(one.program, "teacher, held out", held_out)]
        stages += plan_stages(student, "compiled", held_out)
    return stages
