"""The ledger: the durable record of one compile, and what a resume reads.

One SQLite file in the run folder. Every language-model call is written before the next one may begin, under the trace
that made it, so that a run that was killed anywhere replays what it has and pays only for what is missing. Traces,
remote jobs and events stand beside the calls for people and tools to read.
"""

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import LedgerError
from ..locks import FolderLock

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    trace TEXT, request TEXT, nth INTEGER, role TEXT, record TEXT, at REAL, PRIMARY KEY (trace, request, nth));
CREATE TABLE IF NOT EXISTS traces (id TEXT PRIMARY KEY, role TEXT, score REAL, error TEXT, record TEXT, at REAL);
CREATE TABLE IF NOT EXISTS jobs (key TEXT PRIMARY KEY, record TEXT, at REAL);
CREATE TABLE IF NOT EXISTS events (at REAL, kind TEXT, record TEXT);
"""
# Free space below which no further call is made: a reply that cannot be written would be money lost.
_ROOM_BYTES = 8 * 2**20


class Ledger:
    """The record in one run folder. Threads share it; a second process is turned away.

    Raises:
        LedgerError: The folder cannot be made, read or written, or another process is compiling in it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / "ledger.sqlite"
        self._lock = threading.RLock()
        self.failure: LedgerError | None = None
        with self._guard("open"):
            run_dir.mkdir(parents=True, exist_ok=True)
            self._door = self._bar_others()
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)

    def recall(self, trace: str, request: str, nth: int) -> dict[str, Any] | None:
        """The record of the `nth` such request of a trace, if it was ever answered."""
        with self._guard("read"):
            query = "SELECT record FROM calls WHERE trace=? AND request=? AND nth=?"
            row = self._db.execute(query, (trace, request, nth)).fetchone()
        return json.loads(row[0]) if row else None

    def record_call(self, trace: str, request: str, nth: int, role: str, record: dict[str, Any]) -> None:
        """Keep an answered call, for good, before this returns."""
        self._write("INSERT OR REPLACE INTO calls VALUES (?,?,?,?,?,?)", trace, request, nth, role, _dump(record))

    def record_trace(self, id: str, role: str, score: float | None, error: str | None, record: dict[str, Any]) -> None:
        """Keep a finished run of an example."""
        self._write("INSERT OR REPLACE INTO traces VALUES (?,?,?,?,?,?)", id, role, score, error, _dump(record))

    def event(self, kind: str, **facts: Any) -> None:
        """Note something that happened: a phase that began, a bad example, a decision."""
        with self._guard("write"):
            self._db.execute("INSERT INTO events VALUES (?,?,?)", (time.time(), kind, _dump(facts)))

    def job(self, key: str) -> dict[str, Any] | None:
        """What is known of a training job elsewhere, by the key of what it was asked to train."""
        with self._guard("read"):
            row = self._db.execute("SELECT record FROM jobs WHERE key=?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def record_job(self, key: str, record: dict[str, Any]) -> None:
        """Keep the state of a training job elsewhere."""
        self._write("INSERT OR REPLACE INTO jobs VALUES (?,?,?)", key, _dump(record))

    def traces(self, role: str | None = None) -> list[dict[str, Any]]:
        """The finished runs, oldest first."""
        with self._guard("read"):
            query = "SELECT record FROM traces WHERE role=? OR ? IS NULL ORDER BY at"
            return [json.loads(row[0]) for row in self._db.execute(query, (role, role))]

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        with self._guard("read"):
            query = "SELECT at, kind, record FROM events WHERE kind=? OR ? IS NULL ORDER BY at"
            return [{"at": at, "kind": k, **json.loads(r)} for at, k, r in self._db.execute(query, (kind, kind))]

    def calls(self) -> dict[str, int]:
        """How many calls each role has paid for, over all sittings of this run."""
        with self._guard("read"):
            return dict(self._db.execute("SELECT role, COUNT(*) FROM calls GROUP BY role").fetchall())

    def check_room(self) -> None:
        """Refuse to go on where the next reply could not be kept.

        Raises:
            LedgerError: The disk is nearly full, or an earlier write failed.
        """
        if self.failure:
            raise self.failure
        free = shutil.disk_usage(self.run_dir).free
        if free < _ROOM_BYTES:
            raise self._fail(
                f"The disk of run folder {self.run_dir} has {free / 2**20:.1f} MB left and a call needs room for its reply.",
                "Free some space and run the same command again: it goes on from here.",
            )

    def close(self) -> None:
        """Let the next compile in. The ledger cannot be used afterwards."""
        with self._lock:
            self._db.close()
            self._door.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _bar_others(self) -> FolderLock:
        try:
            return FolderLock(self.run_dir)
        except BlockingIOError as error:
            raise LedgerError(
                f"Another compile is using run folder {self.run_dir}.",
                hint="Wait for it to end, or pass another `run_dir`.",
            ) from error

    def _write(self, statement: str, *values: Any) -> None:
        with self._guard("write"):
            self._db.execute(statement, (*values, time.time()))

    @contextmanager
    def _guard(self, verb: str) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, OSError) as error:
            raise self._fail(
                f"Could not {verb} the ledger in run folder {self.run_dir}: {error}.", _advice(error)
            ) from error

    def _fail(self, message: str, hint: str) -> LedgerError:
        # Remembered, because a program may swallow the exception that stops its call; the bootstrap asks again.
        self.failure = LedgerError(message, hint=hint)
        return self.failure


def _advice(error: Exception) -> str:
    text = str(error).lower()
    if "full" in text or "no space" in text or "disk i/o" in text or "too large" in text:
        return "The disk seems full: free some space and run the same command again; nothing recorded so far is lost."
    if "readonly" in text or "read-only" in text or "permission" in text or "unable to open" in text:
        return "Pass a `run_dir` that you may write to."
    if "malformed" in text or "not a database" in text:
        return "The file was damaged: restore it, or pass a new `run_dir` to start over."
    return "Pass another `run_dir`, or repair this one and run the same command again."


def _dump(record: Any) -> str:
    return json.dumps(record, ensure_ascii=True, default=str)
