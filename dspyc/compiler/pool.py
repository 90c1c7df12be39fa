"""Runs of examples that go on at once, each recorded before it counts."""

import contextvars
from concurrent.futures import Future, ThreadPoolExecutor

import dspy

from ..evaluation.metrics import Metric
from ..signatures import fingerprint
from .ledger import Ledger
from .trace import Subject, Trace, run_example


class Pool:
    """Threads that run examples, whatever program each is for, in the order in which they were submitted.

        with Pool(ledger, metric=metric, num_threads=8) as pool:
            trace = pool.submit(subject, example, key).result()

    Leaving it waits for the runs that have begun and forgets those that have not.
    """

    def __init__(self, ledger: Ledger, *, metric: Metric | None, num_threads: int) -> None:
        self.num_threads = num_threads
        self._ledger, self._metric = ledger, metric
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="dspyc")

    def submit(self, subject: Subject, example: dspy.Example, key: str, index: int = 0) -> "Future[Trace]":
        """The run of `subject` on `example`, whose key is one of `example_keys`; a run that was recorded makes no call.

        What goes wrong with the example is in the trace. The future raises LedgerError where nothing can be recorded.
        """
        trace = Trace(fingerprint([subject.role, subject.fingerprint, key]), subject.role, index, key.split("#")[0])
        context = contextvars.copy_context()  # DSPy's settings live in the context
        return self._threads.submit(context.run, run_example, subject, example, trace, self._metric, self._ledger)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)
