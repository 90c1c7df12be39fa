"""What every report says of the run that it is of."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from .budget import Spent
from .plan import between, in_usd


@dataclass(frozen=True, kw_only=True)
class RunReport(ABC):
    """What every report says of its run: `seconds` is the wall time of this sitting.

    `calls` counts the answers of language models by role, each once however many sittings this run had, and those of models
    on this machine too, which cost nothing; `replayed` of them were there before this sitting. `plan` is what was expected of
    models elsewhere and `spent` what those alone were asked, over all sittings. `stopped` is the limit that ended the run
    early, so that this is the best so far; None where nothing did. `run_dir` is empty where nothing was run, so that there was
    nothing to record. `fingerprints` name the compile, the data and the programs by their content.
    """

    calls: dict[str, int]
    seconds: float
    run_dir: str
    seed: int
    fingerprints: dict[str, str] = field(default_factory=dict)
    replayed: int = 0
    plan: dict[str, Any] | None = None
    spent: dict[str, Any] = field(default_factory=lambda: Spent().to_dict())
    stopped: str | None = None

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON, which `from_dict` reads."""

    @classmethod
    @abstractmethod
    def from_dict(cls, facts: dict[str, Any]) -> "RunReport":
        """The report that `to_dict` wrote."""

    @property
    @abstractmethod
    def conclusion(self) -> str:
        """What was found, in a sentence or two."""

    @abstractmethod
    def table(self) -> Table:
        """What was found, for a terminal or a notebook."""

    def spending(self) -> Table:
        """What the run was to spend on models elsewhere by its plan, and what it spent, side by side."""
        plan, spent = self.plan, self.spent
        table = Table(title="Spent on models elsewhere")
        for name in ("", "plan", "actual"):
            table.add_column(name, justify="right" if name else "left")
        table.add_row("calls", between(plan["least"], plan["calls"]) if plan else "–", f"{spent['calls']:,}")
        table.add_row("tokens", f"{plan['tokens']:,}" if plan else "–", f"{spent['tokens']:,}")
        known = spent["usd"] or not spent["calls"]
        table.add_row("USD", in_usd(plan["usd"]) if plan else "–", in_usd(spent["usd"] if known else None))
        note = ", training included" if self._trained else ""
        table.add_row("seconds", f"{plan['seconds']:.0f}" if plan else "–", f"{self.seconds:.0f}{note}")
        if plan and plan["least"] < plan["calls"]:
            table.caption = "tokens, USD and seconds of the plan are those of the most calls"
        return table

    def __rich__(self) -> Table:
        return self.table()

    @property
    def _trained(self) -> bool:
        """Whether `seconds` has a training in it."""
        return False
