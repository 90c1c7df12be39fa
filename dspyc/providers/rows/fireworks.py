"""Fireworks' chat rows: OpenAI's, with strings for texts and the system's turn first.

{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "weight": 1}], "tools": [...]}
"""

from collections.abc import Iterator, Mapping
from typing import Any

from .chat import ChatRules, plain
from .formatter import Formatter

RULES = ChatRules(tools=True, weights=True, alternate=False)


def problems(row: Mapping[str, Any]) -> Iterator[str]:
    """OpenAI's rules, and the system's turn first."""
    yield from RULES.problems(row)
    messages = row.get("messages")
    for place, turn in enumerate(messages if isinstance(messages, list) else (), start=1):
        if place > 1 and isinstance(turn, Mapping) and turn.get("role") == "system":
            yield f"turn {place} is the system's; only the first may be"


FIREWORKS = Formatter(
    "fireworks",
    problems,
    plain,
    fewest=3,
    most=3_000_000,
    most_bytes=150 * 2**20,  # https://docs.fireworks.ai/api-reference/upload-dataset-files
    source="https://docs.fireworks.ai/fine-tuning/fine-tuning-models",
)
