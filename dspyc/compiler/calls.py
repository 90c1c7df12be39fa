"""Language models whose calls a ledger remembers.

`durable(lm)` is a copy of an LM that, inside a run, first asks the ledger whether this very call was answered before,
and otherwise writes the answer down before anything else happens. It works above DSPy's engine layer, so it serves
LiteLLM, native and custom engines and legacy `BaseLM` subclasses alike, and needs nothing of their internals.
"""

import asyncio
import copy
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import dspy

from ..errors import DspycError
from ..signatures import fingerprint
from ..signatures.fingerprints import stable
from ..signatures.mixins import mixed, written_class
from .call import Call, PendingCall, last_entry, paying
from .ledger import Ledger
from .prices import is_paid


class Workers(Protocol):
    """Processes elsewhere that make requests for this one."""

    def ask(self, lm: dspy.BaseLM, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The replies of a call of `lm`, its `usage` and `cost`, and whether DSPy's cache answered. The request is made once.

        Raises:
            ConfigError: The language model or the request cannot be sent.
            TransientError: It is not known what became of the request.
            Exception: What the language model raised.
        """


@dataclass
class Run:
    """The run of one example that is going on; DSPy's settings carry it into every thread that the program starts.

    `example` is the example's `call_key`. `workers`, if there are any, make the requests to models that are not on this
    machine. `round` is the bootstrap's, for LMs that come up as the program runs. `refusal` is set when a call was not
    allowed: a program may swallow the exception that says so.
    """

    role: str
    example: str
    ledger: Ledger
    on_call: Callable[[Call], None]
    workers: Workers | None = None
    round: int = 0
    refusal: DspycError | None = None
    _seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def durable(self, lm: Any) -> Any:
        """A language model as this run asks it: one that no predictor holds came up as the program runs."""
        if isinstance(lm, _Durable) or not isinstance(lm, dspy.BaseLM):
            return lm
        key, settings = (id(lm), self.round), [lm.model, dict(lm.kwargs)]
        with _passing_lms_lock:
            known = _passing_lms.get(key)
            if known is None or known[0] is not lm or known[1] != settings:
                known = _passing_lms[key] = (lm, settings, durable(in_round(lm, self.round)))
                if len(_passing_lms) > _MOST_PASSING:
                    del _passing_lms[next(iter(_passing_lms))]
            return known[2]

    def occurrence(self, request: str) -> int:
        """How often this run has made this very request before."""
        with self._lock:
            self._seen[request] += 1
            return self._seen[request] - 1

    def unanswered(self, request: str, nth: int) -> None:
        """Give back the number of a failed call if it was the last one handed out.

        With a gap, a resume would look for an answer that was never recorded.
        """
        with self._lock:
            if self._seen[request] == nth + 1:
                self._seen[request] = nth


def call_key(example: dspy.Example, repeat: str = "") -> str:
    """Names an example for its calls: by its inputs, whatever its labels, and by `repeat` among equal examples."""
    return fingerprint([stable(dict(example.inputs())), repeat])


def current_run() -> Run | None:
    """The run that this thread works for, if any."""
    run = dspy.settings.get("dspyc_run")
    return run if isinstance(run, Run) else None


def durable(lm: dspy.BaseLM) -> dspy.BaseLM:
    """A copy of `lm` with a memory. The original is not changed; engines and clients are shared with it."""
    copied = lm.copy()
    copied.__class__ = mixed(type(lm), _Durable)
    return copied


def durable_adapter(adapter: dspy.Adapter) -> dspy.Adapter:
    """A copy of `adapter` that makes durable, during a run, any LM it is called with.

    Those of predictors created in `forward` and of judges in a metric belong to no predictor of the program. An LM that the
    adapter holds itself (dspy.TwoStepAdapter) becomes durable too.
    """
    copied = copy.copy(adapter)
    for name, value in vars(adapter).items():
        if isinstance(value, dspy.BaseLM):
            setattr(copied, name, durable(value))
    copied.__class__ = mixed(type(adapter), _Asking)
    return copied


def in_round(lm: dspy.BaseLM, at: int) -> dspy.BaseLM:
    """The LM as it runs in a bootstrap's round `at`: after the first (0) with other replies, which no cache has."""
    return lm.copy(rollout_id=at, temperature=1.0) if at else lm


def plain(lm: dspy.BaseLM) -> dspy.BaseLM:
    """A copy of a durable `lm` without memory, retries or callbacks, for another process to make requests with."""
    copied = lm.copy(num_retries=0)
    copied.__class__ = written_class(type(lm))
    copied.callbacks = []
    return copied


def replies_and_entry(
    lm: dspy.BaseLM, prompt: Any, messages: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The replies of a durable `lm`, and what DSPy's history says of its call."""
    last_entry.set(None)
    with dspy.context(disable_history=False):
        replies = lm(prompt, messages=messages, **kwargs)
    return replies, last_entry.get() or {}


class _Durable:
    """Mixed in before an LM's own class."""

    model: str
    kwargs: dict[str, Any]

    @property
    def num_retries(self) -> int:
        """The LM's own, and none while a call is paid for, which the limiter repeats: the two must not multiply."""
        return 0 if paying.get() else int(vars(self).get("num_retries") or 0)

    @num_retries.setter
    def num_retries(self, number: int) -> None:
        vars(self)["num_retries"] = number

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        run = current_run()
        if run is None or _is_typed(prompt, kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        pending = PendingCall(self, run, prompt, messages, kwargs)
        if not pending.known():
            with pending:
                for attempt in pending.limiter.attempts(retries=pending.retries, stopped=pending.stopped):
                    with attempt:
                        if pending.workers is not None:
                            pending.take(pending.ask_workers(prompt, messages, kwargs))
                        else:
                            pending.replies = super().__call__(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        return pending.finish()

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        run = current_run()
        if run is None or _is_typed(prompt, kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        pending = PendingCall(self, run, prompt, messages, kwargs)
        if not pending.known():
            if is_paid(self) and not paying.get():
                await pending.room()
            with pending:
                async for attempt in pending.limiter.aattempts(retries=pending.retries, stopped=pending.stopped):
                    with attempt:
                        if pending.workers is not None:
                            pending.take(await asyncio.to_thread(pending.ask_workers, prompt, messages, kwargs))
                        else:
                            pending.replies = await super().acall(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        return pending.finish()

    def update_history(self, entry: dict[str, Any]) -> None:
        last_entry.set(entry)
        super().update_history(entry)  # type: ignore[misc]


class _Asking:
    """Mixed in before an adapter's own class."""

    def __init_subclass__(cls) -> None:
        """Not DSPy's, which wraps `format` and `parse` in every subclass: callbacks would be told twice."""

    def __call__(self, lm: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(_in_run(lm), *args, **kwargs)  # type: ignore[misc]

    async def acall(self, lm: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().acall(_in_run(lm), *args, **kwargs)  # type: ignore[misc]


def _in_run(lm: Any) -> Any:
    run = current_run()
    return lm if run is None else run.durable(lm)


_MOST_PASSING = 64
# LMs that no predictor holds, by number and round: themselves, what they were set to, and their durable copies.
_passing_lms: dict[tuple[int, int], tuple[Any, list[Any], dspy.BaseLM]] = {}
_passing_lms_lock = threading.Lock()


def _is_typed(prompt: Any, kwargs: dict[str, Any]) -> bool:
    """DSPy 3.4's adapters call with messages; an explicit lm15 Request answers with a Response, which is not kept."""
    return isinstance(prompt, dspy.lm15.Request) or "request" in kwargs
