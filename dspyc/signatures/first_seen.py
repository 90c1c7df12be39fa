"""What was noted of objects, classes, functions and modules when they were first seen.

noted(tool)["cache"] = ({}, "…")     # forgotten when the tool is
carry_over(copies)                   # copies were first seen with their originals
"""

import threading
import weakref
from typing import Any

Noted = dict[str, tuple[Any, Any]]  # by name: a value, and how it was described

_noted: dict[int, Noted] = {}  # by the `id` of what is alive
_lock = threading.RLock()


def noted(owner: Any) -> Noted:
    """What was noted of `owner`, to be added to. Of what takes no weak reference nothing is kept."""
    with _lock:
        if id(owner) not in _noted:
            try:
                weakref.finalize(owner, _noted.pop, id(owner), None).atexit = False
            except TypeError:
                return {}
            _noted[id(owner)] = {}
        return _noted[id(owner)]


def carry_over(copies: dict[int, Any]) -> None:
    """What was noted of originals holds for their copies too. `copies` is by the `id` of the original, as in `deepcopy`."""
    for original, copied in list(copies.items()):
        for name, (value, described) in list(_noted.get(original, {}).items()):
            noted(copied)[name] = copies.get(id(value), value), described
