"""A command as a child process: started in a process group of its own, watched, and ended with everything it started."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import ConfigError, redact

_WATCHDOG = Path(__file__).with_name("watchdog.py")
_MARGIN = 5.0  # seconds that the watchdog itself may take
_KEPT_LINES = 400
_LINE_LENGTH = 2000  # characters of a line that are kept


class ChildProcess:
    """A command in a process group of its own.

    A watchdog stands between this program and the command. It ends the group when `stop` is called, when this object is
    collected, and when this program ends in whatever way. Output is kept in memory: the last few hundred lines.

    Args:
        command: The program and its arguments. Its standard input is empty.
        environment: All environment variables of the command.
        grace: Seconds that the group has between SIGTERM and SIGKILL.

    Raises:
        ConfigError: This system has no process groups.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], grace: float = 10.0) -> None:
        if os.name != "posix":
            raise ConfigError(
                f"Commands such as {Path(command[0]).name} are started on Linux and macOS only.",
                hint="Train in one process; start a model server yourself and pass its address: server='http://127.0.0.1:8000'.",
            )
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._owner, self._grace = os.getpid(), grace
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WATCHDOG), str(grace), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        self._reader = threading.Thread(
            target=_keep, args=(self._process, self._lines), name="dspyc-child-log", daemon=True
        )
        self._reader.start()
        self._finalizer = weakref.finalize(self, _let_go, self._process, self._owner)

    @property
    def pid(self) -> int:
        """The watchdog's process id, which is the group's as well."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the command runs. In a fork of this program: whether it runs in the program that started it."""
        if os.getpid() != self._owner:
            return _exists(self.pid)
        if self._process.poll() is None:
            return True
        _kill_group(self.pid)  # what a watchdog that was itself killed has left behind
        return False

    def ended_within(self, seconds: float) -> bool:
        """Whether the command is over, or is so before `seconds` have passed."""
        if os.getpid() != self._owner:
            return not self.alive
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        _kill_group(self.pid)
        self._reader.join(1)  # its last words
        return True

    def tail(self, lines: int = 20) -> str:
        """The last lines that the command wrote, without secrets."""
        return redact("\n".join(list(self._lines)[-lines:]))

    def stop(self) -> None:
        """End the group: SIGTERM, then SIGKILL after the grace. Returns when nothing of it is left."""
        if os.getpid() != self._owner:
            return
        self._finalizer()
        try:
            self._process.wait(self._grace + _MARGIN)
        except subprocess.TimeoutExpired:
            _kill_group(self.pid)
            self._process.wait()
        _kill_group(self.pid)
        self._reader.join(1)


def _keep(process: "subprocess.Popen[bytes]", lines: "deque[str]") -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        for line in iter(lambda: stream.readline(_LINE_LENGTH), b""):
            text = line.decode("utf-8", errors="replace").rstrip().rpartition("\r")[2]  # a bar's last state
            if text:
                lines.append(text)
    process.wait()  # the watchdog is the last to hold the pipe; nobody else may be there to reap it


def _let_go(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """Close the pipe that keeps the group alive. The watchdog does the rest, so nobody waits here."""
    if process.stdin is not None and os.getpid() == owner:
        process.stdin.close()


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in it
        os.killpg(group, signal.SIGKILL)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
