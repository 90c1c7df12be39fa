"""A language model that answers with a prepared reply, over DSPy's real engine contract."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import dspy
from dspy import lm15

from dspyc.models import messages_of


class Prepared:
    """Answers every request with `reply`: a text, or a list of parts. `requests` holds what arrived."""

    def __init__(self, reply: Any, *, tools: bool = False, reasoning: bool = False) -> None:
        self.reply = reply
        self.requests: list[lm15.Request] = []
        self.supports_function_calling = tools
        self.supports_reasoning = reasoning

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.requests.append(request)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(self.reply),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=1, output_tokens=1),
        )

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        yield from lm15.response_to_events(self.complete(request))

    def received(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The last request as chat messages and tools."""
        return messages_of(self.requests[-1])


class AsyncPrepared:
    def __init__(self, engine: Prepared) -> None:
        self.engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return self.engine.complete(request)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        for event in self.engine.stream(request):
            yield event


def prepared_lm(reply: Any = "", *, tools: bool = False, reasoning: bool = False, **kwargs: Any) -> dspy.LM:
    engine = Prepared(reply, tools=tools, reasoning=reasoning)
    return dspy.LM("test/prepared", engine=engine, async_engine=AsyncPrepared(engine), cache=False, **kwargs)


def normal(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with tool calls' arguments as objects: how their JSON is spaced is not the message."""
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for call in message.get("tool_calls") or []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages
