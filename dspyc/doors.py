"""Names of a room that load what they need when they are first used: importing dspyc loads no torch and no provider's SDK."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def opened(room: str, doors: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of the package `room`; `doors` say in which of its modules each name is (PEP 562)."""

    def find(name: str) -> Any:
        if name not in doors:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{doors[name]}", room), name)

    return find
