"""Files and folders that are whole or absent, wherever a process is killed: written aside, flushed to the disk, then renamed.

A folder is written in `.writing-<8 hex digits>-<name>/` beside its place. While its writer lives, it holds the lock in there.

    new/      what is being written; in its last rename it takes its place
    old/      what stood there: from the rename before that one to the next one, and whole
    gone-…/   what stood there before, and may be half removed

What a killed writer left is cleared by whoever comes next: an `old` goes back where nothing stands, the rest is removed.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from .locks import FolderLock

_ASIDE = ".writing-"
_FOLDER_ASIDE = re.compile(r"\.writing-[0-9a-f]{8}-(.+)", re.DOTALL)
_LONGEST_RENAME = 1.0  # seconds that a living writer's two renames may take


def home() -> Path:
    """Where dspyc keeps what was given no folder: `$DSPYC_HOME`, else `~/.cache/dspyc`."""
    return Path(os.environ.get("DSPYC_HOME") or Path.home() / ".cache" / "dspyc").expanduser()


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, in one move."""
    write_bytes(path, json_bytes(value, indent=1, allow_nan=False) + b"\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError or ValueError where it cannot be read."""
    return json.loads(path.read_text(encoding="utf-8"))


def json_bytes(value: Any, **options: Any) -> bytes:
    """JSON in UTF-8, by `options` of `json.dumps`. Half a surrogate pair, which has no UTF-8 form, becomes JSON's escape."""
    return json.dumps(value, ensure_ascii=False, **options).encode(errors="backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """A whole file, in one move."""
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it appears as `path`, in the place of an older one, only once all of it is on the disk."""
    aside = path.with_name(f"{_ASIDE}{path.name}")
    try:
        with aside.open("wb") as file:
            yield file
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it appears as `path`, in the place of an older one, only once everything in it is on the disk.

    Of several writers at once each replaces what the one before it wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    settle(path)
    aside, lock = _claimed(path)
    with lock:
        try:
            yield aside / "new"
            for folder, _, files in os.walk(aside / "new"):
                for name in files:
                    flush(Path(folder, name))
                flush(Path(folder))
            flush(aside)
            _take_place(aside, path)
        finally:
            _clear(aside, path)


def settle(path: Path) -> None:
    """Clear what killed writers of the folder `path` left: it is there afterwards if it was there before them.

    A living writer that is about to put the new folder in its place is waited for.
    """
    for aside in path.parent.glob(f"{_ASIDE}{'[0-9a-f]' * 8}-{escape(path.name)}"):
        begun = time.monotonic()
        while not _clear_if_dead(aside, path):
            between = (aside / "old").exists() and not path.exists()
            if not between or time.monotonic() - begun > _LONGEST_RENAME:
                break
            time.sleep(0.01)


def clear_unfinished(folder: Path) -> None:
    """Clear what killed writers left in `folder`, of files and of folders."""
    for left in folder.glob(f"{_ASIDE}*"):
        if not left.is_dir():
            left.unlink(missing_ok=True)
        elif found := _FOLDER_ASIDE.fullmatch(left.name):
            _clear_if_dead(left, folder / found[1])
        else:
            shutil.rmtree(left, ignore_errors=True)


def _claimed(path: Path) -> tuple[Path, FolderLock]:
    """A new folder beside `path` with an empty `new`, and its lock.

    Before there is a lock, somebody may think its writer dead and clear it.
    """
    for attempts in range(10, 0, -1):
        aside, lock = path.with_name(f"{_ASIDE}{token_hex(4)}-{path.name}"), None
        aside.mkdir()
        try:
            lock = FolderLock(aside)
            (aside / "new").mkdir()
            break
        except OSError:
            if lock is not None:
                lock.close()
            shutil.rmtree(aside, ignore_errors=True)
            if attempts == 1:
                raise
    assert lock is not None
    return aside, lock


def _take_place(aside: Path, path: Path) -> None:
    """Rename `new` to `path`, and what stands there to `old` before."""
    new, old = aside / "new", aside / "old"
    while new.exists():
        with suppress(FileNotFoundError):
            os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            if not path.exists():
                raise
            _give_up(old)  # another writer was quicker: what it wrote is replaced
    flush(path.parent)
    flush(aside)


def _clear(aside: Path, path: Path) -> None:
    """Put `old` back where nothing stands, and remove the rest. For who has the lock of `aside`."""
    old = aside / "old"
    try:
        if old.exists() and not path.exists():
            os.rename(old, path)
            flush(path.parent)
        _give_up(old)
    except OSError:
        return  # it stays where it is, for whoever comes next
    shutil.rmtree(aside, ignore_errors=True)


def _clear_if_dead(aside: Path, path: Path) -> bool:
    """Whether nobody writes in `aside` any more; then it is cleared, if this user may."""
    try:
        with FolderLock(aside):
            _clear(aside, path)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _give_up(old: Path) -> None:
    """Under its new name nobody takes it for whole while it is being removed."""
    with suppress(FileNotFoundError):
        os.rename(old, old.with_name(f"gone-{token_hex(4)}"))


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk; for a folder only where the system can."""
    folder, windows = path.is_dir(), os.name == "nt"
    if folder and windows:
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network file systems'
            raise
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines of JSONL that are not empty. Not `splitlines`: JSON may hold U+2028."""
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
