"""Classes by their names, as files that dspyc writes have them."""

import importlib
from typing import Any


def imported(reference: str) -> Any:
    """What `"module:Outer.Inner"` names.

    Raises:
        ImportError: There is no such module, or nothing of that name in it.
    """
    module, _, path = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (AttributeError, ValueError, TypeError) as error:
        raise ImportError(str(error)) from error
    return found
