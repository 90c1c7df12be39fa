"""Language models whose calls a ledger remembers.

`durable(lm)` is a copy of an LM that, inside a run, first asks the ledger whether this very call was answered before,
and otherwise writes the answer down before anything else happens. It works above DSPy's engine layer, so it serves
LiteLLM, native and custom engines and legacy `BaseLM` subclasses alike, and needs nothing of their internals.
"""

import asyncio
import copy
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, Protocol

import dspy

from ..errors import BudgetError, ConfigError, DspycError, redact
from ..signatures import fingerprint
from ..signatures.fingerprints import identifying, stable
from .ledger import Answer, CallKey, Ledger
from .limiter import Limiter, limiter_of
from .prices import is_paid, price_of
from .replies import replies_of, replies_text


@dataclass
class Call:
    """One language-model call of a step: the exact messages and the exact replies.

    `usage` counts tokens as the provider reports them; `cost` is USD or None; `replayed` says that the ledger answered;
    `request` and `nth` are its key in the ledger.
    """

    model: str
    messages: list[dict[str, Any]]
    replies: list[Any]
    usage: dict[str, Any] = field(default_factory=dict)
    cost: float | None = None
    seconds: float = 0.0
    replayed: bool = False
    request: str = ""
    nth: int = 0


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
        """Let the next such request have this number, if it was the last: a resume would ask for what has no answer."""
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
    copied.__class__ = _durable_class(type(lm))
    return copied


def durable_adapter(adapter: dspy.Adapter) -> dspy.Adapter:
    """A copy of `adapter` that, in a run, makes whatever LM it is given durable: a predictor that the program makes as it
    goes and a judge in a metric bring LMs that no predictor of the program is asked with. An LM that it holds itself, as
    dspy.TwoStepAdapter does, is durable too."""
    copied = copy.copy(adapter)
    for name, value in vars(adapter).items():
        if isinstance(value, dspy.BaseLM):
            setattr(copied, name, durable(value))
    copied.__class__ = _asking_class(type(adapter))
    return copied


def in_round(lm: dspy.BaseLM, at: int) -> dspy.BaseLM:
    """The LM as it runs in a bootstrap's round `at`: after the first (0) with other replies, which no cache has."""
    return lm.copy(rollout_id=at, temperature=1.0) if at else lm


def plain(lm: dspy.BaseLM) -> dspy.BaseLM:
    """A copy of a durable `lm` without memory, retries or callbacks, for another process to make requests with."""
    copied = lm.copy(num_retries=0)
    copied.__class__ = type(lm).__bases__[1] if isinstance(lm, _Durable) else type(lm)
    copied.callbacks = []
    return copied


def replies_and_entry(lm: dspy.BaseLM, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The replies of a durable `lm`, and what DSPy's history says of its call."""
    _last_entry.set(None)
    with dspy.context(disable_history=False):
        replies = lm(prompt, messages=messages, **kwargs)
    return replies, _last_entry.get() or {}


class _Durable:
    """Mixed in before an LM's own class."""

    model: str
    kwargs: dict[str, Any]

    @property
    def num_retries(self) -> int:
        """The LM's own, and none while the limiter does the retrying: the two must not multiply."""
        return 0 if _limited.get() else int(vars(self).get("num_retries") or 0)

    @num_retries.setter
    def num_retries(self, number: int) -> None:
        vars(self)["num_retries"] = number

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        run = current_run()
        if run is None or _is_typed(prompt, kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        pending = _Pending(self, run, prompt, messages, kwargs)
        if not pending.known():
            with pending:
                for attempt in pending.limiter.attempts(retries=self.num_retries, stopped=pending.stopped):
                    with attempt, _no_other_retries():
                        if pending.workers is not None:
                            pending.take(pending.ask_workers(prompt, messages, kwargs))
                        else:
                            pending.replies = super().__call__(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        return pending.finish()

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        run = current_run()
        if run is None or _is_typed(prompt, kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        pending = _Pending(self, run, prompt, messages, kwargs)
        if not pending.known():
            if is_paid(self) and not _paying.get():
                await pending.room()
            with pending:
                async for attempt in pending.limiter.aattempts(retries=self.num_retries, stopped=pending.stopped):
                    with attempt, _no_other_retries():
                        if pending.workers is not None:
                            pending.take(await asyncio.to_thread(pending.ask_workers, prompt, messages, kwargs))
                        else:
                            pending.replies = await super().acall(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        return pending.finish()

    def update_history(self, entry: dict[str, Any]) -> None:
        _last_entry.set(entry)
        super().update_history(entry)  # type: ignore[misc]


_last_entry: ContextVar[dict[str, Any] | None] = ContextVar("dspyc_last_entry", default=None)
_paying: ContextVar[bool] = ContextVar("dspyc_paying", default=False)
_limited: ContextVar[bool] = ContextVar("dspyc_limited", default=False)
_classes: dict[type, type] = {}


@contextmanager
def _no_other_retries() -> Iterator[None]:
    token = _limited.set(True)
    try:
        yield
    finally:
        _limited.reset(token)


def _durable_class(kind: type) -> type:
    if issubclass(kind, _Durable):
        return kind
    if kind not in _classes:
        _classes[kind] = type(kind.__name__, (_Durable, kind), {"__module__": kind.__module__})
    return _classes[kind]


class _Asking:
    """Mixed in before an adapter's own class."""

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


def _asking_class(kind: type) -> type:
    if issubclass(kind, _Asking):
        return kind
    if kind not in _classes:
        made = type(kind.__name__, (_Asking, kind), {"__module__": kind.__module__})
        for name in ("format", "parse"):  # wrapped anew for every subclass: DSPy's callbacks would be told twice
            delattr(made, name)
        _classes[kind] = made
    return _classes[kind]


class _Pending:
    """A call between its request and the moment its answer is safe. As a context it is the paying for it."""

    def __init__(self, lm: Any, run: Run, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> None:
        self.lm, self.run = lm, run
        self.call = Call(lm.model, messages or [{"role": "user", "content": prompt}], [])
        self.bodies = [_body(message) for message in self.call.messages]
        settings = identifying({**lm.kwargs, **kwargs})
        bound_by: Callable[..., list[Any]] = getattr(lm, "bound_by", lambda *_: [])  # models.constrained
        asked = json.dumps([lm.model, settings, *bound_by(messages, kwargs)], sort_keys=True, default=_name)
        self.call.request = _digest([asked, *self.bodies])[:16]
        self.call.nth = run.occurrence(self.call.request)
        self.key = CallKey(run.role, run.example, self.call.request, self.call.nth)
        self.replies: Any = None

    @property
    def limiter(self) -> Limiter:
        return limiter_of(self.lm.model, str(self.lm.kwargs.get("api_base") or self.lm.kwargs.get("base_url") or ""))

    @property
    def workers(self) -> Workers | None:
        """Who makes the request in place of this process, if anyone does."""
        return self.run.workers if is_paid(self.lm) else None

    def ask_workers(self, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        assert self.run.workers is not None
        try:
            return self.run.workers.ask(self.lm, prompt, messages, kwargs)
        except ConfigError as error:  # what cannot be sent for one example cannot be for the others
            self.run.refusal = error
            raise

    def take(self, answered: tuple[Any, dict[str, Any]]) -> None:
        """What workers answered."""
        self.replies, entry = answered
        _last_entry.set(entry)

    def stopped(self) -> bool:
        """Whether the run is being left.

        Raises:
            BudgetError: Its time is over.
        """
        self.run.ledger.meter.check_time()
        return self.run.ledger.stopped

    async def room(self) -> None:
        """Wait in an event loop while only the calls under way leave no room in the budget."""
        try:
            await self.run.ledger.meter.room(self.stopped)
        except BudgetError as error:
            self.run.refusal = error
            raise

    def known(self) -> bool:
        answer = self.run.ledger.recall(self.key)
        if answer is None:
            return False
        self.call.replayed = True
        self._take(answer)
        return True

    def __enter__(self) -> None:
        ledger = self.run.ledger
        try:
            ledger.check_room()
            self.paid = is_paid(self.lm)
            if self.paid:
                priced = ledger.meter.wants_prices and price_of(self.lm) is not None
                ledger.meter.admit(self.lm.model, priced=priced, stopped=self.stopped if _may_wait() else None)
            else:
                ledger.meter.check_time()
        except DspycError as error:
            self.run.refusal = error
            raise
        _last_entry.set(None)
        self.within = _paying.set(True)
        self.started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        ledger = self.run.ledger
        _paying.reset(self.within)
        if kind is not None:
            self.run.unanswered(self.call.request, self.call.nth)
            if self.paid:
                ledger.meter.release()
            if isinstance(error, BudgetError) or (ledger.stopped and isinstance(error, DspycError)):
                self.run.refusal = error
            return
        entry = _last_entry.get() or {}
        usage = dict(entry.get("usage") or {})  # empty where DSPy's cache answered
        cached = was_cached(entry)
        prompt, reply = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        tokens, cost = prompt + reply, entry.get("cost") if usage else None
        if cost is None and ledger.meter.wants_prices and (price := price_of(self.lm)) is not None:
            cost = price.of(prompt, reply)
        facts = {"usage": usage, "cost": cost, "seconds": time.monotonic() - self.started}
        if self.paid and cached:
            ledger.meter.release()
        elif self.paid:
            ledger.meter.settle(tokens, cost or 0.0)
        # One JSON round trip now: a replay returns exactly what the first sitting returned.
        answer = Answer(replies_text(self.replies), facts)
        paid = self.paid and not cached
        self._take(ledger.record_call(self.key, self.lm.model, self.bodies, answer, paid=paid, tokens=tokens))

    def finish(self) -> Any:
        self.run.on_call(self.call)
        return self.call.replies

    def _take(self, answer: Answer) -> None:
        self.call.replies = replies_of(answer.replies)
        facts = answer.facts
        self.call.usage, self.call.cost, self.call.seconds = facts["usage"], facts["cost"], facts["seconds"]


def _may_wait() -> bool:
    """Whether the calls under way go on meanwhile: not in their event loop, nor within one of them."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return not _paying.get()
    return False


def was_cached(entry: dict[str, Any]) -> bool:
    """Whether DSPy's cache answered a call, by what the history says of it, or by what a worker says of its own."""
    return not entry.get("usage") and bool(entry.get("cached") or _is_cached(entry.get("response")))


def _is_cached(response: Any) -> bool:
    """Whether DSPy's cache gave a response without usage: it says so, or has the usage of the call that it was kept from."""
    if isinstance(response, (list, tuple)):
        return bool(response) and all(map(_is_cached, response))
    told = getattr(response, "usage", None)
    counts = (getattr(told, name, None) for name in ("input_tokens", "prompt_tokens", "total_tokens"))
    return bool(getattr(response, "cache_hit", False)) or any(count is not None for count in counts)


def _digest(texts: list[str]) -> str:
    """SHA-256 of the lines. Fed one by one: for 2 KiB at once Python's lock is let go, and busy threads have to wait for it."""
    digest = sha256(texts[0].encode())
    for text in texts[1:]:
        digest.update(f"\n{text}".encode())
    return digest.hexdigest()


def _body(message: dict[str, Any]) -> str:
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and type(role) is str and type(content) is str:
        return _text_body(role, content)
    return json.dumps(message, sort_keys=True, default=_name)


@lru_cache(maxsize=1024)  # the messages of demos, in every prompt of a candidate
def _text_body(role: str, content: str) -> str:
    return json.dumps({"content": content, "role": role})


def _is_typed(prompt: Any, kwargs: dict[str, Any]) -> bool:
    """DSPy 3.4's adapters call with messages; an explicit lm15 Request answers with a Response, which is not kept."""
    return isinstance(prompt, dspy.lm15.Request) or "request" in kwargs


def _name(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    # An address in a repr would make every sitting look like a new request.
    return name if isinstance(value, type) else f"{name} {re.sub(r' at 0x[0-9a-f]+', '', redact(repr(value)))}"
