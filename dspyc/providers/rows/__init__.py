"""Rows in each provider's form, checked by its published rules before anything is uploaded.

    report = formatter("bedrock-nova").format(rows)        # rows are {"messages": [...], "tools": [...]}
    for refusal in report.refused: ...                     # its row's number, and every reason
    taken = report.accepted()                              # all of them, or a DataError that names those refused

One file a provider, and one for preferences; what they have in common is data (`ChatRules`).
"""

from dataclasses import replace

from ...errors import ConfigError
from . import bedrock, databricks, fireworks, openai, preferences, together, vertex
from .formatter import Formatter, Refusal, RowReport, json_lines

__all__ = ["FORMATTERS", "Formatter", "Refusal", "RowReport", "formatter", "json_lines"]

_ALL = (
    openai.OPENAI,
    preferences.PREFERENCES,
    bedrock.NOVA,
    bedrock.TEXT,
    databricks.RUNTIME,
    together.TOGETHER,
    fireworks.FIREWORKS,
    vertex.VERTEX,
)
FORMATTERS: dict[str, Formatter] = {one.name: one for one in _ALL} | {"azure": replace(openai.OPENAI, name="azure")}


def formatter(name: str) -> Formatter:
    """A provider's formatter.

    Raises:
        ConfigError: No provider of that name.
    """
    if name not in FORMATTERS:
        raise ConfigError(f"There are no rows for {name!r}.", hint=f"Use one of {', '.join(FORMATTERS)}.")
    return FORMATTERS[name]
