"""The gate: what a compiled program has to pass before it is called better.

Student, teacher and compiled program run on the same held-out examples; the verdict is the paired bootstrap interval of
the difference. An example that fails counts as 0: an answer that cannot be read is a wrong answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import RegressionError
from ..evaluation import mean, paired_interval
from ..evaluation.intervals import SAME, Difference, difference_of
from .failures import metric_failed
from .trace import Trace

OnRegression = Literal["warn", "raise", "keep_student"]


@dataclass(frozen=True)
class Verdict:
    """Mean scores on the held-out examples and the 95 % interval of after − before.

    `teacher` is None where the rows came from labels. `failed` counts the examples that raised, by part.
    """

    before: float
    teacher: float | None
    after: float
    interval: tuple[float, float]
    examples: int
    failed: dict[str, int]

    @property
    def outcome(self) -> Difference:
        return difference_of(self.interval)

    @property
    def regressed(self) -> bool:
        """Whether the compiled program scored below the student that it came from."""
        return self.after < self.before - SAME

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "interval": list(self.interval), "outcome": self.outcome}


def judge(
    before: Sequence[Trace], after: Sequence[Trace], teacher: Sequence[Trace] | None, *, seed: int = 0
) -> Verdict | None:
    """Compare runs on the examples that all of them have run, for a budget may have ended some early. None if there are none.

    Raises:
        ConfigError: The metric failed on every example, so there is nothing to judge by.
    """
    common = {trace.index for trace in before} & {trace.index for trace in after}
    if not common:
        return None
    if teacher is not None and not common <= {trace.index for trace in teacher}:
        teacher = None  # it was stopped, and the compiled program is judged all the same
    named = {"student": before, "teacher": teacher or [], "compiled": after}
    runs = {name: [trace for trace in traces if trace.index in common] for name, traces in named.items()}
    for traces in filter(None, runs.values()):
        if failure := metric_failed(traces, "held-out examples"):
            raise failure
    scores = {name: [trace.counted for trace in traces] for name, traces in runs.items()}
    return Verdict(
        before=mean(scores["student"]),
        teacher=mean(scores["teacher"]) if scores["teacher"] else None,
        after=mean(scores["compiled"]),
        interval=paired_interval(scores["student"], scores["compiled"], seed=seed),
        examples=len(common),
        failed={name: sum(trace.error is not None for trace in traces) for name, traces in runs.items()},
    )


def refuse(verdict: Verdict, run_dir: str) -> RegressionError:
    """What `on_regression="raise"` raises."""
    low, high = verdict.interval
    return RegressionError(
        f"The compiled program scored {verdict.after:.3f} on {verdict.examples} held-out examples, the student "
        f"{verdict.before:.3f} (difference between {low:+.3f} and {high:+.3f} at 95 %).",
        hint=f"More or better rows, other `train_kwargs`, or on_regression='keep_student'; the weights are in {run_dir}.",
    )
