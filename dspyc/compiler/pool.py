"""Runs of examples that go on at once, each recorded before it counts."""

import contextvars
import threading
from collections.abc import Mapping
from concurrent.futures import Future

import dspy

from ..evaluation.metrics import Metric
from ..signatures import fingerprint
from .calls import Workers
from .examples import parts_of
from .ledger import Ledger
from .recording import Subject, run_example
from .threads import Threads
from .trace import Trace


class Pool:
    """Threads that run examples, whatever program each is for, in the order in which they were submitted.

        with Pool(ledger, metric=metric, num_threads=8) as pool:
            trace = pool.submit(subject, example, key).result()

    Leaving it waits for the runs that have begun and forgets those that have not. Ctrl-C lets no further call begin and
    gives those under way a second to be answered and recorded.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        metric: Metric | None,
        num_threads: int,
        recorded: Mapping[str, Trace] | None = None,
        workers: Workers | None = None,
    ) -> None:
        """`recorded` runs, by their ids, are answered without being made again; `workers`, if any, make the requests."""
        self.ledger, self.num_threads = ledger, num_threads
        self._metric, self._recorded, self._workers = metric, recorded or {}, workers
        self._threads = Threads(num_threads)
        self._going: dict[str, Future[Trace]] = {}
        self._lock = threading.Lock()

    def submit(self, subject: Subject, example: dspy.Example, key: str, index: int = 0) -> "Future[Trace]":
        """The run of `subject` on `example`, whose key is one of `example_keys`; a run that was recorded makes no call.

        A run that is going on is not begun twice: whoever submits it gets the same future, which any of them may cancel.
        What goes wrong with the example is in the trace. The future raises LedgerError where nothing can be recorded, and
        BudgetError where a call is not allowed.

        Raises:
            BudgetError: The pool was left.
        """
        content, repeat = parts_of(key)
        trace = Trace(fingerprint([subject.role, subject.fingerprint, key]), subject.role, index, content)
        if trace.id in self._recorded:
            known: Future[Trace] = Future()
            known.set_result(self._recorded[trace.id])
            return known
        context = contextvars.copy_context()  # DSPy's settings live in the context
        with self._lock:
            going = self._going.get(trace.id)
            if going is not None and not going.cancelled():
                return going
            task = (run_example, subject, example, trace, self._metric, self.ledger, repeat, self._workers)
            run = self._threads.submit(context.run, *task)
            self._going[trace.id] = run
        run.add_done_callback(lambda _: self._forget(trace.id, run))
        return run

    def _forget(self, trace: str, run: "Future[Trace]") -> None:
        with self._lock:
            if self._going.get(trace) is run:
                del self._going[trace]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        if interrupted:
            self.ledger.stopped = True
        self._threads.end(abandon=interrupted)
