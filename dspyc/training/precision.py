"""What matrix products are computed in, while weights that are trained stay float32."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import torch

from ..models.weights import multiplies_bf16


class Precision(Protocol):
    """Makes the context that a forward pass runs in."""

    def __call__(self) -> AbstractContextManager[None]: ...


def autocast(dtype: torch.dtype | None, device: torch.device) -> Precision:
    """Products in `dtype`; None leaves everything as it is."""
    return partial(torch.autocast, device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What matrix products run in: "auto" is bfloat16 where the hardware multiplies it natively; None is float32."""
    if precision == "auto":
        return torch.bfloat16 if multiplies_bf16(device) or (device.type == "cpu" and _cpu_multiplies_bf16()) else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def frozen_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What a frozen base is held in: on a GPU what its products are computed in, elsewhere float32."""
    return (autocast_dtype(precision, device) if device.type == "cuda" else None) or torch.float32


def lighter_base(held: set[torch.dtype], device: torch.device) -> str:
    """What a hint says beside its own where memory ran out: a base held in these dtypes, whose size fp16 would halve."""
    return " precision='fp16' halves the frozen base." if device.type == "cuda" and held == {torch.float32} else ""


def _cpu_multiplies_bf16() -> bool:
    checks: Iterable[str] = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in checks if hasattr(torch.cpu, name))
