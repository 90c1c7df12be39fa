"""Where a compile keeps its record, and what every compile writes there.

with sitting(run_dir, asks, plan=plan, fingerprints=named, …) as run:
    traces = bootstrap(subject, examples, ledger=run.ledger, workers=run.workers, …)
    report = run.keep(CompileReport(rows=…, **run.facts()))
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dspy

from ..compiler.budget import Budget
from ..compiler.calls import Workers
from ..compiler.examples import example_keys
from ..compiler.ledger import Ledger
from ..compiler.plan import Plan
from ..compiler.ray_workers import Executor, workers_of
from ..compiler.run_report import RunReport
from ..files import home

Report = TypeVar("Report", bound=RunReport)


def data_fingerprint(examples: Sequence[dspy.Example]) -> str:
    """16 hex digits that name examples and their order."""
    return hashlib.sha256("\n".join(example_keys(examples)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sitting:
    """A compile at work: its open ledger, the workers that make its requests, and what its report says of the run."""

    ledger: Ledger
    workers: Workers | None
    plan: Plan
    fingerprints: dict[str, str]
    seed: int
    started: float

    def facts(self) -> dict[str, Any]:
        """The fields of a RunReport, as they are by now."""
        return {
            "calls": self.ledger.calls(),
            "seconds": time.monotonic() - self.started,
            "run_dir": str(self.ledger.run_dir),
            "seed": self.seed,
            "replayed": self.ledger.replayed,
            "fingerprints": self.fingerprints,
            "plan": self.plan.to_dict(),
            "spent": self.ledger.meter.spent.to_dict(),
            "stopped": self.ledger.meter.exhausted,
        }

    def keep(self, report: Report) -> Report:
        """Write the report to the ledger."""
        self.ledger.event("report", **report.to_dict())
        return report


@contextmanager
def sitting(
    run_dir: str | os.PathLike[str] | None,
    asks: str,
    *,
    plan: Plan,
    fingerprints: dict[str, str],
    seed: int,
    budget: Budget | None,
    executor: Executor,
    **noted: Any,
) -> Iterator[Sitting]:
    """Open the record of a compile, which begins with its identity, what is `noted` and its plan.

    Args:
        run_dir: The folder of the record; None is one in dspyc's own, named after `asks`.
        asks: All that the compile asks by, so that its record is found again. The metric is no part of it: with another,
            recorded answers are scored anew. So it is with its threshold, but in a random search: one that is finished
            begins no runs ahead, and another threshold may need many.
        plan: What the compile will ask for.
        fingerprints: Of the report; that named "compile" is the identity.
        seed: Of the report.
        budget: What may be spent.
        executor: Who makes the requests.
        **noted: Sizes and the like.

    Raises:
        LedgerError: The record cannot be opened or written.
        ConfigError: The executor is not installed.
    """
    started, folder = time.monotonic(), Path(run_dir) if run_dir is not None else home() / "runs" / asks
    with (
        Ledger(folder, budget=budget) as ledger,
        workers_of(executor, num_threads=plan.threads, ledger=ledger) as workers,
    ):
        ledger.event("compile", identity=fingerprints["compile"], **noted, plan=plan.to_dict())
        yield Sitting(ledger, workers, plan, fingerprints, seed, started)
