"""What a model takes of a device's memory: planned before its weights are read, and reported while it runs."""

import gc
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import ModelError
from . import weights

_PREFIX_SHARE = 0.25  # of what the weights leave free
_BATCH_SHARE = 0.5
_ON_CPU = 4 << 30  # bytes that either takes at most of main memory, which other programs use too
_NO_MEMORY = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)  # how torch says it of main memory, and cuBLAS and the driver of a GPU
GIB = 1 << 30


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes: what was free before the weights were read, what these take, and the limits for prefixes and for batches."""

    free: int
    weights: int
    prefixes: int
    batch: int


@dataclass(frozen=True)
class MemoryReport:
    """Bytes that a loaded model takes now, with the limits of its plan."""

    weights: int
    adapters: int
    prefixes: int
    batch: int
    plan: MemoryPlan


def plan(path: Path, device: str, dtype: str) -> MemoryPlan:
    """How the free memory of `device` will be used for the model in `path`.

    Raises:
        ModelError: Its weights alone are larger than that memory.
    """
    if weights.device_of(device).type == "cuda":
        free_caches()
    needed, free = weight_bytes(path, weights.dtype_of(dtype, device)), free_bytes(weights.device_of(device))
    if needed > free:
        raise ModelError(
            f"The model in {path} takes {needed / GIB:.2f} GiB of memory as {weights.dtype_of(dtype, device)}, and "
            f"{weights.device_of(device)} has {free / GIB:.2f} GiB free.",
            hint="Close other models, take a smaller one, or dtype='bfloat16' where it is float32 now.",
        )
    left = free - needed
    most = _ON_CPU if weights.device_of(device).type != "cuda" else left
    return MemoryPlan(free, needed, min(int(left * _PREFIX_SHARE), most), min(int(left * _BATCH_SHARE), most))


def weight_bytes(path: Path, dtype: torch.dtype) -> int:
    """The bytes of all tensors of the model in a folder as `dtype`, from its files' headers."""
    files = weights.weight_files(path)
    numbers: int = sum(math.prod(tensor["shape"]) for file in files for tensor in weights.tensors_in(file).values())
    return numbers * dtype.itemsize


def free_caches() -> None:
    """Free what only cycles hold, as models and trainers do, and give back what torch keeps of a GPU for itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Bytes that `device` has left, as far as the system says it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    import psutil  # type: ignore[import-untyped, unused-ignore]

    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or in main memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)


def peak_bytes(device: torch.device) -> int:
    """Bytes: the most that was allocated on a CUDA device, or that this process has held in main memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
