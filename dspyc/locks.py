"""One process at a time in a folder."""

import sqlite3
from pathlib import Path


class FolderLock:
    """Held until it is closed or its process ends, however it ends: it is an open transaction of a database in the folder.

    Raises:
        BlockingIOError: It is held already, by another process or by this one.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._connection = sqlite3.connect(
                folder / "lock.sqlite", timeout=0, check_same_thread=False, isolation_level=None
            )
        except sqlite3.OperationalError as error:
            raise _refusal(folder, error) from error
        try:
            self._connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._connection.close()
            if "locked" in str(error):
                raise BlockingIOError(f"{folder} is in use") from error
            raise _refusal(folder, error) from error

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _refusal(folder: Path, error: sqlite3.Error) -> OSError:
    """What the system says of a folder in which SQLite cannot write; SQLite does not say why."""
    try:
        (folder / "lock.sqlite").touch()
    except OSError as refused:
        return refused
    return OSError(str(error))
