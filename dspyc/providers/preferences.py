"""Preference rows for direct preference optimization (Rafailov et al., 2023, arXiv 2305.18290), in OpenAI's form.

{"input": {"messages": [...], "tools": [...]}, "preferred_output": [message], "non_preferred_output": [message]}
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import DataError

_FEWEST = 10
_SHOWN = 10


def check_preferences(rows: Sequence[Mapping[str, Any]], least: bool = True) -> None:
    """Raises DataError with the number and reason of each row that would be refused, counted from 1, or for too few."""
    refused = [(i, reason) for i, row in enumerate(rows, start=1) for reason in _problems(row)]
    if refused:
        told = "; ".join(f"row {i}: {reason}" for i, reason in refused[:_SHOWN])
        more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise DataError(
            f"Preference rows would be refused: {told}{more}.",
            hint="A row is {'input': {'messages': [...]}, 'preferred_output': [...], 'non_preferred_output': [...]}.",
        )
    if least and len(rows) < _FEWEST:
        raise DataError(f"There are {len(rows)} preference rows.", hint=f"At least {_FEWEST} are needed.")


def _problems(row: Any) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"it is a {type(row).__name__}"
        return
    given = row.get("input")
    messages = given.get("messages") if isinstance(given, Mapping) else None
    if not isinstance(messages, list) or not messages:
        yield "`input` has no messages"
    elif not isinstance(messages[-1], Mapping) or messages[-1].get("role") not in ("user", "tool"):
        yield "the last message of `input` is not the user's"
    for name in ("preferred_output", "non_preferred_output"):
        reply = row.get(name)
        if not isinstance(reply, list) or len(reply) != 1:
            yield f"`{name}` is not a list of one message"
        elif not isinstance(reply[0], Mapping) or reply[0].get("role") != "assistant" or not reply[0].get("content"):
            yield f"`{name}` is not an assistant's message with content"
    if row.get("preferred_output") is not None and row.get("preferred_output") == row.get("non_preferred_output"):
        yield "both outputs are the same"
