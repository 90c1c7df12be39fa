"""What each step of a sequence of optimizers was worth."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from ..evaluation.intervals import Difference
from .html_table import html_table
from .run_report import RunReport
from .score import Score

_COLUMNS = ("program", "score (95 %)", "against the best before it", "outcome")
Outcome = Difference | Literal["not compared"]


@dataclass(frozen=True)
class StepReport:
    """A step: the optimizers so far, the held-out score, and the 95 % interval of its difference to the best before it.

    `outcome` "worse" means that the next step did not build on this one. `failed` runs count as 0 in the score.
    """

    strategy: str
    score: Score | None
    difference: tuple[float, float] | None
    outcome: Outcome
    seconds: float
    failed: int = 0

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "StepReport":
        difference = facts["difference"]
        return cls(
            **{
                **facts,
                "score": Score.from_dict(facts["score"]),
                "difference": (difference[0], difference[1]) if difference else None,
            }
        )


@dataclass(frozen=True)
class SequenceReport(RunReport):
    """Figures of a sequence, besides those of its run.

    `steps[0]` is the student as it was, and `best` says which step was returned. `calls` are those that compared the steps, by
    role; what the steps paid for themselves stands in the reports of their own folders, below `run_dir`. `plan` and `spent`
    are of the comparison and all steps, as far as optimizers have plans and ledgers. The best of several steps is a little
    flattered by the examples that chose it.
    """

    steps: list[StepReport]
    best: int
    examples: int

    def to_dict(self) -> dict[str, Any]:
        steps = [{**asdict(step), "score": step.score and step.score.to_dict()} for step in self.steps]
        return {"report": "sequence", **asdict(self), "steps": steps}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "SequenceReport":
        """The report that `to_dict` wrote."""
        known = {**facts, "steps": [StepReport.from_dict(step) for step in facts["steps"]]}
        known.pop("report")
        return cls(**known)

    @property
    def conclusion(self) -> str:
        """A sentence: which program was returned, and what it scored."""
        chosen = self.steps[self.best]
        name = f"The program after {chosen.strategy}" if chosen.strategy else "The student as it was"
        stopped = f" The sequence was not finished: the budget was spent ({self.stopped})." if self.stopped else ""
        if chosen.score is None:
            return f"{name} was returned; there were no held-out examples to compare by.{stopped}"
        failed = f"; {chosen.failed} of its runs failed" if chosen.failed else ""
        return f"{name} was returned. On {self.examples} held-out examples: {chosen.score} (95 %){failed}.{stopped}"

    def table(self) -> Table:
        """The steps, in their order, for a terminal or a notebook."""
        caption = Text(self.conclusion, "table.caption")
        table = Table(title="Steps", caption=caption, caption_justify="left")
        for name in _COLUMNS:
            table.add_column(name)
        for place, step in enumerate(self.steps):
            table.add_row(*map(Text, _cells(step)), style="bold" if place == self.best else None)
        return table

    @property
    def _trained(self) -> bool:
        return True

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, [_cells(step) for step in self.steps], bold=self.best, caption=self.conclusion)


def _cells(step: StepReport) -> tuple[str, ...]:
    difference = "—" if step.difference is None else f"{step.difference[0]:+.3f} to {step.difference[1]:+.3f}"
    failed = f" ({step.failed} failed)" if step.failed else ""
    return step.strategy or "student", f"{step.score}{failed}" if step.score else "—", difference, step.outcome
