"""Ctrl-C, held back while a step is between two states that a checkpoint can hold."""

import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

_NOTICE = (
    b"\nStopping as soon as this step is kept. Ctrl-C again stops now, and the run goes on from an older checkpoint.\n"
)


class Interrupts:
    """While entered, Ctrl-C between `hold` and `release` waits for `release`; a second one does not wait.

    Signals reach the main thread alone, so in any other thread this does nothing.

    Args:
        together: Tells whether any process was interrupted, where a model is divided among several: none can stop alone, so
            Ctrl-C always waits for `release`, which all of them call alike.
    """

    def __init__(self, together: Callable[[bool], bool] | None = None) -> None:
        self._together = together
        self._held, self._waiting = together is not None, False
        self.answered = False  # by `release`, and not in the middle of something
        self._before: Any = None

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        """Raises KeyboardInterrupt where Ctrl-C came since `hold`."""
        self._held = self._together is not None
        if self._together(self._waiting) if self._together is not None else self._waiting:
            self._waiting, self.answered = False, True
            raise KeyboardInterrupt

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._before = signal.signal(signal.SIGINT, self._answer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if error is None:
            self.release()

    def _answer(self, number: int, frame: Any) -> None:
        if self._held and not self._waiting:
            self._waiting = True
            os.write(2, _NOTICE)  # print may be what was interrupted
        else:
            self._before(number, frame)
