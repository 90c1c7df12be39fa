"""What the programs of a sequence score on the same held-out examples, and which one the next step starts from."""

import logging
from dataclasses import dataclass, field
from typing import Any

import dspy

from ..compiler.bootstrap import bootstrap, observe
from ..compiler.budget import budget_spent
from ..compiler.calls import Workers
from ..compiler.failures import metric_failed
from ..compiler.ledger import Ledger
from ..compiler.score import Score
from ..compiler.sequence_report import Outcome, StepReport
from ..compiler.trace import Trace
from ..errors import BudgetError
from ..evaluation import paired_interval
from ..evaluation.intervals import SAME, difference_of
from ..evaluation.metrics import Metric
from ..signatures import program_fingerprint
from .kept_steps import without_results

logger = logging.getLogger(__name__)


@dataclass
class Judge:
    """The programs so far, what they score on the held-out examples, and which one the next step starts from."""

    metric: Metric
    held_out: list[dspy.Example]
    ledger: Ledger
    threads: int
    max_errors: int | None
    seed: int
    workers: Workers | None
    programs: list[dspy.Module] = field(default_factory=list)
    failures: list[Trace] = field(default_factory=list)  # none once a run was scored
    steps: list[StepReport] = field(default_factory=list)
    best: int = 0
    _scores: list[list[float]] = field(default_factory=list)
    _base: int = 0
    _scored: bool = False

    @property
    def base(self) -> dspy.Module:
        return self.programs[self._base]

    def add(self, strategy: str, program: dspy.Module, seconds: float) -> bool:
        """Score a program; whether that could be done within the budget. What was paid for is kept in any case."""
        try:
            traces = self._run(program)
        except BudgetError as error:
            if not self.programs or self.ledger.meter.exhausted is not None:
                raise
            logger.warning("Step %s is not compared, and the last. %s", strategy, error.message)  # it has no price
            self._scores.append([])
            self.programs.append(program)
            self.steps.append(StepReport(strategy, None, None, "not compared", seconds, 0))
            return False
        if failure := metric_failed(traces, "held-out runs"):
            raise failure
        failures = [trace for trace in traces if trace.error is not None]
        self._scored = self._scored or len(failures) < len(traces)
        self.failures = [] if self._scored else self.failures + failures
        self._scores.append([trace.counted for trace in traces])
        self.programs.append(program)
        place, scores = len(self._scores) - 1, self._scores[-1]
        difference: tuple[float, float] | None = None
        outcome: Outcome = "not compared"
        if place and scores:
            difference = paired_interval(self._scores[self.best], scores, seed=self.seed)
            outcome = difference_of(difference)
        self.steps.append(StepReport(strategy, Score.of(scores), difference, outcome, seconds, len(failures)))
        self._base = self.best if outcome == "worse" else place
        if sum(scores) > sum(self._scores[self.best]) + SAME or not scores:
            self.best = place
        return True

    def candidate_programs(self) -> list[dict[str, Any]]:
        """As DSPy's: scores in percent, the best first."""
        found: list[dict[str, Any]] = [
            {
                "program": program,
                "score": round(100 * step.score.mean, 2) if step.score else None,
                "strategy": step.strategy,
            }
            for program, step in zip(self.programs, self.steps, strict=True)
        ]
        return sorted(found, key=lambda candidate: -(candidate["score"] or 0.0))

    def _run(self, program: dspy.Module) -> list[Trace]:
        if not self.held_out:
            return []
        identity = program_fingerprint(without_results(program, self.programs[0] if self.programs else program))
        traces = bootstrap(
            observe(program, "held-out", identity=identity, traced=False),
            self.held_out,
            metric=self.metric,
            ledger=self.ledger,
            num_threads=self.threads,
            max_errors=self.max_errors,
            show_progress=False,
            workers=self.workers,
        )
        if len(traces) < len(self.held_out):
            raise budget_spent(f"{self.ledger.meter.exhausted}, before a program was scored")
        return traces
