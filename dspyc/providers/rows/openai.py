"""OpenAI's chat rows; Azure OpenAI and servers that speak the protocol take the same.

{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "weight": 1}], "tools": [...]}
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .chat import ChatRules
from .formatter import Formatter

RULES = ChatRules(tools=True, images=True, weights=True, alternate=False, developer=True)
_MOST_IMAGES = 10
_IMAGE = re.compile(r"https?://\S+|data:image/(jpeg|png|webp);base64,\S+")


def problems(row: Mapping[str, Any]) -> Iterator[str]:
    """The rules for turns, and those for images: ten a row, by address or as JPEG, PNG or WebP data."""
    found = list(RULES.problems(row))
    yield from found
    if found:
        return
    parts = [part for turn in row["messages"] if isinstance(turn.get("content"), list) for part in turn["content"]]
    images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    if len(images) > _MOST_IMAGES:
        yield f"it has {len(images)} images; {_MOST_IMAGES} are allowed"
    for url in images:
        if not _IMAGE.fullmatch(url):
            yield f"an image is {url[:40]!r}; an http address, or JPEG, PNG or WebP as a data: URL is allowed"


def write(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row itself, without what only dspyc reads."""
    return {name: row[name] for name in ("messages", "tools", "parallel_tool_calls") if row.get(name) not in (None, [])}


OPENAI = Formatter(
    "openai",
    problems,
    write,
    fewest=10,
    most_bytes=512 * 2**20,
    source="https://platform.openai.com/docs/guides/supervised-fine-tuning",
)
