"""Vertex AI's rows for Gemini: contents of a user and a model, the system's turn apart.

{"systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
 "contents": [{"role": "user", "parts": [{"text": "2+2?"}]}, {"role": "model", "parts": [{"text": "4"}]}]}
"""

import json
from collections.abc import Mapping
from typing import Any

from .chat import ChatRules, text_of
from .formatter import Formatter

RULES = ChatRules(tools=True)


def write(row: Mapping[str, Any]) -> dict[str, Any]:
    """Gemini's form: tool calls as `functionCall` parts, their results as the user's `functionResponse` parts."""
    names: dict[str, str] = {}  # of the functions that were called so far: ids may come again in a later turn
    contents: list[dict[str, Any]] = []
    made: dict[str, Any] = {}
    for turn in row["messages"]:
        names |= {call["id"]: call["function"]["name"] for call in turn.get("tool_calls") or ()}
        if turn["role"] == "system":
            made["systemInstruction"] = {"role": "system", "parts": [{"text": text_of(turn)}]}
        elif turn["role"] == "tool":
            result = {"name": names[turn["tool_call_id"]], "response": _result(text_of(turn) or "")}
            _add(contents, "user", [{"functionResponse": result}])
        else:
            _add(contents, "model" if turn["role"] == "assistant" else "user", _parts(turn))
    made["contents"] = contents
    if row.get("tools"):
        made["tools"] = [{"functionDeclarations": [tool["function"] for tool in row["tools"]]}]
    return made


def _add(contents: list[dict[str, Any]], role: str, parts: list[dict[str, Any]]) -> None:
    """Results of calls that were made together are one content."""
    if contents and contents[-1]["role"] == role:
        contents[-1]["parts"].extend(parts)
    else:
        contents.append({"role": role, "parts": parts})


def _parts(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = text_of(turn)
    calls = [call["function"] for call in turn.get("tool_calls") or ()]
    asked = [{"functionCall": {"name": call["name"], "args": json.loads(call["arguments"])}} for call in calls]
    return ([{"text": text}] if text else []) + asked


def _result(text: str) -> dict[str, Any]:
    """Gemini takes a result as an object."""
    try:
        found = json.loads(text)
    except ValueError:
        return {"result": text}
    return found if isinstance(found, dict) else {"result": found}


VERTEX = Formatter(
    "vertex",
    RULES.problems,
    write,
    most=1_000_000,
    most_bytes=2**30,
    source="https://cloud.google.com/vertex-ai/generative-ai/docs/models/gemini-supervised-tuning-prepare",
)
