"""What a provider asks of a chat row, as data, and one check that finds every breach of it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class ChatRules:
    """What a row may hold beyond text turns of a system, a user and an assistant.

    Attributes:
        tools: Tool calls, their results, and the row's list of tools.
        images: Image parts in a user's turn.
        weights: `weight` 0 or 1 on the assistant's turns: whether a turn is learned.
        alternate: After the system's turn, which is the first, users and assistants take turns, a user first.
        developer: A `developer` turn, OpenAI's newer word for the system's.
        exchanges: The most user turns that a row may have; None for any number.
        reserved: Words that no text may contain, in any case.
    """

    tools: bool = False
    images: bool = False
    weights: bool = False
    alternate: bool = True
    developer: bool = False
    exchanges: int | None = None
    reserved: tuple[str, ...] = ()

    def problems(self, row: Mapping[str, Any]) -> Iterator[str]:
        """Why a row would be refused: every reason, in the order of its turns."""
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages:
            yield "it has no list of messages"
            return
        for place, turn in enumerate(messages, start=1):
            yield from (f"turn {place} {problem}" for problem in self._in_turn(turn))
        if not all(isinstance(turn, Mapping) for turn in messages):
            return
        yield from self._in_order(messages)
        yield from self._in_tools(row.get("tools"), messages)

    @property
    def roles(self) -> tuple[str, ...]:
        developer = ("developer",) if self.developer else ()
        return ("system", *developer, "user", "assistant", *(("tool",) if self.tools else ()))

    def _in_turn(self, turn: Any) -> Iterator[str]:
        if not isinstance(turn, Mapping):
            yield f"is a JSON {type(turn).__name__}, not an object with a role"
            return
        role = turn.get("role")
        if role not in self.roles:
            yield f"has the role {role!r}; allowed are {', '.join(self.roles)}"
        calls = turn.get("tool_calls")
        if calls and not self.tools:
            yield "calls tools, which this provider does not train"
        elif calls:
            yield from _in_calls(calls, str(role))
        yield from self._in_content(turn, str(role), bool(calls))
        if "weight" in turn and not self.weights:
            yield "has a `weight`, which this provider does not take"
        elif "weight" in turn and (type(turn["weight"]) is not int or turn["weight"] not in (0, 1)):
            yield f"has the weight {turn['weight']!r}; 0 and 1 are allowed"
        elif "weight" in turn and role != "assistant":
            yield f"has a `weight`; only an assistant's turn may, and this is the {role}'s"

    def _in_content(self, turn: Mapping[str, Any], role: str, calls: bool) -> Iterator[str]:
        content = turn.get("content")
        if content is None and calls:
            return
        images = [part for part in content if _kind(part) == "image_url"] if isinstance(content, list) else []
        if images and not (self.images and role == "user"):
            yield f"holds an image; {'images belong into a user turn' if self.images else 'only text is allowed'}"
        text = text_of(turn)
        if text is None:
            yield f"has content of another kind than text: {_shown(content)}"
        elif not text.strip() and not images and not calls and role != "tool":
            yield "is empty"
        else:
            found = [word for word in self.reserved if word.lower() in text.lower()]
            if found:
                yield f"contains {', '.join(map(repr, found))}, reserved by the provider: its job would fail"

    def _in_order(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        roles = [turn.get("role") for turn in messages]
        if roles[-1] != "assistant":
            yield f"the last turn is the {roles[-1]}'s; it has to be the assistant's, which is learned"
        elif self.weights and messages[-1].get("weight") == 0 and not any(_learned(turn) for turn in messages):
            yield "every assistant turn has the weight 0, so nothing is learned"
        if "user" not in roles:
            yield "it has no user turn"
        if self.exchanges is not None and roles.count("user") > self.exchanges:
            yield f"it has {roles.count('user')} user turns; this provider's rows hold {self.exchanges}"
        if not self.alternate:
            return
        spoken = roles[1:] if roles[0] == "system" else roles
        if "system" in spoken:
            yield f"turn {roles.index('system', 1) + 1} is the system's; only the first may be"
        if spoken and spoken[0] != "user":
            yield f"the first turn after the system's is the {spoken[0]}'s; it has to be the user's"
        for place in range(1, len(spoken)):
            if spoken[place] == spoken[place - 1] and not (spoken[place] == "tool" and self.tools):
                first = place + len(roles) - len(spoken)
                yield f"turns {first} and {first + 1} are both the {spoken[place]}'s; they have to alternate"

    def _in_tools(self, tools: Any, messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        if tools and not self.tools:
            yield "it has tools, which this provider does not train"
            return
        if tools is not None and not isinstance(tools, list):
            yield f"its tools are a JSON {type(tools).__name__}, not a list"
            return
        for tool in tools or ():
            function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
            if not isinstance(function, Mapping) or not _TOOL_NAME.fullmatch(str(function.get("name"))):
                yield f"a tool is {_shown(tool)}; a function with a name of at most 64 letters, digits, _ and - is allowed"
        if self.tools:
            yield from _unanswered(messages)


def text_of(turn: Mapping[str, Any]) -> str | None:
    """A turn's text, its parts joined; "" where it has none, None where it holds something that no provider takes."""
    content = turn.get("content")
    if content is None or isinstance(content, str):
        return None if content is None and not turn.get("tool_calls") else content or ""
    if not isinstance(content, list) or any(_kind(part) is None for part in content):
        return None
    return "".join(part["text"] for part in content if _kind(part) == "text")


def as_text(turn: Mapping[str, Any]) -> dict[str, Any]:
    """The turn with its parts joined into one string, for providers that take no parts."""
    return {**turn, "content": text_of(turn)} if isinstance(turn.get("content"), list) else dict(turn)


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row in OpenAI's format, with text as strings, and without what only dspyc reads."""
    tools = {"tools": list(row["tools"])} if row.get("tools") else {}
    return {"messages": [as_text(turn) for turn in row["messages"]]} | tools


def _kind(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return None
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return "text"
    image = part.get("image_url")
    address = image.get("url") if isinstance(image, Mapping) else None
    return "image_url" if part.get("type") == "image_url" and isinstance(address, str) else None


def _learned(turn: Mapping[str, Any]) -> bool:
    return turn.get("role") == "assistant" and turn.get("weight", 1) != 0


def _in_calls(calls: Any, role: str) -> Iterator[str]:
    if role != "assistant":
        yield f"calls tools; only an assistant's turn may, and this is the {role}'s"
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(call.get("id"), str) or call.get("type") != "function":
            yield f"holds the tool call {_shown(call)}, without an id, the type `function` or a function"
        elif not _TOOL_NAME.fullmatch(str(function.get("name"))) or not _is_object(function.get("arguments")):
            yield f"holds the tool call {_shown(call)}; a name and arguments as the text of a JSON object are allowed"


def _is_object(arguments: Any) -> bool:
    try:
        return isinstance(arguments, str) and isinstance(json.loads(arguments), dict)
    except ValueError:
        return False


def _unanswered(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Tool results that answer no call, and calls with no result before the next turn of somebody else."""
    waiting: set[str] = set()
    for place, turn in enumerate(messages, start=1):
        if turn.get("role") == "tool":
            if turn.get("tool_call_id") not in waiting:
                yield f"turn {place} answers the tool call {turn.get('tool_call_id')!r}, which was not made before it"
            waiting.discard(str(turn.get("tool_call_id")))
            continue
        if waiting:
            yield f"turn {place} comes before the results of the tool calls {', '.join(sorted(waiting))}"
        calls = turn.get("tool_calls")
        waiting = (
            {str(call.get("id")) for call in calls if isinstance(call, Mapping)} if isinstance(calls, list) else set()
        )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:79]}…"
