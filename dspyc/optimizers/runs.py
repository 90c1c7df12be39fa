"""Where a compile keeps its record."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import dspy

from ..compiler.examples import example_keys
from ..files import home


def run_folder(run_dir: str | os.PathLike[str] | None, asks: str) -> Path:
    """The folder that was asked for; else one named after all that the compile asks by, so that it is found again.

    The metric is no part of `asks`: with another, recorded answers are scored anew. So it is with its threshold, but in a
    random search: one that is finished begins no runs ahead, and another threshold may need many.
    """
    return Path(run_dir) if run_dir is not None else home() / "runs" / asks


def data_fingerprint(examples: Sequence[dspy.Example]) -> str:
    """16 hex digits that name examples and their order."""
    return hashlib.sha256("\n".join(example_keys(examples)).encode()).hexdigest()[:16]
