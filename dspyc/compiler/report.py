"""What a compile did, what it cost and what it proved."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from .budget import Spent
from .gate import Verdict
from .html_table import html_table
from .spending import spending_table


@dataclass(frozen=True)
class CompileReport:
    """Figures of one compile. Scores are means in the metric's unit, `seconds` wall time of this sitting.

    `calls` counts language-model calls that were paid for, by role, over all sittings of this run; `replayed` those that
    the ledger answered instead; `cost` is USD where the providers say, else None. `plan` is what was expected of models
    elsewhere and `spent` what they were asked, over all sittings. `stopped` is the limit that ended the compile early, so that
    this is the best so far; None where nothing did.
    """

    verdict: Verdict | None
    calls: dict[str, int]
    replayed: int
    cost: float | None
    seconds: float
    rows: dict[str, int]
    dataset: dict[str, Any]
    training: list[dict[str, Any]]
    run_dir: str
    seed: int
    kept_student: bool = False
    fingerprints: dict[str, str] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    spent: dict[str, Any] = field(default_factory=lambda: Spent().to_dict())
    stopped: str | None = None

    @property
    def before(self) -> float | None:
        return self.verdict.before if self.verdict else None

    @property
    def teacher(self) -> float | None:
        return self.verdict.teacher if self.verdict else None

    @property
    def after(self) -> float | None:
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
        """The comparison as a table for a terminal or a notebook."""
        table = Table(title=self._title, caption=self.conclusion or None)
        table.add_column("program")
        table.add_column("score", justify="right")
        for name, score in self._scores():
            table.add_row(name, score, style="bold" if name == "student after" else None)
        return table

    @property
    def conclusion(self) -> str:
        """What the comparison says, and what ended the compile early; empty where there is neither."""
        verdict = self.verdict
        compared = f"{verdict.outcome}, on {verdict.examples} examples" if verdict else ""
        if self.stopped:
            return f"the best so far: the budget was spent ({self.stopped}); {compared or 'not compared'}"
        return compared

    def __rich__(self) -> Table:
        return self.table()

    def _repr_html_(self) -> str:
        scores, calls = self._scores(), ", ".join(f"{count:,} of the {role}" for role, count in self.calls.items())
        spent = [f"Calls: {calls or 'none'}", *([f"{self.cost:.4f} USD"] if self.cost is not None else [])]
        said = [self.conclusion] if self.conclusion else []
        caption = " · ".join([*said, *spent, f"{self.seconds:.0f} s"])
        after = [name for name, _ in scores].index("student after") if scores else None
        return html_table(("program", "score"), scores, bold=after, title=self._title, caption=caption)

    @property
    def _title(self) -> str:
        return "Held-out comparison" if self.verdict else "Compiled without a held-out comparison"

    def _scores(self) -> list[tuple[str, str]]:
        if self.verdict is None:
            return []
        low, high = self.verdict.interval
        taught = [] if self.verdict.teacher is None else [("teacher", f"{self.verdict.teacher:.3f}")]
        return [
            ("student before", f"{self.verdict.before:.3f}"),
            *taught,
            ("student after", f"{self.verdict.after:.3f}"),
            ("difference (95 %)", f"{low:+.3f} to {high:+.3f}"),
        ]

    def spending(self) -> Table:
        """Plan and actual, side by side."""
        return spending_table(
            self.plan,
            self.spent,
            priced=self.cost is not None,
            seconds=self.seconds,
            note=", training included" if self.training else "",
        )
