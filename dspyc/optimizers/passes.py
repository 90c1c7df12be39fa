"""The passes of a BootstrapFinetune that run programs: rows from its teachers, and the runs that are compared."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dspy

from ..compiler.bootstrap import bootstrap, observe
from ..compiler.calls import Workers
from ..compiler.dataset import Dataset, Target, from_labels, from_traces
from ..compiler.examples import contents_of, example_keys
from ..compiler.fitted_traces import current
from ..compiler.ledger import Ledger
from ..compiler.trace import Trace
from ..errors import BudgetError
from ..signatures import program_fingerprint
from .checks import errors_allowed
from .teachers import Teacher

if TYPE_CHECKING:
    from .bootstrap_finetune import BootstrapFinetune

logger = logging.getLogger(__name__)


class Passes:
    """The passes of one `compile` over one open ledger."""

    def __init__(self, o: "BootstrapFinetune", ledger: Ledger, threads: int, workers: Workers | None) -> None:
        self.options, self.ledger, self.threads, self.workers = o, ledger, threads, workers
        self._division: Any = {"balance": o.balance, "validation_fraction": o.validation_fraction, "seed": o.seed}
        self.taught = False  # whether there is anything that a spent budget leaves

    def rows(self, train: list[dspy.Example], teachers: list[Teacher], targets: dict[str, Target]) -> Dataset:
        o = self.options
        if not teachers:
            self.taught = True
            return from_labels(train, example_keys(train), targets, **self._division)
        traces: list[Trace] = []
        for one in teachers:
            traces += self._observe(
                one.program, "teacher", one.identity, train, errors_allowed(o.max_errors), traced=True
            )
        return self._rows(traces, targets)

    def rows_of(
        self,
        traces: Sequence[Trace],
        train: list[dspy.Example],
        held_out: list[dspy.Example],
        targets: dict[str, Target],
    ) -> Dataset:
        """Rows of runs that were recorded before."""
        o, self.taught = self.options, True
        kept_aside = set(contents_of(held_out))
        named = {name: target.predictor for name, target in targets.items()}
        usable = [trace for trace in traces if trace.example not in kept_aside]
        return self._rows(current(usable, train, named, o.metric), targets)

    def _rows(self, traces: list[Trace], targets: dict[str, Target]) -> Dataset:
        o = self.options
        return from_traces(traces, targets, threshold=o.metric_threshold, scored=o.metric is not None, **self._division)

    def judge_first(
        self, student: dspy.Module, teachers: list[Teacher], held_out: list[dspy.Example]
    ) -> tuple[list[Trace], list[Trace] | None]:
        """The gate's runs that need no training, so that a metric that does not work is found before the training."""
        if not held_out:
            return [], None
        before = self.run(student, "student", held_out)
        if not teachers:
            return before, None
        if teachers[0].is_program(student):
            return before, before or None
        return before, self._observe(teachers[0].program, "teacher", teachers[0].identity, held_out, None) or None

    def run(self, program: dspy.Module, role: str, examples: list[dspy.Example]) -> list[Trace]:
        return self._observe(program, role, program_fingerprint(program), examples, None) if examples else []

    def _observe(
        self,
        program: dspy.Module,
        role: str,
        identity: str,
        examples: list[dspy.Example],
        max_errors: int | None,
        *,
        traced: bool = False,
    ) -> list[Trace]:
        try:
            traces = bootstrap(
                observe(program, role, identity=identity, traced=traced),
                examples,
                metric=self.options.metric,
                ledger=self.ledger,
                num_threads=self.threads,
                max_errors=max_errors,
                show_progress=self.options.show_progress,
                workers=self.workers,
            )
        except BudgetError as error:
            # Weights that are paid for have no price yet.
            if self.ledger.meter.exhausted is None and role == "compiled":
                logger.warning("The compiled program is not compared. %s", error.message)
                return []
            if self.ledger.meter.exhausted is None or not self.taught:
                raise
            return []  # what was learned so far is the best there will be
        self.taught = True
        return traces
