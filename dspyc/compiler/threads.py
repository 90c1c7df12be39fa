"""Worker threads that a process never waits for at its end.

Python's own pool joins its threads when the interpreter exits, so Ctrl-C would wait for the slowest answer of a provider.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .limiter import stop_error

T = TypeVar("T")
_GRACE = 1.0  # seconds that what is under way has to end after Ctrl-C


class Threads:
    """`number` daemon threads that run what is submitted, in that order; each begins when there is work for it."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._waiting: set[Future[Any]] = set()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)
        self._ended = False
        self._lock = threading.Lock()

    def submit(self, task: Callable[..., T], *arguments: Any) -> "Future[T]":
        """The future result of `task(*arguments)`.

        Raises:
            BudgetError: They were ended: nothing would run it.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._ended:
                raise stop_error()
            self._waiting.add(future)
            self._work.put((future, lambda: task(*arguments)))
            if not self._idle.acquire(blocking=False) and len(self._threads) < self._number:
                thread = threading.Thread(target=self._run, name=f"dspyc-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def end(self, *, abandon: bool, grace: float = _GRACE) -> None:
        """Cancel what has not begun, and wait for what has; with `abandon` only for `grace` seconds.

        Threads that wait for others' runs are ended after those, with no grace of their own: Ctrl-C takes one moment in all.
        """
        with self._lock:
            self._ended = True
            waiting, self._waiting = list(self._waiting), set()
        for future in waiting:
            future.cancel()
        for _ in self._threads:
            self._work.put(None)
        until = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()) if abandon else None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, task = item
            with self._lock:
                self._waiting.discard(future)
            if future.set_running_or_notify_cancel():
                try:
                    result = task()
                except BaseException as error:  # the thread that asks for the result is the one to tell
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del item, future, task
            self._idle.release()
