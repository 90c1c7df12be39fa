"""A short name for JSON content. It stands apart from the other fingerprints because training needs it, and no DSPy."""

import hashlib
import json
from typing import Any

_DIGITS = 16
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def fingerprint(jsonable: Any) -> str:
    """16 hex digits that name a JSON-able value; the order of an object's keys makes no difference.

    Raises:
        TypeError: The value holds something that JSON does not.
    """
    return hashlib.sha256(_encode(jsonable).encode()).hexdigest()[:_DIGITS]
