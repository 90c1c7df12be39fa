"""Files of a training run: what they hash to, and errors of the file system in the words of a training."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import TrainingError
from ..files import sha256_of

MANIFEST = "manifest.json"
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
