"""The ledger: durable, for one process at a time, and clear about what stops it."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import dspy
import pytest

import dspyc
from dspyc.compiler import bootstrap, observe
from dspyc.compiler.ledger import Answer, CallKey, Ledger
from dspyc.compiler.trace import Step, Trace, recorded
from dspyc.errors import LedgerError
from tests.compiler.awaiting import Awaiting

ANSWER = Answer('["yes"]', {"usage": {}, "cost": None, "seconds": 0.1})
KEEP = """
from dspyc.compiler.ledger import Answer, CallKey

def keep(ledger, nth=0, reply="yes"):
    answer = Answer('["%s"]' % reply, {"usage": {}, "cost": None, "seconds": 0.1})
    return ledger.record_call(CallKey("teacher", "e", "r", nth), "m", ['{"role": "user"}'], answer)
"""


def key(role: str = "teacher", example: str = "e", request: str = "r", nth: int = 0) -> CallKey:
    return CallKey(role, example, request, nth)


def keep(ledger: Ledger, key: CallKey, answer: Answer = ANSWER) -> Answer:
    return ledger.record_call(key, "m", ['{"role": "user"}'], answer)


def run(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_recorded_is_recalled_by_content(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        assert ledger.recall(key()) is None
        assert keep(ledger, key()) == ANSWER
        assert ledger.recall(key()) == ANSWER
        for other in (key(nth=1), key(example="f"), key(request="s"), key(role="student")):
            assert ledger.recall(other) is None
        keep(ledger, key(nth=1))
        keep(ledger, key(role="student"))
        assert ledger.calls() == {"teacher": 2, "student": 1}


def test_of_two_answers_to_one_call_the_first_is_kept(tmp_path: Path) -> None:
    """Two programs of a search may ask the same at once; a resume has to give both what the first sitting gave."""
    later = Answer('["no"]', ANSWER.facts)
    with Ledger(tmp_path) as ledger:
        keep(ledger, key())
        assert keep(ledger, key(), later) == ANSWER
        assert ledger.recall(key()) == ANSWER
        assert ledger.calls() == {"teacher": 1}


def test_threads_share_commits_and_every_write_is_kept(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        barrier = threading.Barrier(8)

        def write(thread: int) -> None:
            barrier.wait()
            for nth in range(25):
                keep(ledger, key(example=str(thread), nth=nth))
                assert ledger.recall(key(example=str(thread), nth=nth)) == ANSWER
                ledger.event("kept", nth=nth)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ledger.calls() == {"teacher": 200}
        assert len(ledger.events("kept")) == 200


def test_a_message_that_many_calls_send_is_stored_once(tmp_path: Path) -> None:
    long = '{"role": "system", "content": "%s"}' % ("x" * 100_000)
    with Ledger(tmp_path) as ledger:
        for nth in range(50):
            ledger.record_call(key(nth=nth), "m", [long, f'"{nth}"'], ANSWER)
    with Ledger(tmp_path) as ledger:
        ledger.record_call(key(nth=50), "m", [long], ANSWER)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000


def test_a_call_survives_kill_9_at_once(tmp_path: Path) -> None:
    code = """
    import os, signal, sys
    from pathlib import Path
    from dspyc.compiler.ledger import Ledger
    ledger = Ledger(Path(sys.argv[1]))
    keep(ledger)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(KEEP + textwrap.dedent(code), str(tmp_path)).returncode == -signal.SIGKILL
    with Ledger(tmp_path) as ledger:  # and the lock of the dead process is gone
        assert ledger.recall(key()) == ANSWER


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
            keep(ledger, nth, "x" * 2000)
        except LedgerError as error:
            print(nth, error)
            break
    try:
        ledger.check_room()
    except LedgerError:
        print("refused")
    """
    done = run(KEEP + textwrap.dedent(code), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "nothing recorded so far is lost" in done.stdout
    assert done.stdout.splitlines()[-1] == "refused"
    kept = int(done.stdout.split()[0])
    assert kept > 10
    with Ledger(tmp_path) as ledger:
        assert ledger.calls() == {"teacher": kept}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("free", "calls"), [(8 * 2**20 - 1, 0), (8 * 2**20, 3)])
def test_a_bootstrap_asks_nothing_for_which_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool, free: int, calls: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))  # Python's, not the ledger's
    lm = dspyc.ScriptedLM(lambda inputs: {"answer": "yes"})
    program = dspy.Predict("question -> answer") if not asynchronous else Awaiting()
    program.set_lm(lm)
    examples = [dspy.Example(question=str(i)).with_inputs("question") for i in range(3)]
    ends = contextlib.nullcontext() if calls else pytest.raises(LedgerError, match=r"has 8\.0 MB left and a call needs")
    with Ledger(tmp_path) as ledger, ends:
        bootstrap(observe(program, "teacher", identity="x"), examples, metric=None, ledger=ledger)
    assert lm.engine.calls == calls


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that nobody may write to")
def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(LedgerError, match=r"/proc/dspyc-run") as caught:
        Ledger(Path("/proc/dspyc-run"))
    assert "run_dir" in caught.value.hint


def test_a_folder_that_is_gone_is_named_before_the_next_call(tmp_path: Path) -> None:
    with suppress(LedgerError), Ledger(tmp_path / "run") as ledger:
        shutil.rmtree(tmp_path / "run")
        for _ in range(2):  # a program may swallow the first
            with pytest.raises(LedgerError, match=r"find room for the ledger in run folder .*No such file"):
                ledger.check_room()


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is no database, but it is long enough to look like one" * 100)
    with pytest.raises(LedgerError, match="ledger") as caught:
        Ledger(tmp_path)
    assert "damaged" in caught.value.hint


def test_a_truncated_ledger_is_named(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for nth in range(300):
            keep(ledger, key(nth=nth), Answer(f'["{"x" * 500}"]', ANSWER.facts))
    path = tmp_path / "ledger.sqlite"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(LedgerError, match="ledger") as caught:
        Ledger(tmp_path)
    assert "damaged" in caught.value.hint


def test_an_emptied_ledger_is_not_begun_anew(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        keep(ledger, key())
    (tmp_path / "ledger.sqlite").write_bytes(b"")
    for _ in range(2):  # and the folder is not left locked
        with pytest.raises(LedgerError, match="is empty, and a run that began it wrote its tables at once") as caught:
            Ledger(tmp_path)
        assert "Restore it" in caught.value.hint
    assert (tmp_path / "ledger.sqlite").read_bytes() == b""
    (tmp_path / "ledger.sqlite").unlink()  # as the hint says
    with Ledger(tmp_path) as ledger:
        assert ledger.recall(key()) is None


@pytest.mark.parametrize("limit", [0, 4096, 8192, 12288, 20480])
def test_a_ledger_whose_process_was_killed_while_it_made_it_is_made_again(tmp_path: Path, limit: int) -> None:
    """The system kills a process that writes beyond its limit on the size of files."""
    code = """
    import resource, signal, sys
    from pathlib import Path
    from dspyc.compiler.ledger import Ledger
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    Ledger(Path(sys.argv[1]))
    """
    assert run(code, str(tmp_path), str(limit)).returncode == -signal.SIGXFSZ
    with Ledger(tmp_path) as ledger:
        keep(ledger, key())
    with Ledger(tmp_path) as ledger:
        assert ledger.recall(key()) == ANSWER
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.sqlite", "lock.sqlite"]


@pytest.mark.parametrize("version", [0, 7])
def test_a_ledger_of_another_version_is_left_alone(tmp_path: Path, version: int) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        db.execute("CREATE TABLE calls (trace TEXT)")
        db.execute(f"PRAGMA user_version={version}")
    with pytest.raises(
        LedgerError, match=f"has version {version or 1}; this dspyc reads and writes version 2"
    ) as caught:
        Ledger(tmp_path)
    assert "run_dir" in caught.value.hint
    with pytest.raises(LedgerError, match="has version"):  # and the folder is not left locked
        Ledger(tmp_path)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        assert db.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall() == [("calls",)]


def test_a_ledger_that_another_program_locks_is_named(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    with (
        closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as other,
        Ledger(tmp_path) as ledger,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="database is locked") as caught:
            keep(ledger, key())
        assert "Another program holds the file" in caught.value.hint
        other.execute("ROLLBACK")


def test_a_record_that_cannot_be_written_takes_none_of_the_later_ones_with_it(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.record_trace("t", "teacher", None, "half a character: \ud83d", {})
        with pytest.raises(LedgerError, match=r"Could not write .* surrogates not allowed"):
            keep(ledger, key())
        assert keep(ledger, key(nth=1)) == ANSWER
    with Ledger(tmp_path) as ledger:
        assert ledger.recall(key(nth=1)) == ANSWER


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


def test_recorded_runs_are_read_without_holding_what_their_predictors_were_given(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for i in range(40):
            trace = Trace(str(i), "candidate" if i % 4 else "teacher", i, str(i), score=i / 40)
            trace.steps.append(Step("answer", {"document": str(i) * 200_000}, {"answer": "x"}))
            trace.error = "it broke" if i % 5 == 0 else None
            ledger.record_trace(trace.id, trace.role, trace.score, trace.error, trace.to_record())
        tracemalloc.start()
        try:
            runs = recorded(ledger, "candidate")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert {int(id): run.score for id, run in runs.items()} == {i: i / 40 for i in range(40) if i % 4 and i % 5}
    assert peak < 4_000_000  # of 10 MB, a few runs at a time
