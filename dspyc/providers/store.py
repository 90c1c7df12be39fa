"""The durable record of training jobs elsewhere: `jobs/jobs.sqlite` in dspyc's own folder.

A job is named by what it trains: provider, connection, base model, rows and settings. So the same order finds the same
record in any process, after any crash. Records hold ids, settings and fingerprints; neither rows nor secrets.
"""

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, LedgerError
from ..files import home
from ..locks import FolderLock

logger = logging.getLogger(__name__)

State = Literal["new", "creating", "created", "forgotten"]

_SCHEMA = "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, record TEXT NOT NULL, created_at REAL NOT NULL)"
_LOCK_POLL = 0.1  # seconds
_opening = threading.Lock()


@dataclass
class JobRecord:
    """What is known of one job. Times are seconds since 1970."""

    id: str
    provider: str
    connection: dict[str, Any]  # what another process needs to reach the provider; no secrets
    model: str  # the base model's string, as DSPy calls it
    settings: dict[str, Any]
    data: str  # the fingerprint of rows, validation rows and their format
    rows: int
    attempt: int = 1  # a job that failed or was cancelled may be ordered again
    # "creating": from before the request that makes the remote job until its answer is kept. "forgotten": the same order
    # starts another attempt, under a name of its own, for the provider may still know this one's.
    state: State = "new"
    remote_id: str | None = None
    status: str = "pending"
    error: str | None = None
    tuned: str | None = None  # the model string of what was trained
    estimate: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # the provider's own: ids of files, endpoints, versions
    created_at: float = field(default_factory=time.time)
    updated_at: float = field(default_factory=time.time)

    @property
    def ended_in_vain(self) -> bool:
        """Whether there will be no model."""
        return self.status in ("failed", "cancelled")

    @property
    def token(self) -> str:
        """Names this attempt at the provider: an idempotency token, and a part of names. Letters, digits and hyphens."""
        return f"dspyc-{self.id.rpartition('-')[2]}-{self.attempt}"


def job_store() -> "JobStore":
    """The store in dspyc's own folder: one, with one connection, for all of a process."""
    with _opening:  # several connections that make one file at the same time may wait for each other in vain
        return _opened(home() / "jobs", os.getpid())


@cache
def _opened(folder: Path, process: int) -> "JobStore":
    return JobStore(folder)


class JobStore:
    """All records of one folder. Threads and processes share it; every write is on the disk before its call returns.

    Raises:
        LedgerError: The folder cannot be made, read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        with self._guard():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.folder / "jobs.sqlite", timeout=30, check_same_thread=False, isolation_level=None
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_SCHEMA)

    def get(self, id: str) -> JobRecord | None:
        """The record of a job by its own id, forgotten or not."""
        with self._guard():
            row = self._db.execute("SELECT record FROM jobs WHERE id=?", (id,)).fetchone()
        return JobRecord(**json.loads(row[0])) if row else None

    def find(self, id: str) -> JobRecord:
        """The record of a job by its own id or by the provider's.

        Raises:
            ConfigError: No such job was started with this store.
        """
        found = next((r for r in reversed(self.all()) if id in (r.id, r.remote_id)), None)
        if found is None:
            raise ConfigError(
                f"No job {id!r} is known in {self.folder}.", hint="`dspyc jobs list` shows those that are."
            )
        return found

    def all(self) -> list[JobRecord]:
        """Every record that is not forgotten, oldest first."""
        with self._guard():
            rows = self._db.execute("SELECT record FROM jobs ORDER BY created_at").fetchall()
        records = [JobRecord(**json.loads(row[0])) for row in rows]
        return [record for record in records if record.state != "forgotten"]

    def put(self, record: JobRecord) -> None:
        """Keep a whole record, new or begun anew."""
        with self._guard():
            text = json.dumps(asdict(record), ensure_ascii=True)
            self._db.execute("INSERT OR REPLACE INTO jobs VALUES (?,?,?)", (record.id, text, record.created_at))

    def update(self, record: JobRecord, *, facts: dict[str, Any] | None = None, **fields: Any) -> None:
        """Change some fields and facts, in the store and in `record`, and leave what other processes wrote meanwhile. Where the
        store has another attempt, `record` alone is changed: what is known of a job says nothing of the next one."""
        with self._guard():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                row = self._db.execute("SELECT record FROM jobs WHERE id=?", (record.id,)).fetchone()
                kept = JobRecord(**json.loads(row[0])) if row else record
                now = kept if kept.attempt == record.attempt else record
                for name, value in {**fields, "updated_at": time.time()}.items():
                    setattr(now, name, value)
                now.facts |= facts or {}
                if kept.attempt == now.attempt:
                    self._db.execute(
                        "INSERT OR REPLACE INTO jobs VALUES (?,?,?)", (now.id, json.dumps(asdict(now)), now.created_at)
                    )
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        vars(record).update(vars(now))

    @contextmanager
    def alone(self, id: str) -> Iterator[None]:
        """Submit one job in one process at a time: a second waits here, and then finds the first one's record."""
        folder = self.folder / "locks" / id
        folder.mkdir(parents=True, exist_ok=True)
        said = False
        while True:
            try:
                lock = FolderLock(folder)
                break
            except BlockingIOError:
                if not said:
                    logger.warning("Job %s is being started by another process or thread: waiting for it.", id)
                    said = True
                time.sleep(_LOCK_POLL)
        with lock:
            yield

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(
                f"The record of training jobs in {self.folder} cannot be used: {error}.",
                hint="Free some space, or set DSPYC_HOME to a folder that you may write to.",
            ) from error
