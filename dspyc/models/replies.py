"""A reply's text as a message: tool calls in the Hermes style (`<tool_call>{json}</tool_call>`) become parts."""

import json
import re
from typing import Any

from dspy import lm15

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def reply_message(text: str, *, tools: bool) -> tuple[lm15.Message, bool]:
    """The assistant's message, and whether it calls a tool. Where no tools were offered, text stays text."""
    calls: list[lm15.ToolCallPart] = []

    def taken(match: re.Match[str]) -> str:
        call = _call(match[1], len(calls))
        if call is None:
            return match[0]
        calls.append(call)
        return ""

    rest = _CALL.sub(taken, text) if tools else text
    if not calls:
        return lm15.Message.assistant(text), False
    spoken = [lm15.TextPart(rest.strip())] if rest.strip() else []
    return lm15.Message.assistant([*spoken, *calls]), True


def _call(text: str, index: int) -> lm15.ToolCallPart | None:
    try:
        found: Any = json.loads(text)
        arguments = found.get("arguments", found.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments or "{}")
        return lm15.ToolCallPart(id=f"call_{index}", name=found["name"], input=arguments)
    except (KeyError, TypeError, ValueError):
        return None  # not a call after all: the program sees the text
