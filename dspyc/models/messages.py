"""Turns a request back into the chat messages that DSPy made it from."""

import json
from typing import Any

from dspy import lm15

Message = dict[str, Any]


def messages_of(request: lm15.Request) -> tuple[list[Message], list[dict[str, Any]]]:
    """The (messages, tools) of a request, in OpenAI's shape: the inverse of DSPy's own conversion.

    Text messages come back as the very dicts that went in. A tool call's `arguments` are a JSON string, as on the wire;
    a content list that holds a single text is a plain string.
    """
    messages: list[Message] = []
    if request.system is not None:
        content = request.system if isinstance(request.system, str) else _content(request.system)
        messages.append({"role": "system", "content": content})
    for message in request.messages:
        messages.extend(_messages(message))
    return messages, [_tool(tool) for tool in request.tools]


def _messages(message: lm15.Message) -> list[Message]:
    if message.role == "tool":
        return [_tool_result(part) for part in message.parts if isinstance(part, lm15.ToolResultPart)]
    if message.role == "assistant":
        return [_assistant(message)]
    # DSPy reads a system message that is not the first as a developer's.
    role = "system" if message.role == "developer" else message.role
    return [{"role": role, "content": _content(message.parts)}]


def _assistant(message: lm15.Message) -> Message:
    spoken = [p for p in message.parts if not isinstance(p, (lm15.ToolCallPart, lm15.ThinkingPart))]
    found: Message = {"role": "assistant", "content": _content(spoken) if spoken else None}
    thinking = "".join(p.text for p in message.parts if isinstance(p, lm15.ThinkingPart))
    if thinking:
        found["reasoning_content"] = thinking
    calls = [p for p in message.parts if isinstance(p, lm15.ToolCallPart)]
    if calls:
        found["tool_calls"] = [
            {"id": p.id, "type": "function", "function": {"name": p.name, "arguments": json.dumps(p.input)}}
            for p in calls
        ]
    return found


def _tool_result(part: lm15.ToolResultPart) -> Message:
    found: Message = {"role": "tool", "tool_call_id": part.id, "content": _content(part.content)}
    if part.name is not None:
        found["name"] = part.name
    return found


def _content(parts: Any) -> str | list[dict[str, Any]]:
    blocks = [_block(part) for part in parts]
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        return str(blocks[0]["text"])
    return blocks


def _block(part: Any) -> dict[str, Any]:
    """One content part. Media other than images keep their kind and their address, enough to name them in an error."""
    if isinstance(part, (lm15.TextPart, lm15.RefusalPart)):
        return {"type": "text", "text": part.text}
    if isinstance(part, lm15.ImagePart):
        inline = f"data:{part.media_type};base64,{part.data}" if part.data else None
        url = part.url or inline or str(part.path or part.file_id)
        image = {"url": url} if part.detail is None else {"url": url, "detail": part.detail}
        return {"type": "image_url", "image_url": image}
    if isinstance(part, lm15.DataPart):
        return {"type": "text", "text": json.dumps(part.value, ensure_ascii=False)}
    return {"type": part.type}


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, lm15.FunctionTool):
        return {"type": tool.name, **(tool.config or {})}
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": {**function, "parameters": tool.parameters}}
