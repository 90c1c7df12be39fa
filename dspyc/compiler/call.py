"""One call of a durable language model: its key in the ledger, the paying for it, and what is recorded of it."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ..errors import BudgetError, ConfigError, DspycError, redact
from ..signatures.fingerprints import identifying
from .ledger import Answer, CallKey
from .limiter import Limiter, limiter_of
from .prices import is_paid, price_of
from .replies import replies_of, replies_text

if TYPE_CHECKING:
    from .calls import Run, Workers

last_entry: ContextVar[dict[str, Any] | None] = ContextVar("dspyc_last_entry", default=None)  # of DSPy's history
paying: ContextVar[bool] = ContextVar("dspyc_paying", default=False)


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


class PendingCall:
    """A call between its request and the moment its answer is safe. As a context it is the paying for it."""

    def __init__(self, lm: Any, run: "Run", prompt: Any, messages: Any, kwargs: dict[str, Any]) -> None:
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
        self.retries: int = lm.num_retries  # before it is paid for

    @property
    def limiter(self) -> Limiter:
        return limiter_of(self.lm.model, str(self.lm.kwargs.get("api_base") or self.lm.kwargs.get("base_url") or ""))

    @property
    def workers(self) -> "Workers | None":
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
        last_entry.set(entry)

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
        last_entry.set(None)
        self.within = paying.set(True)
        self.started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        ledger = self.run.ledger
        paying.reset(self.within)
        if kind is not None:
            self.run.unanswered(self.call.request, self.call.nth)
            if self.paid:
                ledger.meter.release()
            if isinstance(error, BudgetError) or (ledger.stopped and isinstance(error, DspycError)):
                self.run.refusal = error
            return
        entry = last_entry.get() or {}
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
    """Whether this thread may block until the budget has room.

    Not inside an event loop, which would stop the calls it waits for, and not inside a call that is being paid for.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return not paying.get()
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


def _name(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    # An address in a repr would make every sitting look like a new request.
    return name if isinstance(value, type) else f"{name} {re.sub(r' at 0x[0-9a-f]+', '', redact(repr(value)))}"
