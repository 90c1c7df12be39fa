"""Runs a command, and ends it with its whole process group when the program that asked for it is gone.

    python watchdog.py GRACE COMMAND [ARGUMENT ...]     # GRACE: seconds from SIGTERM to SIGKILL

The program holds the other end of this process's standard input. That end closes however the program ends, `kill -9`
included, and reading its end here is the sign to stop. It runs by its path, with the standard library alone, so that it
starts in milliseconds and imports nothing that could fail.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Run the command until it ends or the program is gone; the process group never outlives this call."""
    ending = _Ending(float(arguments[0]))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ending.begin())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(arguments[1:], stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent)
    except OSError as error:
        _say(f"{arguments[1]} cannot be started: {error.strerror}")
        sys.exit(127)
    threading.Thread(target=_await_end_of_input, args=(ending,), daemon=True).start()
    status = child.wait()
    _say(f"it ended with {_words(status)}")
    os.killpg(0, signal.SIGKILL)  # its workers, and this process with them


class _Ending:
    """SIGTERM to the group, and SIGKILL after the grace. Begun once, by whichever sign comes first."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._begun = threading.Lock()

    def begin(self) -> None:
        if self._begun.acquire(blocking=False):
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        os.killpg(0, signal.SIGTERM)
        time.sleep(self._grace)
        os.killpg(0, signal.SIGKILL)


def _await_end_of_input(ending: _Ending) -> None:
    while os.read(0, 1024):
        pass
    ending.begin()


def _end_with_parent() -> None:
    """Linux kills the command should this process be killed itself; elsewhere the program sweeps the group up."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _words(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {-status}"


def _say(text: str) -> None:
    sys.stderr.write(f"dspyc: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
