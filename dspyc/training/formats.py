"""Rows as people keep them in JSONL files, read as the chat rows that training takes.

    {"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi!"}], "tools": [...]}
    {"prompt": "What is a llama?", "response": "An animal."}            or "completion"; with an optional "system"
    {"instruction": "Translate to French", "input": "Hello", "output": "Bonjour"}           "input" may be left out
    {"text": "All of it is learned, as a reply to nothing."}                                               or "code"

A file may mix them. Other fields (ids, sources) are passed over, but for "predictor", which reports name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import numbered_lines

_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"))
_ALONE = ("text", "code")
_ALLOWED = (
    'A row is {"messages": […]}, {"prompt": …, "response": …} (or "completion"), '
    '{"instruction": …, "input": …, "output": …}, {"text": …} or {"code": …}.'
)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The chat rows in a JSONL file.

    Raises:
        DataError: The file cannot be read or is empty, or a line holds no row; the message has its number.
    """
    return [chat_row(row, f"{path}, line {number}") for number, row in read_objects(Path(path))]


def read_objects(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, JSON object) of every line of a JSONL file that is not empty.

    Raises:
        DataError: The file cannot be read, is empty, or a line is no JSON object; the message has its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.",
            hint="Pass a JSONL file in UTF-8. A data set of the Hugging Face hub becomes one by "
            "datasets.load_dataset('its/name', split='train').to_json('rows.jsonl').",
        ) from error
    found = []
    for number, line in numbered_lines(text):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error}.",
                hint='Each line is one JSON object, such as {"question": "…", "answer": "…"}.',
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} is a JSON {type(row).__name__}; an object is allowed.",
                hint='Each line is one JSON object, such as {"question": "…", "answer": "…"}.',
            )
        found.append((number, row))
    if not found:
        raise DataError(f"{path} holds no examples.", hint="Write one JSON object a line.")
    return found


def chat_row(row: Mapping[str, Any], name: str = "The row") -> dict[str, Any]:
    """A row of any shape that is allowed as a chat row; `name` is what an error calls it.

    Raises:
        DataError: The shape is not known, or a field holds something other than text; the message names the field.
    """
    if "messages" in row:
        return {key: row[key] for key in ("messages", "tools", "predictor") if row.get(key) is not None} | {
            "messages": _messages(row["messages"], name)
        }
    pair = next((pair for pair in _PAIRS if all(field in row for field in pair)), None)
    alone = next((field for field in _ALONE if field in row), None)
    if pair is None and alone is None:
        raise DataError(f"{name} has the fields {sorted(row)}, and no row has those.", hint=_ALLOWED)
    turns = _turns(row, "system", name) if row.get("system") is not None else []
    if pair is not None:
        turns += _asked(row, pair[0], name) + _turns(row, pair[1], name)
    else:
        turns += [{"role": "user", "content": ""}, *_turns(row, str(alone), name)]
    return {"messages": turns} | ({"predictor": row["predictor"]} if row.get("predictor") else {})


def _asked(row: Mapping[str, Any], field: str, name: str) -> list[dict[str, Any]]:
    turns = _turns(row, field, name)
    if field == "instruction" and row.get("input"):
        turns[0]["content"] += f"\n\n{_text(row, 'input', name)}"
    return turns


def _turns(row: Mapping[str, Any], field: str, name: str) -> list[dict[str, Any]]:
    role = {"system": "system", "prompt": "user", "instruction": "user"}.get(field, "assistant")
    text = _text(row, field, name)
    if role == "assistant" and not text.strip():
        raise DataError(f"{name}: `{field}` is empty, so there is nothing to learn.", hint="Mend the row, or drop it.")
    return [{"role": role, "content": text}]


def _text(row: Mapping[str, Any], field: str, name: str) -> str:
    if not isinstance(row[field], str):
        raise DataError(f"{name}: `{field}` is a JSON {type(row[field]).__name__}; text is allowed.", hint=_ALLOWED)
    return str(row[field])


def _messages(messages: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{name}: `messages` is {messages!r:.80}; a list of turns is allowed.", hint=_ALLOWED)
    for place, turn in enumerate(messages, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise DataError(
                f"{name}: turn {place} is {turn!r:.80}, without a role.",
                hint='A turn is {"role": "user", "content": "…"}; roles are system, user, assistant and tool.',
            )
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{name}: the last turn is the {messages[-1]['role']}'s, so there is nothing to learn.",
            hint="The last turn is the assistant's: it is what is learned.",
        )
    return messages
