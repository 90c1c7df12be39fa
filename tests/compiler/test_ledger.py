"""The ledger: durable, for one process at a time, and clear about what stops it."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dspyc.compiler.ledger import Ledger
from dspyc.errors import LedgerError

RECORD = {"replies": ["yes"], "usage": {}, "cost": None, "seconds": 0.1}


def run(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_recorded_is_recalled_by_trace_request_and_occurrence(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        assert ledger.recall("t", "r", 0) is None
        ledger.record_call("t", "r", 0, "teacher", RECORD)
        assert ledger.recall("t", "r", 0) == RECORD
        assert ledger.recall("t", "r", 1) is None
        assert ledger.recall("u", "r", 0) is None
        ledger.record_call("t", "r", 1, "student", RECORD)
        assert ledger.calls() == {"teacher": 1, "student": 1}


def test_a_call_survives_kill_9_at_once(tmp_path: Path) -> None:
    code = """
    import os, signal, sys
    from pathlib import Path
    from dspyc.compiler.ledger import Ledger
    ledger = Ledger(Path(sys.argv[1]))
    ledger.record_call("t", "r", 0, "teacher", {"replies": ["yes"]})
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(code, str(tmp_path)).returncode == -signal.SIGKILL
    with Ledger(tmp_path) as ledger:  # and the lock of the dead process is gone
        assert ledger.recall("t", "r", 0) == {"replies": ["yes"]}


def test_a_second_process_is_turned_away(tmp_path: Path) -> None:
    code = """
    import sys
    from pathlib import Path
    from dspyc.compiler.ledger import Ledger
    Ledger(Path(sys.argv[1]))
    """
    with Ledger(tmp_path):
        second = run(code, str(tmp_path))
    assert second.returncode == 1
    assert "Another compile is using run folder" in second.stderr
    assert run(code, str(tmp_path)).returncode == 0


def test_a_full_disk_stops_before_the_next_call_and_keeps_what_was_paid(tmp_path: Path) -> None:
    """The limit on file size makes the system refuse the write, as a full disk does."""
    code = """
    import resource, signal, sys
    from pathlib import Path
    from dspyc.compiler.ledger import Ledger
    from dspyc.errors import LedgerError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ledger = Ledger(Path(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    for nth in range(1000):
        try:
            ledger.check_room()
            ledger.record_call("t", "r", nth, "teacher", {"replies": ["x" * 2000]})
        except LedgerError as error:
            print(nth, error)
            break
    try:
        ledger.check_room()
    except LedgerError:
        print("refused")
    """
    done = run(code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "nothing recorded so far is lost" in done.stdout
    assert done.stdout.splitlines()[-1] == "refused"
    kept = int(done.stdout.split()[0])
    assert kept > 10
    with Ledger(tmp_path) as ledger:
        assert ledger.calls() == {"teacher": kept}


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that nobody may write to")
def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(LedgerError, match=r"/proc/dspyc-run") as caught:
        Ledger(Path("/proc/dspyc-run"))
    assert "run_dir" in caught.value.hint


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database, but it is long enough to look like one" * 100)
    with pytest.raises(LedgerError, match="ledger") as caught:
        Ledger(tmp_path)
    assert "damaged" in caught.value.hint


def test_a_person_can_read_it_with_sqlite(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.event("bad example", error="boom")
        assert ledger.events("bad example")[0]["error"] == "boom"
        ledger.record_job("key", {"state": "done"})
        assert ledger.job("key") == {"state": "done"}
        assert ledger.job("other") is None
    assert sqlite3.connect(tmp_path / "ledger.sqlite").execute("SELECT kind FROM events").fetchall() == [
        ("bad example",)
    ]
