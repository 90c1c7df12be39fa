"""BetterTogether: optimizers one after another, prompts and weights in turns, each step judged before the next builds on it.

The method is DSPy's (Soylu et al., 2024, arXiv 2407.10930). Here every step meets the same held-out examples, which no step
has seen, and one that made the program worse is not built upon.
"""

import copy
import inspect
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import GEPA, Teleprompter
from dspy.teleprompt import BootstrapFinetune as DSPyBootstrapFinetune
from dspy.teleprompt.grpo import GRPO

from ..compiler import artifact
from ..compiler.budget import Budget, counted_by
from ..compiler.examples import check_examples
from ..compiler.failures import all_failed
from ..compiler.plan import Plan, plan_stages
from ..compiler.ray_workers import Executor
from ..compiler.sequence_report import SequenceReport
from ..errors import BudgetError, ConfigError, ProgramError
from ..evaluation import check_metric, metric_fingerprint
from ..evaluation.metrics import Metric
from ..signatures import check_student, copy_program, fingerprint, predictors, program_fingerprint
from .bootstrap_finetune import BootstrapFinetune
from .checks import check_executor, check_limits, check_share, check_threads
from .folds import apart, warn_of_shared
from .judge import Judge
from .kept_steps import KeptStep, optimizer_key, without_results
from .plans import sum_of
from .random_search import BootstrapFewShotWithRandomSearch
from .runs import data_fingerprint, sitting

logger = logging.getLogger(__name__)

_ARROW = " -> "
_UNTAUGHT = (GEPA, GRPO)  # the `teacher` of their `compile` has to be None, or the very student of the step


class BetterTogether(Teleprompter):
    """Run optimizers in a sequence and return the program of the best step.

    Args:
        metric: `metric(example, prediction, trace=None)` as a bool or number, higher is better.
        **optimizers: Any DSPy optimizers, by the names that strategies use. Default: `p`, a
            BootstrapFewShotWithRandomSearch, and `w`, a BootstrapFinetune, both of dspyc and with this metric.
    """

    def __init__(self, metric: Metric, **optimizers: Teleprompter) -> None:
        super().__init__()
        check_metric(metric)
        self.metric = metric
        self.optimizers: dict[str, Teleprompter] = optimizers or {
            "p": BootstrapFewShotWithRandomSearch(metric),
            "w": BootstrapFinetune(metric),
        }
        for name, optimizer in self.optimizers.items():
            if not isinstance(optimizer, Teleprompter):
                raise ConfigError(f"`{name}` is a {type(optimizer).__name__}; a DSPy optimizer is allowed.")

    def compile(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | Sequence[dspy.Module] | None = None,
        valset: Sequence[dspy.Example] | None = None,
        num_threads: int | None = None,
        max_errors: int | None = None,
        provide_traceback: bool | None = None,
        seed: int | None = None,
        valset_ratio: float = 0.1,
        shuffle_trainset_between_steps: bool = True,
        strategy: str = "p -> w -> p",
        optimizer_compile_args: Mapping[str, Mapping[str, Any]] | None = None,
        budget: Budget | None = None,
        executor: Executor = "threads",
        run_dir: str | os.PathLike[str] | None = None,
    ) -> dspy.Module:
        """The program of the best step, with `candidate_programs` as DSPy has them, `report` and `save`.

        Each step starts from the previous step's program, or from the best one if the previous was clearly worse (its 95 %
        interval lies below 0). Predictors whose language model an optimizer took away get it back. Steps by optimizers that
        keep no record of their own (DSPy's) are not repeated on a resume if they changed prompts only; otherwise they run
        again.

        Args:
            student: The program that the first step starts from.
            trainset: What the steps learn from.
            teacher: One or several programs: optimizers that take several get all, those that take one the first.
            valset: Examples that only compare the steps. Default: a share of `trainset`.
            num_threads: Examples that run at once, in steps too whose optimizers have no number of their own.
            max_errors: Failed runs of one program, on the examples that compare, that end the compile. Default: a failed run
                counts as 0, for a student may fail before its training.
            provide_traceback: Whether the log has the traceback of a step that fails.
            seed: Of the share that is held out and of the examples' order. Default: 0.
            valset_ratio: Share of `trainset` held out where there is no `valset`; 0 returns the last program, not compared.
            shuffle_trainset_between_steps: Whether each step gets the examples in an order of its own.
            strategy: Names of optimizers with `->` between them.
            optimizer_compile_args: Further arguments of an optimizer's `compile`, by its name; they win over these.
            budget: A hard limit on the whole sequence, counted for optimizers of dspyc: at it the best program so far is
                returned, and the report says so.
            executor: "threads", or "ray" for requests by a Ray cluster, here and in optimizers that have such a setting.
            run_dir: The folder of the record, with one for each step in it; the same compile goes on from there. Default: a
                folder named after the compile under `$DSPYC_HOME`, else `~/.cache/dspyc`.

        Raises:
            DspycError: Its subclass says what was wrong.
            BudgetError: The budget was spent before the student could be scored.
            ConfigError: The metric failed on all held-out examples, or an argument cannot be used.
            BootstrapError: `max_errors` runs of a program failed, or all runs of all programs did.
            Exception: A step's own error, as it was raised; what the steps before it paid for is kept.
        """
        seed = seed or 0
        check_limits(max_errors, budget)
        check_executor(executor)
        check_student(student)
        names, given = self._names(strategy), self._arguments(optimizer_compile_args or {})
        trainset = check_examples(trainset, "trainset")  # lists, which can be read twice
        valset = None if valset is None else check_examples(valset, "valset", allow_empty=True)
        train, held_out = _split(trainset, valset, valset_ratio, seed)
        shuffled_by = seed if shuffle_trainset_between_steps else None
        teachers, traceback = _listed(teacher), bool(provide_traceback)
        sequence = _Sequence(names, train, teachers, given, num_threads, executor, shuffled_by, traceback)
        asks = self._asks(student, train, held_out, names, seed)
        identity = fingerprint([asks, metric_fingerprint(self.metric)])
        threads = check_threads(num_threads)
        plan = self._plan(student, names, given, train, held_out, teachers, threads)
        with sitting(
            run_dir,
            asks,
            plan=plan,
            fingerprints={"compile": identity, "data": data_fingerprint(train)},
            seed=seed,
            budget=budget,
            executor=executor,
            strategy=strategy,
            held_out=len(held_out),
        ) as run:
            judge = Judge(self.metric, held_out, run.ledger, threads, max_errors, seed, run.workers)
            judge.add("", copy_program(student), 0.0)
            self._take(sequence, judge)
            if run.ledger.meter.exhausted is None and (failure := all_failed(judge.failures, "held-out runs")):
                raise failure
            report = run.keep(SequenceReport(steps=judge.steps, best=judge.best, examples=len(held_out), **run.facts()))
        chosen = artifact.attach(copy_program(judge.programs[judge.best]), report)
        chosen.candidate_programs = judge.candidate_programs()
        chosen.flag_compilation_error_occurred = False
        chosen._compiled = True
        return chosen

    def plan(
        self,
        student: dspy.Module,
        *,
        trainset: Sequence[dspy.Example],
        teacher: dspy.Module | Sequence[dspy.Module] | None = None,
        valset: Sequence[dspy.Example] | None = None,
        num_threads: int | None = None,
        seed: int | None = None,
        valset_ratio: float = 0.1,
        strategy: str = "p -> w -> p",
        optimizer_compile_args: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Plan:
        """What `compile` with the same arguments will ask for, by the plans of its optimizers: an estimate, at no cost.

        Every step is taken to start from the student; optimizers without a `plan` are named in `unknown`.
        """
        check_student(student)
        names, given = self._names(strategy), self._arguments(optimizer_compile_args or {})
        train, held_out = _split(check_examples(trainset, "trainset"), valset, valset_ratio, seed or 0)
        return self._plan(student, names, given, train, held_out, _listed(teacher), check_threads(num_threads))

    def _plan(
        self,
        student: dspy.Module,
        names: list[str],
        given: dict[str, dict[str, Any]],
        train: list[dspy.Example],
        held_out: list[dspy.Example],
        teachers: list[dspy.Module],
        threads: int,
    ) -> Plan:
        plans: list[tuple[str, Plan | None]] = []
        for place, name in enumerate(names):
            optimizer = self.optimizers[name]
            planned = getattr(optimizer, "plan", None)
            arguments = {"trainset": train, **_taught_by(optimizer, teachers), **given.get(name, {})}
            taken = inspect.signature(planned).parameters if planned is not None else {}
            arguments = {key: value for key, value in arguments.items() if key in taken}
            plans.append((f"{place + 1}. {name}", planned(student, **arguments) if planned is not None else None))
        compared = plan_stages(student, "held-out", held_out, runs=len(held_out) * (len(names) + 1)) if held_out else []
        return sum_of(plans, compared, threads)

    def _take(self, sequence: "_Sequence", judge: Judge) -> None:
        """Take the steps, each from the judge's base, until the budget is spent.

        Raises:
            Exception: A step's own error, as it was raised.
        """
        ledger, train = judge.ledger, list(sequence.train)
        made_by = {name: optimizer_key(self.optimizers[name]) for name in sequence.names}
        for place, name in enumerate(sequence.names):
            so_far, begun = _ARROW.join(sequence.names[: place + 1]), time.monotonic()
            if sequence.shuffled_by is not None:
                random.Random(f"step {place} {sequence.shuffled_by}").shuffle(train)
            folder = ledger.run_dir / f"step-{place + 1}-{name}"
            optimizer = _set_up(self.optimizers[name], folder, sequence.executor)
            arguments = {"trainset": list(train), **_taught_by(optimizer, sequence.teachers)}
            arguments |= {**_threads_of(optimizer, sequence.num_threads), **sequence.given.get(name, {})}
            try:
                before = _uncompiled(judge.base, judge.programs[0])
                kept = KeptStep.of(folder, made_by[name], before, arguments)
                made = kept.program() if kept is not None else None
                if kept is not None and made is not None:
                    kept.announce(f"Step {so_far}", made)
                else:
                    with counted_by(ledger.meter), dspy.context(**_threads_setting(sequence.num_threads)):
                        made = optimizer.compile(copy_program(before), **arguments)
                    _give_back_lms(made, judge.base, f"step {so_far}, by {type(optimizer).__name__}")
                    if kept is not None and ledger.meter.exhausted is None:  # else there is more to make
                        kept.keep(made)
                if not judge.add(so_far, made, time.monotonic() - begun):
                    return
            except Exception as error:
                if isinstance(error, BudgetError) and ledger.meter.exhausted is not None:
                    return
                logger.error(
                    "Step %s failed. What came before it is kept: the same compile goes on from %s.",
                    *(so_far, ledger.run_dir),
                    exc_info=sequence.with_traceback,
                )
                raise

    def _names(self, strategy: str) -> list[str]:
        names = [name.strip() for name in strategy.split("->")] if isinstance(strategy, str) else []
        unknown = [name for name in names if name not in self.optimizers]
        if not names or unknown:
            raise ConfigError(
                f"`strategy` is {strategy!r}; names of {sorted(self.optimizers)} with `->` between them are allowed.",
                hint="Optimizers get their names in the constructor: BetterTogether(metric, p=…, w=…).",
            )
        return names

    def _arguments(self, given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, arguments in given.items():
            if name not in self.optimizers:
                raise ConfigError(f"`optimizer_compile_args` names {name!r}; there are {sorted(self.optimizers)}.")
            allowed = set(inspect.signature(self.optimizers[name].compile).parameters) - {"student", "unknown"}
            if unknown := sorted(set(arguments) - allowed):
                raise ConfigError(
                    f"`optimizer_compile_args` gives {name!r} {unknown}; its `compile` takes {sorted(allowed)}.",
                    hint="The student of each step is the program before it.",
                )
        return {name: dict(arguments) for name, arguments in given.items()}

    def _asks(
        self,
        student: dspy.Module,
        train: list[dspy.Example],
        held_out: list[dspy.Example],
        names: list[str],
        seed: int,
    ) -> str:
        data = [data_fingerprint(train), data_fingerprint(held_out)]
        return fingerprint([program_fingerprint(student), *data, names, seed])


@dataclass(frozen=True)
class _Sequence:
    """The steps to take, and what their optimizers are given."""

    names: list[str]
    train: list[dspy.Example]
    teachers: list[dspy.Module]
    given: dict[str, dict[str, Any]]  # further arguments of `compile`, by optimizer
    num_threads: int | None
    executor: Executor
    shuffled_by: int | None  # the seed of the examples' order, anew in each step; None leaves it
    with_traceback: bool  # in the log, where a step fails


def _give_back_lms(made: dspy.Module, before: dspy.Module, step: str) -> None:
    """Give predictors of `made` that have no language model, in place, the one that theirs had in `before`.

    DSPy's few-shot optimizers begin by a reset, which takes it away.

    Raises:
        ProgramError: There is none, and no global one.
    """
    had = {name: predictor.lm for name, predictor in predictors(before).items()}
    for name, predictor in predictors(made).items():
        if predictor.lm is None:
            predictor.lm = had.get(name)
        if predictor.lm is None and dspy.settings.lm is None:
            raise ProgramError(
                f"The predictor `{name}` has no language model after {step}; there is no global one either.",
                hint="Call dspy.configure(lm=...), or have the optimizer keep each predictor's `lm`.",
            )


def _listed(teacher: dspy.Module | Sequence[dspy.Module] | None) -> list[dspy.Module]:
    return [] if teacher is None else list(teacher) if isinstance(teacher, Sequence) else [teacher]


def _uncompiled(program: dspy.Module, student: dspy.Module) -> dspy.Module:
    """A copy that an optimizer takes as its student, without the report and the results of the step that made it."""
    copied = without_results(program, student)
    copied._compiled = False
    if isinstance(copied, artifact.CompiledMixin):
        artifact.attach(copied, None)
    return copied


def _split(
    train: list[dspy.Example], valset: Sequence[dspy.Example] | None, share: float, seed: int
) -> tuple[list[dspy.Example], list[dspy.Example]]:
    """Examples to learn from, and those that compare the steps."""
    if valset is not None:
        held_out = check_examples(valset, "valset", allow_empty=True)
        warn_of_shared("valset", held_out, "trainset", train)
        return train, held_out
    check_share("valset_ratio", share)
    drawn = set(random.Random(f"held out {seed}").sample(range(len(train)), int(share * len(train))))
    if share and not drawn:
        logger.warning("Too few examples to hold any out: steps will not be compared. Pass a `valset`.")
    held_out = [example for i, example in enumerate(train) if i in drawn]
    return apart([example for i, example in enumerate(train) if i not in drawn], held_out, "learn from"), held_out


def _set_up(optimizer: Teleprompter, folder: Path, executor: Executor) -> Teleprompter:
    """The optimizer with its record in `folder`, and with `executor`, as far as it has such settings and was given none."""
    placed = copy.copy(optimizer)
    if getattr(placed, "run_dir", folder) is None:
        placed.run_dir = folder
    if getattr(placed, "executor", None) == "threads":
        placed.executor = executor
    return placed


def _threads_of(optimizer: Teleprompter, num_threads: int | None) -> dict[str, Any]:
    """The argument `num_threads` of an optimizer's `compile`, if it takes one and there is one."""
    taken = num_threads is not None and "num_threads" in inspect.signature(optimizer.compile).parameters
    return {"num_threads": num_threads} if taken else {}


def _threads_setting(num_threads: int | None) -> dict[str, Any]:
    """The DSPy setting that optimizers with no number of threads of their own go by."""
    return {} if num_threads is None else {"num_threads": num_threads}


def _taught_by(optimizer: Teleprompter, teachers: list[dspy.Module]) -> dict[str, Any]:
    """The argument `teacher` of an optimizer's `compile`, if it takes one."""
    taken = "teacher" in inspect.signature(optimizer.compile).parameters and not isinstance(optimizer, _UNTAUGHT)
    if not teachers or not taken:
        return {}
    several = isinstance(optimizer, (BootstrapFinetune, DSPyBootstrapFinetune))
    return {"teacher": list(teachers) if several else teachers[0]}
