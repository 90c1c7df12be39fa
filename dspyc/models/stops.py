"""Where a stop string ends a text."""

from collections.abc import Sequence


def first_stop(text: str, stop: Sequence[str], begin: int = 0) -> int:
    """Where the first stop string from `begin` on stands in `text`; its length where none does."""
    return min((at for word in stop if (at := text.find(word, begin)) >= 0), default=len(text))
