"""How many requests one language model gets at once, and when a failed one is sent again.

Providers say 429 or 5xx when they get more than they can take. The answer is congestion control as in TCP: fewer
requests at once after a failure, one more after a round of successes (AIMD; Chiu & Jain, 1989), and random waits, so
that threads that failed together do not come back together. One limiter serves all threads of a process.

    for attempt in limiter.attempts(retries=3, stopped=stopped):
        with attempt:                     # keeps an error that may pass, until the attempts are used up
            return ask()
"""

import asyncio
import math
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

from ..errors import BudgetError
from ..providers.faults import retry_after, seconds_of

Failure = Literal["busy", "timeout", "passing"]
# Patience with a provider that says 429: attempts of one request, with waits that double. Errors of its own have `retries`.
_BUSY_ATTEMPTS = 10
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 60.0  # seconds
_LONGEST_ASKED = 600.0  # seconds that a provider may ask to wait
_LOOK = 0.1  # seconds between looks at whether the run was stopped
_POLL = 0.01  # seconds between an async request's looks at whether it is its turn


class Limiter:
    """The requests to one language model that are under way, and those that wait, first come first served."""

    def __init__(self) -> None:
        self.capacity = math.inf  # requests at once; infinite until the provider first complains
        self.under_way = 0
        self._most = 0  # requests at once when it last complained; beyond that there is nothing to hold back
        self._not_before = 0.0  # on the monotonic clock: what the provider asked for by Retry-After
        self._slowed = 0.0
        self._queue: deque[object] = deque()
        self._turn = threading.Condition()
        self._random = random.Random()

    def attempts(self, *, retries: int, stopped: Callable[[], bool]) -> Iterator["Attempt"]:
        """Each next attempt, in its turn, at the end of the queue, and after its wait.

        Raises:
            BudgetError: The run was stopped meanwhile, or what else `stopped` raises in place of an answer.
        """
        request = _Request(retries)
        while not request.over:
            self._sleep_until(request.not_before, stopped)
            self._enter(stopped)
            yield Attempt(self, request)

    async def aattempts(self, *, retries: int, stopped: Callable[[], bool]) -> AsyncIterator["Attempt"]:
        """`attempts` for coroutines: it waits without holding up the event loop."""
        request = _Request(retries)
        while not request.over:
            while (remaining := request.not_before - time.monotonic()) > 0:
                _check(stopped)
                await asyncio.sleep(min(remaining, _LOOK))
            await self._aenter(stopped)
            yield Attempt(self, request)

    def left(self, started: float, failure: Failure | None, retry_after: float | None, *, answered: bool) -> None:
        """A request that began at `started` has ended: with an answer, a failure that may pass, or another error."""
        with self._turn:
            self.under_way -= 1
            if answered:
                self._speed_up()
            elif failure is not None:
                self._slow_down(started)
            if retry_after is not None and failure == "busy":
                self._not_before = max(self._not_before, time.monotonic() + retry_after)
            self._turn.notify_all()

    def wait_for(self, attempt: int) -> float:
        """Seconds until the next attempt of a request that failed `attempt` times: doubled each time, half of it random."""
        longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1))
        return self._random.uniform(longest / 2, longest)

    def _speed_up(self) -> None:
        if math.isinf(self.capacity):
            return
        self.capacity += 1 / self.capacity
        if self.capacity > self._most:
            self.capacity = math.inf

    def _slow_down(self, started: float) -> None:
        """Half as many at once; failures of requests that were under way at the last slowing say nothing new."""
        if started < self._slowed:
            return
        busy = self.under_way + 1
        self._most = max(busy, self._most if not math.isinf(self.capacity) else 0)
        self.capacity = max(1.0, min(self.capacity, busy) / 2)
        self._slowed = time.monotonic()

    def _enter(self, stopped: Callable[[], bool]) -> None:
        ticket = object()
        with self._turn:
            self._queue.append(ticket)
            try:
                while not self._admits(ticket, stopped):
                    self._turn.wait(_LOOK)
            except BaseException:
                self._forget(ticket)
                raise

    async def _aenter(self, stopped: Callable[[], bool]) -> None:
        ticket = object()
        with self._turn:
            self._queue.append(ticket)
        try:
            while True:
                with self._turn:
                    if self._admits(ticket, stopped):
                        return
                await asyncio.sleep(_POLL)
        except BaseException:
            with self._turn:
                self._forget(ticket)
            raise

    def _admits(self, ticket: object, stopped: Callable[[], bool]) -> bool:
        """Whether it is the turn of this ticket, which then leaves the queue. The lock is held."""
        _check(stopped)
        if self._queue[0] is not ticket or self.under_way + 1 > self.capacity or time.monotonic() < self._not_before:
            return False
        self._queue.popleft()
        self.under_way += 1
        self._turn.notify_all()
        return True

    def _forget(self, ticket: object) -> None:
        if ticket in self._queue:
            self._queue.remove(ticket)
        self._turn.notify_all()

    def _sleep_until(self, moment: float, stopped: Callable[[], bool]) -> None:
        while (remaining := moment - time.monotonic()) > 0:
            _check(stopped)
            time.sleep(min(remaining, _LOOK))


class Attempt:
    """One sending of a request, as a context: an error that may pass ends it quietly while attempts remain."""

    def __init__(self, limiter: Limiter, request: "_Request") -> None:
        self._limiter, self._request = limiter, request
        self._started = time.monotonic()

    def __enter__(self) -> None:
        """The turn has come already: `attempts` waited for it."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        failure = failure_of(error) if error is not None else None
        retry_after = retry_after_of(error) if error is not None else None
        self._limiter.left(self._started, failure, retry_after, answered=kind is None)
        if failure is None or not self._request.may_repeat(failure):
            self._request.over = True
            return False
        wait = self._limiter.wait_for(self._request.failed) if retry_after is None else retry_after
        self._request.not_before = time.monotonic() + wait
        return True


class _Request:
    """What is to be answered once, and the failures that it has seen."""

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.failed = 0
        self.over = False
        self.not_before = 0.0
        self._by_kind: dict[Failure, int] = {"busy": 0, "timeout": 0, "passing": 0}

    def may_repeat(self, failure: Failure) -> bool:
        self.failed += 1
        self._by_kind[failure] += 1
        if self.retries == 0:
            return False
        allowed = {"busy": max(_BUSY_ATTEMPTS - 1, self.retries), "timeout": 1, "passing": self.retries}
        return self._by_kind[failure] <= allowed[failure]


def failure_of(error: BaseException) -> Failure | None:
    """What an error says of its request: None where the same request would fail again.

    Errors are known by their classes' names and HTTP statuses, so that DSPy's, LiteLLM's, OpenAI's and httpx's are
    understood without importing any of them.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if "LMUnexpectedError" in names and error.__cause__ is not None:  # what an engine of someone's own raised
        return failure_of(error.__cause__)
    if not isinstance(error, Exception) or any("Billing" in n or "LockTimeout" in n or "Quota" in n for n in names):
        return None
    status = getattr(error, "status_code", None) or getattr(error, "status", None)
    if status == 429 or "RateLimitError" in names or "LMRateLimitError" in names:
        return "busy"
    if status == 408 or any(n.endswith(("Timeout", "TimeoutError", "TimeoutException")) for n in names):
        return "timeout"
    if isinstance(status, int):
        return "busy" if status in (503, 529) else "passing" if status >= 500 else None
    passing = ("ServerError", "ConnectionError", "TransportError", "TransientError")
    if not any(n.endswith(passing) for n in names):
        return None
    # DSPy's own client says by the cause alone that it had waited too long.
    waited = error.__cause__ is not None and failure_of(error.__cause__) == "timeout"
    return "timeout" if waited else "passing"


def retry_after_of(error: BaseException) -> float | None:
    """Seconds that the provider asked to wait, if it did."""
    seconds = seconds_of(getattr(error, "retry_after", None))
    headers: Any = getattr(getattr(error, "response", None), "headers", None)
    if seconds is None and hasattr(headers, "get"):
        seconds = retry_after(headers)
    if seconds is None and error.__cause__ is not None:
        return retry_after_of(error.__cause__)
    return None if seconds is None else min(seconds, _LONGEST_ASKED)


def _check(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise stop_error()


def stop_error() -> BudgetError:
    """What ends the calls of a run that was stopped."""
    return BudgetError(
        "The run was stopped before this call.", hint="Run the same command again: it goes on from here."
    )


_limiters: dict[tuple[str, str], Limiter] = {}
_lock = threading.Lock()


def limiter_of(model: str, address: str = "") -> Limiter:
    """The limiter that this process has for a language model, by its name and the address that it is asked at."""
    with _lock:
        if (limiter := _limiters.get((model, address))) is None:
            limiter = _limiters[model, address] = Limiter()
        return limiter
