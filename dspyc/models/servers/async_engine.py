"""The async counterpart of `ServerEngine`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dspy import lm15

from .chat_completions import StreamReader, response_of
from .engine import FAILURES, ServerEngine
from .server import Endpoint


class AsyncServerEngine:
    """The async counterpart of a `ServerEngine`: the same server, awaited. Cancelling a task cancels its request."""

    modalities = ServerEngine.modalities

    def __init__(self, engine: ServerEngine) -> None:
        self.engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Like `ServerEngine.complete`."""
        engine = self.engine
        draft = await asyncio.to_thread(engine.draft, request)  # the first one loads the tokenizer
        endpoint = await _entered(engine)
        try:
            client = engine.clients.async_to(endpoint.base_url)
            raw = await client.chat.completions.create(**engine.body(draft, endpoint))
            return engine.counted(response_of(raw, request, engine.opening))
        except FAILURES as error:
            failure = await asyncio.to_thread(engine.failure, error)
        finally:
            engine.server.leave()
        raise failure

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        """Like `ServerEngine.stream`."""
        engine = self.engine
        if await asyncio.to_thread(engine.is_sent_whole, request):
            for event in lm15.response_to_events(await self.complete(request)):
                yield event
            return
        draft = await asyncio.to_thread(engine.draft, request)
        endpoint = await _entered(engine)
        reader = StreamReader(request, engine.opening)
        failure: Exception | None = None
        try:
            client = engine.clients.async_to(endpoint.base_url)
            body = engine.body(draft, endpoint)
            async with await client.chat.completions.create(**body, **engine.streaming()) as chunks:
                async for chunk in chunks:
                    for event in reader.feed(chunk):
                        yield event
        except FAILURES as error:
            failure = await asyncio.to_thread(engine.failure, error)
        finally:
            engine.server.leave()
        if failure is not None:
            raise failure
        for event in await asyncio.to_thread(engine.ended, reader):
            yield event

    async def aclose(self) -> None:
        """Like `ServerEngine.close`; this event loop's connections are closed too."""
        await self.engine.clients.aclose()
        await asyncio.to_thread(self.engine.close)

    def dump_state(self) -> dict[str, Any]:
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "AsyncServerEngine":
        return cls(ServerEngine.load_state(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> "AsyncServerEngine":
        return self


async def _entered(engine: ServerEngine) -> Endpoint:
    """Where to send the request. Starting a server takes a thread; entering does not, so that no cancelling loses count."""
    while (endpoint := engine.server.enter(engine.served.worn)) is None:
        await asyncio.to_thread(engine.prepare)
    return endpoint
