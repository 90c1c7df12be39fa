"""Real child processes: nothing of a server outlives the program, whatever ends it."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from dspyc.child_process import ChildProcess

WAIT = "print('up', flush=True); import time; time.sleep(300)"
WORKERS = f"import subprocess; [subprocess.Popen(['sleep', '300']) for _ in range(2)]; {WAIT}"
STUBBORN = f"import signal; signal.signal(15, signal.SIG_IGN); {WAIT}"
PARENT = """
import os, sys, time
from dspyc.child_process import ChildProcess
process = ChildProcess([sys.executable, "-c", {code!r}], os.environ)
while "up" not in process.tail(): time.sleep(0.01)
print(process.pid, flush=True)
time.sleep(300)
"""


def run(code: str, grace: float = 10.0) -> ChildProcess:
    process = ChildProcess([sys.executable, "-S", "-c", code], os.environ, grace=grace)
    wait_until(lambda: "up" in process.tail() or not process.alive)
    return process


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_stopping_ends_the_workers_as_well() -> None:
    process = run(WORKERS)
    assert len(members(process.pid)) == 4  # the watchdog, the server, two workers
    process.stop()
    assert members(process.pid) == []
    assert not process.alive
    process.stop()  # once more is nothing


def test_one_that_ignores_sigterm_is_killed() -> None:
    process = run(STUBBORN, grace=0.3)
    process.stop()
    assert members(process.pid) == []


def test_one_that_is_let_go_ends() -> None:
    process = run(WORKERS)
    pid = process.pid
    del process
    gc.collect()
    wait_until(lambda: members(pid) == [])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_program(number: int) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(code=WORKERS)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    assert len(members(group)) == 4
    parent.send_signal(number)
    parent.wait(10)
    parent.stdout.close()
    wait_until(lambda: members(group) == [])


def test_nothing_outlives_a_watchdog_that_is_killed() -> None:
    process = run(WORKERS)
    os.kill(process.pid, signal.SIGKILL)
    assert process.ended_within(5)
    wait_until(lambda: members(process.pid) == [])


def test_the_tail_has_the_last_words_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-of-the-mine")
    process = run("import sys; print('\\n' * 3, 'x' * 5000, flush=True); sys.exit('key canary-of-the-mine is bad')")
    assert process.ended_within(5)
    assert process.tail(2) == "key [secret] is bad\ndspyc: it ended with exit status 1"
    process.stop()


def test_a_progress_bar_is_one_line() -> None:
    process = run("import sys; sys.stderr.write('loading 1/2\\rloading 2/2\\n'); sys.exit(0)")
    assert process.ended_within(5)
    assert process.tail() == "loading 2/2\ndspyc: it ended with exit status 0"
    process.stop()


def test_a_program_that_cannot_be_started() -> None:
    process = ChildProcess(["/nowhere/at/all"], os.environ)
    assert process.ended_within(5)
    assert "/nowhere/at/all cannot be started: No such file or directory" in process.tail()
    process.stop()
