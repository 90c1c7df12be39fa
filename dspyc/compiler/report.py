"""What a compile did, what it cost and what it proved."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from .gate import Verdict


@dataclass(frozen=True)
class CompileReport:
    """Figures of one compile. Scores are means in the metric's unit, `seconds` wall time of this sitting.

    `calls` counts language-model calls that were paid for, by role, over all sittings of this run; `replayed` those that
    the ledger answered instead; `cost` is USD where the providers say, else None.
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
        table = Table(title="Held-out comparison" if self.verdict else "Compiled without a held-out comparison")
        table.add_column("program")
        table.add_column("score", justify="right")
        if self.verdict:
            low, high = self.verdict.interval
            table.add_row("student before", f"{self.verdict.before:.3f}")
            if self.verdict.teacher is not None:
                table.add_row("teacher", f"{self.verdict.teacher:.3f}")
            table.add_row("student after", f"{self.verdict.after:.3f}", style="bold")
            table.add_row("difference (95 %)", f"{low:+.3f} to {high:+.3f}")
            table.caption = f"{self.verdict.outcome}, on {self.verdict.examples} examples"
        return table
