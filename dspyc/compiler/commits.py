"""Writes to one database from many threads, several to a commit.

The thread whose turn it is commits all writes that wait by then, and the other threads find theirs done: with one thread
this is a commit a write, with sixteen about one for sixteen. What is committed survives the process, however it ends. Against
a power failure a commit also waits for the disk, unless one did so within the last tenth of a second.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[sqlite3.Connection], Any]
_MOST = 256  # writes that may wait for somebody else's commit
_SYNC_EVERY = 0.1  # seconds


class Commits:
    """The queue of writes to a database. Its connection is in autocommit mode and used by this queue alone.

    `undone` is called before the next commit where one did not come about.
    """

    def __init__(self, db: sqlite3.Connection, undone: Callable[[], None] = lambda: None) -> None:
        self._db, self._undone = db, undone
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._waiting: list[_Write] = []
        self._synced = 0.0
        self._full: bool | None = None  # as the connection is set

    def add(self, work: Work) -> None:
        """Do `work` with a coming commit, whose error is then its own too."""
        with self._lock:
            self._waiting.append(_Write(work))
            many = len(self._waiting) >= _MOST
        if many:
            self.flush()

    def run(self, work: Work) -> Any:
        """Do `work`, and return what it returns once that is on the disk.

        Raises:
            sqlite3.Error: The commit failed, and with it every write that it held.
            ValueError: One of them holds what the database cannot.
        """
        write = _Write(work)
        with self._lock:
            self._waiting.append(write)
        with self._turn:
            if not write.done:
                self._commit()
        if write.error is not None:
            raise write.error
        return write.result

    def flush(self) -> None:
        """Commit what waits."""
        with self._turn:
            self._commit()

    def close(self) -> None:
        """Close the connection, with all that it wrote on the disk; writes fail from now on."""
        with self._turn:
            self._sync(full=True)
            self._db.close()

    def _commit(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, []
        if not batch:
            return
        try:
            self._sync(full=time.monotonic() - self._synced >= _SYNC_EVERY)
            self._db.execute("BEGIN IMMEDIATE")
            for write in batch:
                write.result = write.work(self._db)
            self._db.execute("COMMIT")
        except Exception as error:
            self._undo()
            for write in batch:
                write.error, write.done = error, True
            raise
        except BaseException:  # Ctrl-C: nothing was kept, so all of it still waits
            self._undo()
            with self._lock:
                self._waiting = batch + self._waiting
            raise
        if self._full:
            self._synced = time.monotonic()
        for write in batch:
            write.done = True

    def _sync(self, *, full: bool) -> None:
        if full is not self._full:
            self._db.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
            self._full = full

    def _undo(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._undone()


class _Write:
    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.result: Any = None
        self.error: Exception | None = None
        self.done = False
