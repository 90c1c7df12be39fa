"""The threads that torch's operations are divided among, where OpenMP keeps them."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

_SOFT = 1  # omp_pause_soft of OpenMP 5.0, section 3.2.44: what is paused starts again when it is needed


def let_go_of_threads() -> None:
    """End the threads that help the calling one to compute; its next large operation starts them again.

    Each thread that computes has helpers of its own. As soon as those of all threads outnumber the cores, GNU's OpenMP lets
    every helper sleep between operations, and waking it takes longer than a small model's operation: answering took 1.4 to 1.6
    times as long after training in another thread of the process. Does nothing where torch brings no such library.
    """
    library = _library()
    if library is not None:
        library.omp_pause_resource_all(_SOFT)


@functools.cache
def _library() -> Any:
    """GNU's OpenMP as torch's wheels for Linux bring it; None elsewhere."""
    found = next(Path(torch.__file__).parent.glob("lib/libgomp*.so*"), None)
    try:
        library = ctypes.CDLL(str(found)) if found is not None else None
    except OSError:
        return None
    return library if hasattr(library, "omp_pause_resource_all") else None
