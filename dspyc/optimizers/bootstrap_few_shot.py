"""BootstrapFewShot: a teacher's good runs become demos in a student's prompts.

The method is DSPy's (Khattab et al., 2023, arXiv 2310.03714): run a teacher over the training examples in their order,
take from each run that the metric accepts one call of every predictor as a demo, and fill up with labelled examples.
The teacher runs on many examples at once, and every call is in a ledger before the next.
"""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from ..compiler import artifact
from ..compiler.budget import Budget
from ..compiler.demos import spread
from ..compiler.examples import check_examples
from ..compiler.fitting import FitContext
from ..compiler.plan import Plan
from ..compiler.pool import Pool
from ..compiler.ray_workers import Executor
from ..compiler.report import CompileReport
from ..compiler.trace import Trace
from ..compiler.traces_file import given_traces
from ..evaluation import check_metric, metric_fingerprint
from ..evaluation.metrics import Metric
from ..signatures import fingerprint, predictors, program_fingerprint
from .checks import (
    check_count,
    check_executor,
    check_fit,
    check_limits,
    check_number,
    check_one_source,
    check_teacher_settings,
    check_threads,
)
from .demonstrate import Demonstrated, Sizes, demonstrate, demonstrate_recorded
from .plans import bootstrap_stages
from .runs import data_fingerprint, sitting
from .teachers import demo_teacher


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
            machine, whose context is known exactly. True, False and the default apply also to the labelled demos that an
            uncompiled teacher sees, against the teacher's own context. A number limits the student only.
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
        plan = self._plan(program, train)
        with sitting(
            self.run_dir,
            asks,
            plan=plan,
            fingerprints={"compile": identity, "data": data_fingerprint(train)},
            seed=self.seed,
            budget=self.budget,
            executor=self.executor,
            train=len(train),
        ) as run:
            if program is None:
                made = demonstrate_recorded(
                    student,
                    recorded or [],
                    train,
                    sizes=sizes,
                    metric=self.metric,
                    metric_threshold=self.metric_threshold,
                    seed=self.seed,
                )
            else:
                with Pool(run.ledger, metric=self.metric, num_threads=threads, workers=run.workers) as pool:
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
            report = run.keep(_report(made, run.facts()))
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
        check_one_source(teacher, traces)
        return demo_teacher(student, teacher, self.teacher_settings) if traces is None else None

    def _plan(self, teacher: dspy.Module | None, train: list[dspy.Example]) -> Plan:
        if teacher is None:
            return Plan([], check_threads(self.num_threads))
        sizes = {"labels": self.max_labeled_demos, "rounds": self.max_rounds}
        stages = bootstrap_stages(teacher, train, [self.max_bootstrapped_demos], **sizes)
        return Plan(stages, check_threads(self.num_threads))


def _report(made: Demonstrated, facts: dict[str, Any]) -> CompileReport:
    runs = [run for attempt in made.attempts for run in attempt.runs]
    named = predictors(made.program, frozen=False)
    return CompileReport(
        verdict=None,
        rows={},
        dataset={
            "runs": len(runs),
            "failed": sum(run.error is not None for run in runs),
            "bootstrapped": sum(attempt.good for attempt in made.attempts),
            "demos": {name: len(predictor.demos) for name, predictor in named.items()},
            "budget_spent": facts["stopped"],
        },
        training=[],
        **facts,
    )
