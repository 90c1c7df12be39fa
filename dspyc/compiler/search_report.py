"""What a search over candidates saw, what it chose, and what that is worth on examples that it did not use."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from .html_table import html_table
from .run_report import RunReport
from .score import Score

_COLUMNS = ("candidate", "demos", "score (95 %)", "examples", "ended")


@dataclass(frozen=True)
class CandidateReport:
    """One candidate: its number, how it was made, its demos by predictor, its score, and how it ended.

    Scores of candidates that left early are of fewer examples than the winner's: they are not to be compared with it.
    """

    number: int
    made: str
    demos: dict[str, int]
    score: Score | None
    failed: int
    ended: str


@dataclass(frozen=True)
class SearchReport(RunReport):
    """Figures of one search, besides those of its run.

    `validation` says which examples chose; the winner's score on them is flattered, as the best of many is. `final` is its
    score on examples that the search did not use, which `final_on` names, or why there is none; a budget that is spent in
    that score alone leaves it of a part of them, and the search was not `stopped`.
    """

    winner: int
    candidates: list[CandidateReport]
    validation: str
    final: Score | None
    final_on: str

    @property
    def best(self) -> CandidateReport:
        return next(candidate for candidate in self.candidates if candidate.number == self.winner)

    def to_dict(self) -> dict[str, Any]:
        candidates = [{**asdict(c), "score": c.score and c.score.to_dict()} for c in self.candidates]
        final = self.final and self.final.to_dict()
        return {"report": "search", **asdict(self), "candidates": candidates, "final": final}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "SearchReport":
        """The report that `to_dict` wrote."""
        candidates = [CandidateReport(**{**c, "score": Score.from_dict(c["score"])}) for c in facts["candidates"]]
        known = {**facts, "candidates": candidates, "final": Score.from_dict(facts["final"])}
        known.pop("report")
        return cls(**known)

    def table(self) -> Table:
        """The candidates, the winner first, then by how far they came; for a terminal or a notebook."""
        caption = Text(self.conclusion, "table.caption")  # its text is no markup: it may hold a prompt's
        table = Table(title="Candidates", caption=caption, caption_justify="left")
        for name in _COLUMNS:
            table.add_column(name, justify="right" if name == "examples" else "left")
        for candidate in self._ranked():
            table.add_row(*map(Text, _cells(candidate)), style="bold" if candidate.number == self.winner else None)
        return table

    @property
    def conclusion(self) -> str:
        """A sentence or two: who won, on what, and what that is worth."""
        final = (
            f"On {self.final_on}: {self.final} (95 %)."
            if self.final
            else f"No score on unseen examples: {self.final_on}."
        )
        stopped = f" The search was not finished: its budget ended it ({self.stopped})." if self.stopped else ""
        return f"Candidate {self.winner} won on {self.validation}. {final}{stopped}"

    def _repr_html_(self) -> str:
        return html_table(
            _COLUMNS, [_cells(candidate) for candidate in self._ranked()], bold=0, caption=self.conclusion
        )

    def _ranked(self) -> list[CandidateReport]:
        def place(candidate: CandidateReport) -> tuple[Any, ...]:
            score = candidate.score
            return (candidate.number != self.winner, -score.examples if score else 0, -score.mean if score else 0.0)

        return sorted(self.candidates, key=place)


def _cells(candidate: CandidateReport) -> tuple[str, ...]:
    score = candidate.score
    shown = str(score) if score else "—"
    demos = ", ".join(f"{name}: {count}" for name, count in candidate.demos.items())
    examples = "0" if score is None else str(score.examples)
    failed = f" ({candidate.failed} failed)" if candidate.failed else ""
    return f"{candidate.number} {candidate.made}", demos, shown, examples + failed, candidate.ended
