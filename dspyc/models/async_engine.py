"""The async counterpart of a `LocalEngine`: tasks wait for the same batches that threads do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from dspy import lm15

from .choices import Choices
from .engine import LocalEngine, canonical_errors
from .generation import Job
from .streaming import TextStream, delta


class AsyncLocalEngine:
    """The async counterpart of a `LocalEngine`: the same weights and the same batches, awaited."""

    modalities = LocalEngine.modalities

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Like `LocalEngine.complete`. A task cancelled while it waits ends the work on its request."""
        engine = await asyncio.to_thread(self.engine.serving, request.model)
        if Choices.of(request) is not None:
            return await asyncio.to_thread(engine.complete, request)
        with canonical_errors():
            job = await _begun(lambda: engine._take(request))
            reply = await asyncio.wrap_future(job.reply)
            return engine._response(request, job, reply)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        """Like `LocalEngine.stream`."""
        if request.tools:
            for event in lm15.response_to_events(await self.complete(request)):
                yield event
            return
        engine = await asyncio.to_thread(self.engine.serving, request.model)
        loop = asyncio.get_running_loop()
        written: asyncio.Queue[list[int] | None] = asyncio.Queue()

        def put(ids: list[int] | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(written.put_nowait, ids)

        with canonical_errors():
            job = await _begun(lambda: engine._submit_stream(request, put))
        job.reply.add_done_callback(lambda _: put(None))
        try:
            yield lm15.StreamStartEvent(model=request.model)
            text = TextStream(engine.chat.decode, job.sampling.stop, engine.chat.opening)
            while (ids := await written.get()) is not None:
                if piece := text.add(ids):
                    yield delta(piece)
            with canonical_errors():
                reply = job.reply.result()
            for event in engine._ending(job, reply, text):
                yield event
        finally:
            job.reply.cancel()

    async def aclose(self) -> None:
        await asyncio.to_thread(self.engine.close)

    def dump_state(self) -> dict[str, Any]:
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "AsyncLocalEngine":
        return cls(LocalEngine.load_state(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> "AsyncLocalEngine":
        return self


async def _begun(begin: Callable[[], Job]) -> Job:
    """The job that `begin` gives, called in a thread: it may load a tokenizer first. A cancelled task wants none any more."""
    jobs: list[Job] = []
    unwanted = False

    def begun() -> Job:
        jobs.append(begin())
        if unwanted:
            jobs[0].reply.cancel()
        return jobs[0]

    try:
        return await asyncio.to_thread(begun)
    except asyncio.CancelledError:
        unwanted = True
        for job in jobs:
            job.reply.cancel()
        raise
