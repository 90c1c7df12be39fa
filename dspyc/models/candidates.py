"""Several candidates of one call (`n=8`), written together: one prefill, one batch.

DSPy asks an engine for the candidates of a call one after another. `CandidatesLM` says beforehand how many there will be, in
the thread or task that calls, and the engine begins them all when it is asked for the first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import dspy
from dspy import lm15

from ..errors import ConfigError
from .generation import Job
from .sampling import Sampling

Submit = Callable[[int], Sequence[Job]]


class CandidatesLM(dspy.LM):
    """A `dspy.LM` over a `LocalEngine`, whose `n` candidates are written together.

    Raises:
        ConfigError: In a call: several candidates at a temperature of None or 0, which would all be the same.
    """

    constrained = False  # whether replies follow their signatures, see `ConstrainedLM`

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        with expected(self._count(prompt, kwargs)):
            return super().__call__(prompt, messages=messages, **kwargs)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        with expected(self._count(prompt, kwargs)):
            return await super().acall(prompt, messages=messages, **kwargs)

    def _count(self, prompt: Any, kwargs: dict[str, Any]) -> Any:
        """The `n` of a call, whatever it holds; a canonical request asks for one reply."""
        if isinstance(prompt, lm15.Request) or kwargs.get("request") is not None:
            return 1
        settings = {**self.kwargs, **kwargs}
        count, temperature = settings.get("n"), settings.get("temperature")
        several = isinstance(count, int) and count > 1
        if several and isinstance(temperature, (int, float, type(None))) and not Sampling(1, temperature).is_sampled:
            raise ConfigError(
                f"A call asks for n={count} replies at temperature {temperature}, which are {count} times the same one.",
                hint="Set a temperature, such as temperature=0.7, or leave n out. A dspy.Predict sets one by itself.",
            )
        return count


class Candidates:
    """The candidates of one call that have begun and were not asked for yet."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._request: lm15.Request | None = None
        self._begun: list[Job] = []
        self._streamed = 0
        self._over = False

    def stream(self) -> int:
        """Which one a stream is, the next: 0 is the first. Each begins when it is read."""
        self._streamed += 1
        return self._streamed - 1

    def take(self, request: lm15.Request, submit: Submit) -> Job:
        """The next candidate; `submit` begins so many of them at the first call, and one more where all are taken."""
        if self._request is None:
            self._request, self._begun = request, list(submit(self._count))
            if self._over:  # while they began, in another thread
                self.cancel()
        if self._begun and self._request == request:
            return self._begun.pop(0)
        return submit(1)[0]

    def cancel(self) -> None:
        """End the work on those that nobody asked for."""
        self._over = True
        for job in self._begun:
            job.reply.cancel()


def take(request: lm15.Request, submit: Submit) -> Job:
    """The job of a request: one of the expected candidates, or one of its own."""
    expected = _current.get()
    return expected.take(request, submit) if expected is not None else submit(1)[0]


def stream() -> int:
    """Which of the expected candidates a stream is; 0 where none are expected."""
    expected = _current.get()
    return expected.stream() if expected is not None else 0


@contextmanager
def expected(count: Any) -> Iterator[None]:
    """While a call asks for so many candidates."""
    candidates = Candidates(count) if isinstance(count, int) and count > 1 else None
    token = _current.set(candidates)
    try:
        yield
    finally:
        _current.reset(token)
        if candidates is not None:
            candidates.cancel()


_current: ContextVar[Candidates | None] = ContextVar("dspyc candidates", default=None)
