"""Runs of a program over many examples, concurrent, recorded and resumable."""

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue

import dspy

from ..errors import BudgetError
from ..evaluation.metrics import Metric
from ..progress import bar
from ..signatures import copy_program, predictors, remembering
from ..signatures.adapted import AdaptedMixin
from .calls import Workers, durable, durable_adapter
from .examples import example_keys
from .failures import too_many
from .ledger import Ledger
from .pool import Pool
from .recording import Subject
from .trace import Trace


def observe(
    program: dspy.Module,
    role: str,
    *,
    identity: str,
    lm: dspy.BaseLM | None = None,
    traced: bool = True,
    round: int = 0,
) -> Subject:
    """A copy of `program` whose language models remember their calls, and its adapters demos; it is not changed itself.

    `identity` tells this subject's traces from every other's; `lm` serves predictors without their own. LMs that appear
    only during a run (made in `forward`, set by `dspy.context(lm=...)`, a judge's in the metric) are recorded too, if they
    are called by a predictor of the program, or by another predictor that uses the run's adapter or carries its own.
    `traced` runs give the metric DSPy's trace, as a bootstrap does; evaluation gives it None, as dspy.Evaluate does.
    `round` makes LMs that appear during a run give other replies than in earlier rounds.
    """
    copied = copy_program(program, durable)
    for predictor in predictors(copied).values():
        if isinstance(predictor, AdaptedMixin):
            predictor.adapter = durable_adapter(remembering(predictor.adapter))
    shared = lm if lm is not None else dspy.settings.lm
    written_by = durable_adapter(remembering(dspy.settings.adapter or dspy.ChatAdapter()))
    return Subject(copied, role, identity, durable(shared) if shared is not None else None, written_by, traced, round)


def bootstrap(
    subject: Subject,
    examples: Sequence[dspy.Example],
    *,
    metric: Metric | None,
    ledger: Ledger,
    num_threads: int = 8,
    max_errors: int | None = None,
    show_progress: bool = True,
    workers: Workers | None = None,
) -> list[Trace]:
    """One trace for each example, in the examples' order; where the ledger's budget is spent, for as many as it allowed.

    `max_errors` bad examples stop the bootstrap; None lets every example fail, as a gate does. `workers`, if any, make the
    requests to models that are not on this machine.

    Raises:
        BudgetError: It did not allow one.
        BootstrapError: `max_errors` examples failed; what was paid for stays in the ledger.
        LedgerError: The ledger cannot be written.
    """
    pending = enumerate(zip(examples, example_keys(examples), strict=True))
    done: list[Trace] = []
    errors: list[Trace] = []
    refused: BudgetError | None = None
    with (
        bar(f"{subject.role}: running {len(examples)} examples", len(examples), show=show_progress) as advance,
        Pool(ledger, metric=metric, num_threads=num_threads, workers=workers) as pool,
    ):
        finished: SimpleQueue[Future[Trace]] = SimpleQueue()

        def begin(number: int) -> int:
            """Begin so many runs, or as many as are left; how many those are."""
            begun = 0
            for index, (example, key) in islice(pending, number):
                pool.submit(subject, example, key, index).add_done_callback(finished.put)
                begun += 1
            return begun

        running = begin(num_threads)
        while running:
            running -= 1
            try:
                trace = finished.get().result()
            except BudgetError as error:  # examples that the ledger knows still count
                refused = error
                running += begin(1)
                continue
            done.append(trace)
            if trace.error:
                errors.append(trace)
                ledger.event("bad example", role=subject.role, trace=trace.id, error=trace.error)
            advance(note=f"{len(errors)} failed" if errors else "")
            if max_errors is None or len(errors) < max_errors:
                running += begin(1)
    if max_errors is not None and len(errors) >= max_errors:
        raise too_many(errors, len(done), max_errors, subject.role)
    if refused and not done:
        raise refused
    return sorted(done, key=lambda trace: trace.index)
