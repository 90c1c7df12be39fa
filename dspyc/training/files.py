"""Files that are either whole or absent: written aside, flushed to the disk, then renamed into place."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TrainingError

MANIFEST = "manifest.json"
_ASIDE = ".writing-"
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_FULL_SIGNS = tuple(f"os error {code}" for code in _FULL)  # how safetensors says it


@contextmanager
def guarded(doing: str, folder: Path) -> Iterator[None]:
    """Errors of the file system as TrainingError: what was being done, where, and what to do."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"Cannot {doing} in {folder}: {error.strerror or error}.", hint=_hint(error.errno in _FULL)
        ) from error
    except _safetensor_error() as error:
        full = any(sign in str(error) for sign in _FULL_SIGNS)
        raise TrainingError(f"Cannot {doing} in {folder}: {error}", hint=_hint(full)) from error


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError  # other rooms use this file where nothing is trained

    return SafetensorError


def _hint(full: bool) -> str:
    if full:
        return "Free some space or choose another output_dir; the same call goes on from the newest whole checkpoint."
    return "Choose an output_dir that this user can write to."


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, in one move."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """A whole file, in one move."""
    aside = path.with_name(f"{_ASIDE}{path.name}")
    try:
        aside.write_bytes(content)
        flush(aside)
        os.replace(aside, path)
        flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it appears as `path`, in the place of an older one, only once everything in it is on the disk."""
    aside = path.with_name(f"{_ASIDE}{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in (p for p in aside.rglob("*") if p.is_file()):
            flush(file)
        flush(aside)
        old = path.with_name(f"{_ASIDE}old-{path.name}")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(aside, path)
        flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed process had begun to write."""
    for left in folder.glob(f"{_ASIDE}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in `folder` but its manifest, by name."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}


def first_damaged(folder: Path, expected: dict[str, str]) -> str | None:
    """The name of a file that is missing or is not what was written, or None where all are whole."""
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != digest:
            return name
    return None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
