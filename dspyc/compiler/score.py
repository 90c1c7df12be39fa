"""A mean score, and how sure it is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

from ..evaluation.intervals import mean_interval


@dataclass(frozen=True)
class Score:
    """A mean in the metric's unit, over so many examples, with its 95 % interval for examples not seen."""

    mean: float
    interval: tuple[float, float]
    examples: int

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Score | None":
        """None of no scores."""
        if not len(scores):
            return None
        return cls(float(sum(scores)) / len(scores), mean_interval(scores), len(scores))

    @classmethod
    def from_dict(cls, facts: dict[str, Any] | None) -> "Score | None":
        """The score that `to_dict` wrote."""
        if facts is None:
            return None
        low, high = facts["interval"]
        return cls(facts["mean"], (-inf if low is None else low, inf if high is None else high), facts["examples"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None where the interval has no end, as after one example."""
        return {**asdict(self), "interval": [end if isfinite(end) else None for end in self.interval]}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:.3f}, {low:.3f} to {high:.3f}"
