"""BootstrapFewShotWithRandomSearch: many sets of demos, of which a race finds the best.

The candidates are DSPy's (Khattab et al., 2023, arXiv 2310.03714): the student without demos, with labelled examples, and
bootstrapped from the training examples in their own order and in shuffled ones. They are made and scored at the same time,
over one pool; `compiler.race` says which are still worth a call.
"""

import contextvars
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from ..compiler import artifact
from ..compiler.budget import Budget
from ..compiler.examples import check_examples, example_keys
from ..compiler.failures import all_failed
from ..compiler.fitting import FitContext
from ..compiler.plan import Plan
from ..compiler.pool import Pool
from ..compiler.race import Lane, Race, Rule, percent
from ..compiler.ray_workers import Executor
from ..compiler.recording import Subject
from ..compiler.score import Score
from ..compiler.search_report import CandidateReport, SearchReport
from ..compiler.search_view import search_view
from ..compiler.threads import Threads
from ..compiler.trace import Trace, recorded
from ..errors import BudgetError, ConfigError
from ..evaluation import check_metric
from ..evaluation.metrics import Metric
from ..signatures import check_student, fingerprint, predictors, program_fingerprint
from .candidates import CandidateMaker
from .checks import (
    check_count,
    check_executor,
    check_fit,
    check_limits,
    check_number,
    check_teacher_settings,
    check_threads,
)
from .folds import Folds, divide
from .plans import search_stages
from .runs import data_fingerprint, sitting
from .teachers import demo_teacher

_MADE = {-3: "without demos", -2: "labelled demos", -1: "bootstrapped"}


class BootstrapFewShotWithRandomSearch(Teleprompter):
    """Choose, of many sets of demos, the one with which a student scores best.

    Args:
        metric: `metric(example, prediction, trace=None)` as a bool or number, higher is better. It gets the trace while
            demos are bootstrapped, and None while candidates are scored.
        teacher_settings: DSPy settings that the teacher runs under, as in BootstrapFewShot.
        max_bootstrapped_demos: The most good runs to find for a candidate; shuffled ones draw from 1 up to it.
        max_labeled_demos: Demos of a predictor in all.
        max_rounds: Teacher runs of an example until one is good.
        num_candidate_programs: Shuffled candidates, besides three that are not.
        num_threads: Examples that run at once. Default: DSPy's setting, else 8.
        max_errors: Failed runs that put a candidate out, or stop its bootstrap; the search goes on while one is left.
            Default: DSPy's setting.
        stop_at_score: In percent: the search ends with a candidate that has it on all of `valset`.
        metric_threshold: The lowest score of a run that becomes a demo. Default: any score above 0.
        race: Let candidates that will not win leave. False scores all of them on all of `valset`, and chooses as DSPy does.
        risk: The chance that a race drops a candidate that would have beaten a given leader on all of `valset`.
        diverse: Make candidates of examples that are unlike each other, as BootstrapFewShot does.
        fit_context: Leave out demos that do not fit the student's context, as BootstrapFewShot does.
        budget: What the search may spend: a hard limit, at which it ends with the best so far, marked as such.
        executor: "threads", or "ray" for requests by the workers of a Ray cluster, as in BootstrapFewShot.
        run_dir: The folder of the ledger; the same compile in the same folder resumes with no call repeated, and one that
            was finished takes its scores from there unless the metric's source, or DSPy's language model or adapter, which a
            metric may judge with, has changed. Default: a folder named after the compile under `$DSPYC_HOME`, else
            `~/.cache/dspyc`.
        seed: Of the race's order and of the examples that are kept aside. Candidates are numbered, and shuffled, as DSPy's.
        show_progress: Whether a live view is drawn on a terminal or notebook.
    """

    def __init__(
        self,
        metric: Metric,
        teacher_settings: Mapping[str, Any] | None = None,
        max_bootstrapped_demos: int = 4,
        max_labeled_demos: int = 16,
        max_rounds: int = 1,
        num_candidate_programs: int = 16,
        num_threads: int | None = None,
        max_errors: int | None = None,
        stop_at_score: float | None = None,
        metric_threshold: float | None = None,
        *,
        race: bool = True,
        risk: float = 0.2,
        diverse: bool = False,
        fit_context: FitContext = None,
        budget: Budget | None = None,
        executor: Executor = "threads",
        run_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        show_progress: bool = True,
    ) -> None:
        super().__init__()
        check_metric(metric)
        check_teacher_settings(teacher_settings)
        check_count("max_bootstrapped_demos", max_bootstrapped_demos, least=1)
        check_count("max_labeled_demos", max_labeled_demos)
        check_count("max_rounds", max_rounds, least=1)
        check_count("num_candidate_programs", num_candidate_programs)
        check_fit(fit_context)
        check_limits(max_errors, budget)
        check_executor(executor)
        self.rule = Rule(risk) if race else None
        self.metric, self.metric_threshold = metric, check_number("metric_threshold", metric_threshold)
        self.teacher_settings = dict(teacher_settings or {})
        self.max_bootstrapped_demos, self.max_labeled_demos = max_bootstrapped_demos, max_labeled_demos
        self.max_rounds, self.num_candidate_programs = max_rounds, num_candidate_programs
        self.diverse, self.fit_context = diverse, fit_context
        self.num_threads, self.max_errors = num_threads, max_errors
        self.stop_at_score = check_number("stop_at_score", stop_at_score)
        self.budget, self.executor, self.run_dir = budget, executor, run_dir
        self.seed, self.show_progress = seed, show_progress

    def compile(
        self,
        student: dspy.Module,
        *,
        teacher: dspy.Module | None = None,
        trainset: Sequence[dspy.Example],
        valset: Sequence[dspy.Example] | None = None,
        restrict: Iterable[int] | None = None,
        labeled_sample: bool = True,
        testset: Sequence[dspy.Example] | None = None,
    ) -> dspy.Module:
        """The winner, with `candidate_programs` as DSPy has them, `report` and `save`; the arguments are left as they were.

        `restrict` names the candidates to consider, by their numbers from -3; without `labeled_sample` candidate -2 has the
        first labelled examples. `testset` is what the winner's final score is of; without it a race takes training examples
        that had no part in the winner, a sample where they are many. Without a `valset`, folds of `trainset` are kept aside
        for both.

        Raises:
            DspycError: Its subclass says what was wrong. A compile that was stopped, however, resumes.
        """
        check_student(student)
        folds = divide(check_examples(trainset, "trainset"), valset, testset, seed=self.seed)
        numbers = self._numbers(restrict)
        chosen = demo_teacher(student, teacher, self.teacher_settings)
        maker = CandidateMaker(self, student, chosen, folds.train, labeled_sample, numbers)
        threads = check_threads(self.num_threads)
        plan = self._plan(student, chosen, folds, numbers)
        asks = self._asks(maker, folds, numbers)
        identity = fingerprint([asks, maker.scored_by])
        with sitting(
            self.run_dir,
            asks,
            plan=plan,
            fingerprints={"compile": identity, "asks": asks, "data": data_fingerprint(folds.train)},
            seed=self.seed,
            budget=self.budget,
            executor=self.executor,
            train=len(folds.train),
            validation=len(folds.validation),
        ) as run:
            # The ledger of a finished search has what it needed, and may lack what another would begin ahead of that;
            # with another metric it lacks the runs of candidates that now go further, and nothing else.
            whole = [r["fingerprints"] for r in run.ledger.events("report") if not r.get("stopped")]
            maker.ahead = all(found.get("asks") != asks for found in whole)
            finished = any(found.get("compile") == identity for found in whole)
            known = recorded(run.ledger, "candidate") if finished else {}
            with (
                _threads(min(len(numbers), threads + 2)) as makers,
                # Left before the makers are: they wait for its runs.
                Pool(run.ledger, metric=self.metric, num_threads=threads, recorded=known, workers=run.workers) as pool,
            ):
                ended = self._search(maker, folds, {n: _start(makers, maker, n, pool) for n in numbers}, pool)
            report = run.keep(self._report(maker, ended, run.facts()))
            for told in report.candidates:
                facts = {**asdict(told), **(told.score.to_dict() if told.score else {})}
                facts.pop("score")
                run.ledger.record_candidate(str(told.number), facts.pop("mean", None), facts)
        best = artifact.attach(maker.programs[ended.winner.number], report)
        best.candidate_programs = _candidate_programs(ended.race, ended.winner, maker)
        return best

    def plan(
        self,
        student: dspy.Module,
        *,
        teacher: dspy.Module | None = None,
        trainset: Sequence[dspy.Example],
        valset: Sequence[dspy.Example] | None = None,
        restrict: Iterable[int] | None = None,
        labeled_sample: bool = True,
        testset: Sequence[dspy.Example] | None = None,
    ) -> Plan:
        """What `compile` with the same arguments will ask for, at least and at most: an estimate, at no cost."""
        check_student(student)
        folds = divide(check_examples(trainset, "trainset"), valset, testset, seed=self.seed)
        chosen = demo_teacher(student, teacher, self.teacher_settings)
        return self._plan(student, chosen, folds, self._numbers(restrict))

    def _search(
        self, maker: CandidateMaker, folds: Folds, candidates: dict[int, "Future[Subject]"], pool: Pool
    ) -> "_Found":
        """The race among the candidates, as they are made, and the winner's final score.

        Raises:
            DspycError: All runs failed, or not one was allowed.
        """
        with search_view(show=self.show_progress) as watch:
            race = Race(
                folds.validation,
                example_keys(folds.validation),
                pool,
                rule=self.rule,
                seed=self.seed,
                stop_at_score=self.stop_at_score,
                max_errors=maker.max_errors,
                ahead=maker.ahead,
                watch=watch,
            )
            winner = race.run(candidates)
            if not race.spent and (failure := all_failed(_failures(race), "validation runs")):
                raise failure
            if self.rule is not None and not folds.final:
                folds = maker.with_final(folds, winner.number)
            final, refused = self._run_final(winner, folds, pool) if not race.spent else ([], race.refused)
        return _Found(race, winner, folds, final, refused)

    def _run_final(self, winner: Lane, folds: Folds, pool: Pool) -> tuple[list[Trace], BudgetError | None]:
        """The runs of the final score: where the budget refuses one, those before it, which are a sample of all."""
        assert winner.subject is not None
        examples = random.Random(f"final {self.seed}").sample(folds.final, len(folds.final))
        keys = enumerate(zip(examples, example_keys(examples), strict=True))
        runs = [pool.submit(winner.subject, example, key, i) for i, (example, key) in keys]
        done: list[Trace] = []
        for run in runs:
            try:
                done.append(run.result())
            except BudgetError as error:
                for other in runs:
                    other.cancel()
                return done, error
        return done, None

    def _report(self, maker: CandidateMaker, found: "_Found", facts: dict[str, Any]) -> SearchReport:
        race, winner, folds = found.race, found.winner, found.folds
        if race.refused is None and not maker.cut_short:
            facts = {**facts, "stopped": None}  # the choice is made; of the final score, `final_on` tells
        elif facts["stopped"] is None and race.refused is not None:
            facts = {**facts, "stopped": race.refused.message}  # a price that is not known: no limit was reached
        return SearchReport(
            winner=winner.number,
            candidates=[_told(lane, maker, winner) for lane in race.lanes],
            validation=folds.validation_name,
            final=Score.of([trace.counted for trace in found.final]),
            final_on=_final_name(folds, found.final, found.refused, raced=self.rule is not None),
            **facts,
        )

    def _plan(self, student: dspy.Module, teacher: dspy.Module, folds: Folds, numbers: list[int]) -> Plan:
        stages = search_stages(
            student,
            teacher,
            folds,
            numbers,
            most=self.max_bootstrapped_demos,
            labels=self.max_labeled_demos,
            rounds=self.max_rounds,
            race=self.rule is not None,
            stops_early=self.stop_at_score is not None,
        )
        return Plan(stages, check_threads(self.num_threads))

    def _numbers(self, restrict: Iterable[int] | None) -> list[int]:
        every = range(-3, self.num_candidate_programs)
        if restrict is None:
            return list(every)
        given = list(restrict) if isinstance(restrict, Iterable) and not isinstance(restrict, str) else None
        if given is None or not all(isinstance(number, Integral) for number in given):
            raise ConfigError(
                f"`restrict` is {restrict!r}; a list of candidates' numbers, from -3 to {every[-1]}, is allowed.",
                hint="For one candidate write restrict=[1].",
            )
        if not (chosen := [number for number in every if number in given]):
            raise ConfigError(f"`restrict` names none of the candidates, which are -3 to {every[-1]}.")
        return chosen

    def _asks(self, maker: CandidateMaker, folds: Folds, numbers: list[int]) -> str:
        """Names all that a search asks by, but its metric."""
        settings = [self.metric_threshold, self.max_bootstrapped_demos, self.max_labeled_demos, self.max_rounds]
        settings += [self.diverse, self.fit_context]
        return fingerprint(
            [
                *(program_fingerprint(maker.student), program_fingerprint(maker.teacher)),
                *map(data_fingerprint, (folds.train, folds.validation, folds.final)),
                *(settings, numbers, maker.labeled_sample, self.seed),
            ]
        )


@dataclass(frozen=True)
class _Found:
    """How a search ended: its race, the winner, the runs of its final score and why there are none of them."""

    race: Race
    winner: Lane
    folds: Folds
    final: list[Trace]
    refused: BudgetError | None


@contextmanager
def _threads(number: int) -> Iterator[Threads]:
    threads = Threads(number)
    try:
        yield threads
    except Exception:
        threads.end(abandon=True)
        raise
    except BaseException:  # Ctrl-C: the pool, which is left first, has waited the moment that there is
        threads.end(abandon=True, grace=0.0)
        raise
    threads.end(abandon=False)


def _start(makers: Threads, maker: CandidateMaker, number: int, pool: Pool) -> "Future[Subject]":
    context = contextvars.copy_context()  # DSPy's settings live in the context
    return makers.submit(context.run, maker.make, number, pool)


def _failures(race: Race) -> list[Trace]:
    """The runs that failed, unless one was scored."""
    scored = any(place not in lane.failed for lane in race.lanes for place in range(lane.seen))
    return [] if scored else [trace for lane in race.lanes for trace in lane.failed.values()]


def _told(lane: Lane, maker: CandidateMaker, winner: Lane) -> CandidateReport:
    program = maker.programs.get(lane.number)
    named = predictors(program, frozen=False) if program is not None else {}
    return CandidateReport(
        number=lane.number,
        made=_MADE.get(lane.number, "bootstrapped, shuffled"),
        demos={name: len(predictor.demos) for name, predictor in named.items()},
        score=Score.of([float(score) for score in lane.judged]),
        failed=sum(place < len(lane.judged) for place in lane.failed),
        ended="won" if lane is winner else lane.left or f"scored no higher than candidate {winner.number} on all",
    )


def _final_name(folds: Folds, final: list[Trace], refused: BudgetError | None, *, raced: bool) -> str:
    if final:
        name = folds.final_name
        return name if refused is None else f"{len(final)} of {name}, before the budget was spent"
    if refused is not None:
        return "the budget was spent"
    return "every training example had a part in it; pass a `testset`" if raced else "pass a `testset`"


def _candidate_programs(race: Race, winner: Lane, maker: CandidateMaker) -> list[dict[str, Any]]:
    """DSPy's list, by falling score, but after a race the winner first and then those that came further.

    `subscores` are by the order of the examples, None where a candidate was not judged; `score` is the mean of the others.
    """
    entries = []
    for lane in race.lanes:
        if len(lane.judged):
            facts = {"score": percent(lane.judged), "subscores": race.by_example(lane), "seed": lane.number}
            place = (lane is winner and race.rule is not None, len(lane.judged), facts["score"])
            entries.append((place, {**facts, "program": maker.programs[lane.number]}))
    entries.sort(key=lambda entry: entry[0], reverse=True)
    return [entry for _, entry in entries]
