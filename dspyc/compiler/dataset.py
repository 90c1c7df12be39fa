"""From traces to training rows: what is kept, what is dropped and why, and a split that leaks nothing."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from ..errors import ConfigError, DataError, RenderError
from ..evaluation.intervals import SAME
from ..signatures import fingerprint, row
from ..signatures.render import Row
from .examples import content_of
from .trace import Trace

FULL_MARKS = 1.0  # what a score has to reach where no threshold is given


@dataclass(frozen=True)
class Target:
    """A student's predictor as training needs it: the adapter and LM it will run with, and whether its demos stay."""

    predictor: dspy.Predict
    adapter: dspy.Adapter
    lm: dspy.BaseLM
    demos: list[Any] | None = None  # None: the predictor's own


@dataclass
class DatasetReport:
    """Where every trace and step went. Counts of traces: `traces`, `failed`, `below`; all others count rows."""

    traces: int = 0
    failed: int = 0
    below: int = 0
    threshold: float | None = None
    best_score: float | None = None
    duplicates: int = 0
    balanced_away: int = 0
    unrenderable: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)  # by predictor

    def explain(self) -> str:
        """One sentence for an error or a log."""
        parts = [f"{self.traces} traces"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.below:
            parts.append(f"{self.below} scored below {self.threshold:g} (the best scored {self.best_score:g})")
        if self.duplicates:
            parts.append(f"{self.duplicates} duplicate rows dropped")
        if self.balanced_away:
            parts.append(f"{self.balanced_away} rows dropped for balance")
        parts += [f"{count} rows could not be written: {reason}" for reason, count in self.unrenderable.most_common(3)]
        return ", ".join([*parts, f"{sum(self.rows.values())} rows kept"])

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "unrenderable": dict(self.unrenderable), "rows": dict(self.rows)}


@dataclass
class Dataset:
    """Rows by predictor name. Those of one example are on one side; every predictor that has rows has some to learn from."""

    train: dict[str, list[Row]]
    validation: dict[str, list[Row]]
    report: DatasetReport


def from_traces(
    traces: Iterable[Trace],
    targets: Mapping[str, Target],
    *,
    threshold: float | None,
    scored: bool,
    balance: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Rows of every step of every good trace. Without a metric (`scored=False`) a run that ended well is good.

    Raises:
        DataError: No row is left; the message says where they went.
    """
    report = DatasetReport(threshold=FULL_MARKS if threshold is None else threshold)
    rows: list[Row] = []
    for trace in traces:
        report.traces += 1
        if trace.error is not None:
            report.failed += 1
            continue
        if scored:
            score = trace.score if trace.score is not None else float("-inf")
            report.best_score = max(score, report.best_score if report.best_score is not None else score)
            if score < report.threshold - SAME:  # type: ignore[operator]
                report.below += 1
                continue
        for step in trace.steps:
            if step.outputs is not None and step.predictor in targets:
                _add(rows, report, targets[step.predictor], step.predictor, step.inputs, step.outputs, trace)
    return _finish(rows, report, balance, validation_fraction, seed)


def from_labels(
    examples: Sequence[dspy.Example],
    keys: Sequence[str],
    targets: Mapping[str, Target],
    *,
    balance: str | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Rows straight from labelled examples, for programs whose predictors' fields the examples name (`is_labelled`).

    Raises:
        DataError: No row is left.
    """
    report = DatasetReport()
    rows: list[Row] = []
    for example, key in zip(examples, keys, strict=True):
        report.traces += 1
        trace = Trace(f"label-{key}", "labels", 0, content_of(key))
        for name, target in targets.items():
            fields = target.predictor.signature
            inputs = {k: example[k] for k in fields.input_fields if k in example}
            outputs = {k: example[k] for k in fields.output_fields}
            _add(rows, report, target, name, inputs, outputs, trace)
    return _finish(rows, report, balance, validation_fraction, seed)


def is_labelled(examples: Sequence[dspy.Example], predictors: Mapping[str, dspy.Predict]) -> bool:
    """Whether every example holds every output of every predictor, and every input but optional ones."""

    def covers(example: dspy.Example, predictor: dspy.Predict) -> bool:
        signature = predictor.signature
        needed = [k for k, f in signature.input_fields.items() if f.is_required()]
        return all(k in example for k in [*needed, *signature.output_fields])

    return all(covers(example, predictor) for example in examples for predictor in predictors.values())


def _add(
    rows: list[Row],
    report: DatasetReport,
    target: Target,
    name: str,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    trace: Trace,
) -> None:
    try:
        made = row(target.predictor, inputs, outputs, adapter=target.adapter, lm=target.lm, demos=target.demos)
    except RenderError as error:
        report.unrenderable[f"`{name}`: {error.message}"] += 1
        return
    made["predictor"], made["example"], made["trace"] = name, trace.example, trace.id
    rows.append(made)


def _finish(rows: list[Row], report: DatasetReport, balance: str | None, fraction: float, seed: int) -> Dataset:
    unique: dict[str, Row] = {}
    for candidate in rows:
        content = fingerprint([candidate["predictor"], candidate["messages"], candidate.get("tools")])
        unique.setdefault(content, candidate)
    report.duplicates = len(rows) - len(unique)
    kept = list(unique.values())
    if balance is not None:
        kept = _balance(kept, balance, report, seed)
    report.rows = Counter(r["predictor"] for r in kept)
    if not kept:
        raise DataError(f"There is nothing to train on: {report.explain()}.", hint=_remedy(report))
    held_out = _with_rows_left(_held_out(sorted({r["example"] for r in kept}), fraction, seed), kept)
    train: dict[str, list[Row]] = defaultdict(list)
    validation: dict[str, list[Row]] = defaultdict(list)
    for r in kept:
        (validation if r["example"] in held_out else train)[r["predictor"]].append(r)
    return Dataset(dict(train), dict(validation), report)


def _held_out(examples: list[str], fraction: float, seed: int) -> set[str]:
    count = round(len(examples) * fraction)
    return set(random.Random(f"validation {seed}").sample(examples, count)) if count < len(examples) else set()


def _with_rows_left(held_out: set[str], rows: Sequence[Row]) -> set[str]:
    """The held-out examples, less one for each predictor that would have no row to learn from."""
    by_predictor: dict[str, set[str]] = defaultdict(set)
    for r in rows:
        by_predictor[r["predictor"]].add(r["example"])
    left = set(held_out)
    for examples in by_predictor.values():
        if examples <= left:
            left.remove(min(examples))
    return left


def _balance(rows: list[Row], predictor: str, report: DatasetReport, seed: int) -> list[Row]:
    """As many rows of `predictor` for each distinct reply as its rarest reply has; other predictors' rows all stay."""
    mine = [r for r in rows if r["predictor"] == predictor]
    if not mine:
        raise ConfigError(
            f"`balance` names predictor {predictor!r}, which has no rows; {sorted({r['predictor'] for r in rows})} have."
        )
    groups: dict[str, list[Row]] = defaultdict(list)
    for r in mine:
        groups[str(r["messages"][-1].get("content"))].append(r)
    size = min(map(len, groups.values()))
    rng = random.Random(f"balance {seed}")
    chosen = {id(r) for group in groups.values() for r in rng.sample(group, size)}
    report.balanced_away = len(mine) - len(chosen)
    return [r for r in rows if r["predictor"] != predictor or id(r) in chosen]


def _remedy(report: DatasetReport) -> str:
    if report.below:
        return "Lower `metric_threshold`, or use a better teacher."
    if report.failed:
        return "Look at the errors: `dspyc runs show` with the run's folder lists them."
    if report.unrenderable:
        return "Use an adapter that can write these answers, such as dspyc.TerseAdapter()."
    return "Check that the teacher calls the predictors that the student has."
