"""The ledger: the durable record of one compile, and what a resume reads.

One SQLite file in the run folder. Every language-model call is written before the next one may begin, so that a run that
was killed anywhere replays what it has and pays only for what is missing. A call is known by its content: the part that
made it, the inputs of its example, the request (model, messages, settings, rollout) and its occurrence. So what a changed
program or changed data still asks is answered too. Traces, candidates, remote jobs and events stand beside the calls for
people and tools to read; `compiler.records` reads the whole without taking part.
"""

import json
import math
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import LedgerError
from ..locks import FolderLock
from .budget import Budget, Meter, Spent
from .commits import Commits, Work

SCHEMA = 2
_TABLES = """
CREATE TABLE messages (id INTEGER PRIMARY KEY, hash BLOB UNIQUE, body TEXT);
CREATE TABLE calls (role TEXT, example TEXT, request TEXT, nth INTEGER, model TEXT, messages TEXT, replies TEXT,
                    facts TEXT, at REAL, PRIMARY KEY (example, request, nth, role));
CREATE TABLE spent (role TEXT PRIMARY KEY, calls INTEGER, paid INTEGER, tokens INTEGER, usd REAL);
CREATE TABLE traces (id TEXT PRIMARY KEY, role TEXT, score REAL, error TEXT, record TEXT, at REAL);
CREATE TABLE candidates (id TEXT PRIMARY KEY, score REAL, record TEXT, at REAL);
CREATE TABLE jobs (key TEXT PRIMARY KEY, record TEXT, at REAL);
CREATE TABLE events (at REAL, kind TEXT, record TEXT);
"""
# Free space below which no further call is made: a reply that cannot be written would be money lost.
_ROOM_BYTES = 8 * 2**20
_ROOM_LASTS = 0.02  # seconds for which a look at the disk counts, less than most calls take
_KNOWN_MESSAGES = 100_000  # ids of messages kept in memory, some 10 MB
_NEW_CALL = "INSERT OR IGNORE INTO calls VALUES (?,?,?,?,?,?,?,?,?)"
_COUNT_CALL = """INSERT INTO spent VALUES (?,1,?,?,?) ON CONFLICT (role) DO UPDATE SET
                 calls=calls+1, paid=paid+excluded.paid, tokens=tokens+excluded.tokens, usd=usd+excluded.usd"""
_FIND_CALL = "SELECT replies, facts FROM calls WHERE example=? AND request=? AND nth=? AND role=?"


class CallKey(NamedTuple):
    """What a call is known by. `example` is its `call_key`; `nth` counts equal requests within one run of the example."""

    role: str
    example: str
    request: str
    nth: int = 0


class Answer(NamedTuple):
    """What came back: the replies as JSON text, and usage, cost and seconds."""

    replies: str
    facts: dict[str, Any]


class Ledger:
    """The record in one run folder. Threads share it; a second process is turned away.

    `budget` limits what the run may spend, over all its sittings; `meter` knows what it has spent.

    Raises:
        LedgerError: The folder cannot be made, read or written, another process is compiling in it, or its ledger is
            damaged or of another version.
    """

    def __init__(self, run_dir: Path, *, budget: Budget | None = None) -> None:
        self.run_dir = run_dir
        self.path = run_dir / "ledger.sqlite"
        self._reading = threading.Lock()
        self._messages: dict[bytes, int] = {}
        self._room_seen = -math.inf  # when the disk last had room
        self.failure: LedgerError | None = None
        self.stopped = False  # no further call may begin: the run is being left
        with self._guard("open"):
            run_dir.mkdir(parents=True, exist_ok=True)
            self._folder_lock = self._lock_folder()
            try:
                self._commits = Commits(self._open(), undone=self._messages.clear)
                self._reader = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
                sums = "SELECT SUM(calls), SUM(paid), SUM(tokens), SUM(usd) FROM spent"
                known, *spent = self._reader.execute(sums).fetchone()
                # Read, for a truncated file lacks its last pages.
                last_of = {
                    table: self._reader.execute(
                        f"SELECT * FROM {table} WHERE rowid=(SELECT MAX(rowid) FROM {table})"
                    ).fetchone()
                    for table in ("messages", "calls", "traces", "events")
                }
            except BaseException:
                self._folder_lock.close()
                raise
        # The hashes of all calls, where this ledger began without any.
        self._calls: set[int] | None = set() if last_of["calls"] is None else None
        self.replayed: int = known or 0  # calls that earlier sittings had answered
        self.meter = Meter(budget, Spent(*(value or 0 for value in spent)), run_dir)

    def recall(self, key: CallKey) -> Answer | None:
        """The answer that such a call got, if it ever got one."""
        if self._calls is not None and hash(key) not in self._calls:
            return None
        with self._guard("read"), self._reading:
            row = self._reader.execute(_FIND_CALL, (key.example, key.request, key.nth, key.role)).fetchone()
        return Answer(row[0], json.loads(row[1])) if row else None

    def record_call(
        self, key: CallKey, model: str, messages: list[str], answer: Answer, *, paid: bool = True, tokens: int = 0
    ) -> Answer:
        """Keep an answered call, for good, before this returns; of two answers to one call, the first is kept.

        `messages` are JSON texts, each stored once however many calls send it. `paid` says that the model is elsewhere.

        Returns:
            The answer that is kept.
        """
        facts = json.dumps(answer.facts, default=str)

        def write(db: sqlite3.Connection) -> Answer:
            sent = json.dumps([self._message(db, body) for body in messages])
            done = db.execute(_NEW_CALL, (*key, model, sent, answer.replies, facts, time.time()))
            if done.rowcount == 1:
                usd = (answer.facts.get("cost") or 0.0) if paid else 0.0
                db.execute(_COUNT_CALL, (key.role, int(paid), tokens if paid else 0, usd))
                return answer
            row = db.execute(_FIND_CALL, (key.example, key.request, key.nth, key.role)).fetchone()
            return Answer(row[0], json.loads(row[1]))

        kept: Answer = self._write(write)
        if self._calls is not None:
            self._calls.add(hash(key))
        return kept

    def record_trace(self, id: str, role: str, score: float | None, error: str | None, record: dict[str, Any]) -> None:
        """Keep a finished run of an example. It may reach the disk with a later call: its own calls are there already."""
        statement = "INSERT OR REPLACE INTO traces VALUES (?,?,?,?,?,?)"
        self._write_later(statement, id, role, score, error, _dump(record), time.time())

    def record_candidate(self, id: str, score: float | None, record: dict[str, Any]) -> None:
        """Keep what is known of a program that a search considers."""
        self._write_later("INSERT OR REPLACE INTO candidates VALUES (?,?,?,?)", id, score, _dump(record), time.time())

    def event(self, kind: str, **facts: Any) -> None:
        """Note something that happened: a phase that began, a bad example, a decision."""
        self._write_later("INSERT INTO events VALUES (?,?,?)", time.time(), kind, _dump(facts))

    def job(self, key: str) -> dict[str, Any] | None:
        """What is known of a training job elsewhere, by the key of what it was asked to train."""
        rows = self._read("SELECT record FROM jobs WHERE key=?", key)
        return json.loads(rows[0][0]) if rows else None

    def record_job(self, key: str, record: dict[str, Any]) -> None:
        """Keep the state of a training job elsewhere, for good, before this returns."""
        row = (key, _dump(record), time.time())
        self._write(lambda db: db.execute("INSERT OR REPLACE INTO jobs VALUES (?,?,?)", row))

    def traces(self, role: str | None = None) -> Iterator[dict[str, Any]]:
        """The finished runs, oldest first, a few in memory at a time: each has all that its predictors were given."""
        for (id,) in self._read("SELECT id FROM traces WHERE role=? OR ? IS NULL ORDER BY at", role, role):
            ((record,),) = self._read("SELECT record FROM traces WHERE id=?", id)
            yield json.loads(record)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        rows = self._read("SELECT at, kind, record FROM events WHERE kind=? OR ? IS NULL ORDER BY at", kind, kind)
        return [{"at": at, "kind": k, **json.loads(record)} for at, k, record in rows]

    def calls(self) -> dict[str, int]:
        """How many calls each role has had answered, over all sittings of this run."""
        return dict(self._read("SELECT role, calls FROM spent"))

    def check_room(self) -> None:
        """Refuse to go on where the next reply could not be kept.

        Raises:
            LedgerError: The disk is nearly full or cannot be seen, or an earlier write failed.
        """
        if self.failure:
            raise self.failure
        if time.monotonic() - self._room_seen < _ROOM_LASTS:
            return
        with self._guard("find room for"):
            free = shutil.disk_usage(self.run_dir).free
        if free < _ROOM_BYTES:
            raise self._fail(
                f"The disk of run folder {self.run_dir} has {free / 2**20:.1f} MB left and a call needs room for its reply.",
                "Free some space and run the same command again: it goes on from here.",
            )
        self._room_seen = time.monotonic()

    def close(self) -> None:
        """Let the next compile in. The ledger cannot be used afterwards."""
        self.stopped = True
        try:
            with self._guard("write"):
                self._commits.flush()
        finally:
            with self._reading:
                self._reader.close()
            self._commits.close()
            self._folder_lock.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.close()
        except LedgerError:
            if kind is None:  # else what happened first is what to tell
                raise

    def _open(self) -> sqlite3.Connection:
        if not self.path.exists():
            self._begin()
        elif not self.path.stat().st_size:  # which SQLite would take for a new one, and its calls would be paid again
            raise LedgerError(
                f"The ledger {self.path} is empty, and a run that began it wrote its tables at once: what it held is lost.",
                hint="Restore it from a copy; delete it, or pass a new `run_dir`, to start over and pay for all calls.",
            )
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        self._make_tables(db)
        return db

    def _begin(self) -> None:
        """Make the file with its tables under another name: wherever this is killed, no ledger is empty."""
        begun = self.path.with_name("ledger.sqlite.begun")
        with closing(sqlite3.connect(begun, isolation_level=None)) as db:
            self._make_tables(db)
        begun.replace(self.path)

    def _make_tables(self, db: sqlite3.Connection) -> None:
        if not check_schema(db, self.run_dir):
            db.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, _TABLES.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={SCHEMA}")
            db.execute("COMMIT")

    def _lock_folder(self) -> FolderLock:
        try:
            return FolderLock(self.run_dir)
        except BlockingIOError as error:
            raise LedgerError(
                f"Another compile is using run folder {self.run_dir}.",
                hint="Wait for it to end, or pass another `run_dir`.",
            ) from error

    def _message(self, db: sqlite3.Connection, body: str) -> int:
        name = blake2b(body.encode(), digest_size=16).digest()
        known = self._messages.get(name)
        if known is None:
            done = db.execute("INSERT OR IGNORE INTO messages VALUES (NULL,?,?)", (name, body))
            known = done.lastrowid
            if not done.rowcount:
                (known,) = db.execute("SELECT id FROM messages WHERE hash=?", (name,)).fetchone()
            if len(self._messages) >= _KNOWN_MESSAGES:
                self._messages.clear()
            assert known is not None
            self._messages[name] = known
        return known

    def _write(self, work: Work) -> Any:
        with self._guard("write"):
            return self._commits.run(work)

    def _write_later(self, statement: str, *values: Any) -> None:
        with self._guard("write"):
            self._commits.add(lambda db: db.execute(statement, values))

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._guard("read"):
            self._commits.flush()
            with self._reading:
                return self._reader.execute(query, values).fetchall()

    @contextmanager
    def _guard(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            raise self._fail(
                f"Could not {verb} the ledger in run folder {self.run_dir}: {error}.", advice(error)
            ) from error

    def _fail(self, message: str, hint: str) -> LedgerError:
        # Remembered, because a program may swallow the exception that stops its call; the bootstrap asks again.
        self.failure = LedgerError(message, hint=hint)
        return self.failure


def check_schema(db: sqlite3.Connection, run_dir: Path) -> bool:
    """Whether a database holds this version's tables; False where it is new.

    Raises:
        LedgerError: It is of another version.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA:
        return True
    if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
        return False
    raise LedgerError(
        f"The ledger in run folder {run_dir} has version {version or 1}; this dspyc reads and writes version {SCHEMA}.",
        hint="Go on with the dspyc that began it, or pass a new `run_dir` to start over.",
    )


def advice(error: Exception) -> str:
    """What to do about an error of SQLite or of the file system."""
    text = str(error).lower()
    if "full" in text or "no space" in text or "disk i/o" in text or "too large" in text:
        return "The disk seems full: free some space and run the same command again; nothing recorded so far is lost."
    if "locked" in text:
        return "Another program holds the file: close what reads or copies it, and run the same command again."
    if "readonly" in text or "read-only" in text or "permission" in text or "unable to open" in text:
        return "Pass a `run_dir` that you may write to."
    if "malformed" in text or "not a database" in text or "no such table" in text:
        return "The file was damaged: restore it, or pass a new `run_dir` to start over."
    return "Pass another `run_dir`, or repair this one and run the same command again."


def _dump(record: Any) -> str:
    return json.dumps(record, ensure_ascii=True, default=str)
