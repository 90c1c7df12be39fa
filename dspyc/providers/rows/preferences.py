"""Preference rows for direct preference optimization (Rafailov et al., 2023, arXiv 2305.18290), in OpenAI's form.

{"input": {"messages": [...], "tools": [...]}, "preferred_output": [message], "non_preferred_output": [message]}
"""

from collections.abc import Iterator, Mapping
from typing import Any

from .formatter import Formatter
from .openai import OPENAI


def problems(row: Any) -> Iterator[str]:
    """A prompt that ends with a user's or a tool's turn, and two replies to it that differ."""
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


PREFERENCES = Formatter(
    "openai-preferences",
    problems,
    dict,
    chat=False,
    fewest=OPENAI.fewest,
    most_bytes=OPENAI.most_bytes,
    source="https://platform.openai.com/docs/guides/direct-preference-optimization",
)
