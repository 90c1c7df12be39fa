"""What a compile did, what it cost and what it proved."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from .gate import Verdict
from .html_table import html_table
from .run_report import RunReport

_AFTER = "student after"


@dataclass(frozen=True)
class CompileReport(RunReport):
    """Figures of one compile, besides those of its run. Scores are means in the metric's unit.

    `rows` counts training rows by predictor, `dataset` says what became of the runs that gave none, `training` has for every
    set of weights its predictors, model, folder and losses. `kept_student`: the result was worse, and
    `on_regression="keep_student"` gave the student back.
    """

    verdict: Verdict | None
    rows: dict[str, int]
    dataset: dict[str, Any]
    training: list[dict[str, Any]]
    kept_student: bool = False

    @property
    def before(self) -> float | None:
        """The student's mean score on held-out examples; None, as the next two, where nothing was compared."""
        return self.verdict.before if self.verdict else None

    @property
    def teacher(self) -> float | None:
        """The teacher's; None too where labels taught."""
        return self.verdict.teacher if self.verdict else None

    @property
    def after(self) -> float | None:
        """The compiled program's."""
        return self.verdict.after if self.verdict else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of after − before."""
        return self.verdict.interval if self.verdict else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict.to_dict() if self.verdict else None}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "CompileReport":
        """The report that `to_dict` wrote."""
        verdict = dict(facts["verdict"]) if facts["verdict"] else None
        if verdict:
            verdict.pop("outcome")
            verdict["interval"] = tuple(verdict["interval"])
        return cls(**{**facts, "verdict": Verdict(**verdict) if verdict else None})

    def table(self) -> Table:
        """The comparison, or what was learned from where there is none, as a table for a terminal or a notebook."""
        first, second = self._columns
        table = Table(title=self._title, caption=self.conclusion or None)
        table.add_column(first)
        table.add_column(second, justify="right")
        for name, figure in self._rows():
            table.add_row(name, figure, style="bold" if name == _AFTER else None)
        return table

    @property
    def conclusion(self) -> str:
        """What the comparison says, and what ended the compile early; empty where there is neither."""
        verdict = self.verdict
        compared = f"{verdict.outcome}, on {verdict.examples} examples" if verdict else ""
        if self.stopped:
            return f"the best so far: the budget was spent ({self.stopped}); {compared or 'not compared'}"
        return compared

    def _repr_html_(self) -> str:
        rows, calls = self._rows(), ", ".join(f"{count:,} of the {role}" for role, count in self.calls.items())
        spent = [f"Calls: {calls or 'none'}", *([f"{self.spent['usd']:.4f} USD"] if self.spent["usd"] else [])]
        said = [self.conclusion] if self.conclusion else []
        caption = " · ".join([*said, *spent, f"{self.seconds:.0f} s"])
        after = next((place for place, (name, _) in enumerate(rows) if name == _AFTER), None)
        return html_table(self._columns, rows, bold=after, title=self._title, caption=caption)

    @property
    def _title(self) -> str:
        return "Held-out comparison" if self.verdict else "Compiled without a held-out comparison"

    @property
    def _columns(self) -> tuple[str, str]:
        return ("program", "score") if self.verdict else ("learned from", "number")

    def _rows(self) -> list[tuple[str, str]]:
        if self.verdict is None:
            return [(name, f"{number:,}") for name, number in self._sources() if number]
        low, high = self.verdict.interval
        taught = [] if self.verdict.teacher is None else [("teacher", f"{self.verdict.teacher:.3f}")]
        return [
            ("student before", f"{self.verdict.before:.3f}"),
            *taught,
            (_AFTER, f"{self.verdict.after:.3f}"),
            ("difference (95 %)", f"{low:+.3f} to {high:+.3f}"),
        ]

    def _sources(self) -> Iterator[tuple[str, int]]:
        """What became of the runs, and what each predictor has learned from."""
        facts = self.dataset
        labelled = "runs" not in facts and facts.get("threshold") is None
        yield "labelled examples" if labelled else "runs", facts.get("runs", facts.get("traces", 0))
        yield "failed runs", facts.get("failed", 0)
        yield "runs that scored too low", facts.get("below", 0)
        yield "good runs", facts.get("bootstrapped", 0)
        yield "duplicate rows left out", facts.get("duplicates", 0)
        yield "rows left out for balance", facts.get("balanced_away", 0)
        yield "rows that could not be written", sum(facts.get("unrenderable", {}).values())
        for name, number in self.rows.items():
            yield f"training rows of `{name}`", number
        for name, number in facts.get("demos", {}).items():
            yield f"demos of `{name}`", number
        for name, number in facts.get("shown", {}).items():
            yield f"demos of `{name}` for each input", number

    @property
    def _trained(self) -> bool:
        return bool(self.training)
