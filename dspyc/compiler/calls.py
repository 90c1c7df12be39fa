"""Language models whose calls a ledger remembers.

`durable(lm)` is a copy of an LM that, inside a run, first asks the ledger whether this very call was answered before,
and otherwise writes the answer down before anything else happens. It works above DSPy's engine layer, so it serves
LiteLLM, native and custom engines and legacy `BaseLM` subclasses alike, and needs nothing of their internals.
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import dspy

from ..errors import redact
from ..signatures import fingerprint
from .ledger import Ledger

_SECRET_KEY = re.compile(r"key|token(?!s)|secret|password|header|credential|^api_|^aws_", re.IGNORECASE)


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


@dataclass
class Run:
    """The run of one example that is going on; DSPy's settings carry it into every thread that the program starts."""

    trace: str
    role: str
    ledger: Ledger
    on_call: Callable[[Call], None]
    _seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def occurrence(self, request: str) -> int:
        """How often this trace has made this very request before."""
        with self._lock:
            self._seen[request] += 1
            return self._seen[request] - 1


def current_run() -> Run | None:
    """The run that this thread works for, if any."""
    run = dspy.settings.get("dspyc_run")
    return run if isinstance(run, Run) else None


def durable(lm: dspy.BaseLM) -> dspy.BaseLM:
    """A copy of `lm` with a memory. The original is not changed; engines and clients are shared with it."""
    copied = lm.copy()
    copied.__class__ = _durable_class(type(lm))
    return copied


class _Durable:
    """Mixed in before an LM's own class."""

    model: str
    kwargs: dict[str, Any]

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        run = current_run()
        if run is None or _is_typed(prompt, kwargs):
            return super().__call__(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        pending = _Pending(self, run, prompt, messages, kwargs)
        if not pending.known():
            with pending:
                pending.replies = super().__call__(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        return pending.finish()

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        run = current_run()
        if run is None or _is_typed(prompt, kwargs):
            return await super().acall(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        pending = _Pending(self, run, prompt, messages, kwargs)
        if not pending.known():
            with pending:
                pending.replies = await super().acall(prompt, messages=messages, **kwargs)  # type: ignore[misc]
        return pending.finish()

    def update_history(self, entry: dict[str, Any]) -> None:
        _last_entry.set(entry)
        super().update_history(entry)  # type: ignore[misc]


_last_entry: ContextVar[dict[str, Any] | None] = ContextVar("dspyc_last_entry", default=None)
_classes: dict[type, type] = {}


def _durable_class(kind: type) -> type:
    if issubclass(kind, _Durable):
        return kind
    if kind not in _classes:
        _classes[kind] = type(kind.__name__, (_Durable, kind), {"__module__": kind.__module__})
    return _classes[kind]


class _Pending:
    """A call between its request and the moment its answer is safe."""

    def __init__(self, lm: Any, run: Run, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> None:
        self.run = run
        self.call = Call(lm.model, messages or [{"role": "user", "content": prompt}], [])
        settings = {k: v for k, v in {**lm.kwargs, **kwargs}.items() if not _SECRET_KEY.search(k)}
        self.call.request = fingerprint(json.loads(json.dumps([lm.model, self.call.messages, settings], default=_name)))
        self.call.nth = run.occurrence(self.call.request)
        self.replies: Any = None

    def known(self) -> bool:
        record = self.run.ledger.recall(self.run.trace, self.call.request, self.call.nth)
        if record is None:
            return False
        self.replies = record["replies"]
        self.call.usage, self.call.cost, self.call.seconds = record["usage"], record["cost"], record["seconds"]
        self.call.replayed = True
        return True

    def __enter__(self) -> None:
        self.run.ledger.check_room()
        _last_entry.set(None)
        self.started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if kind is not None:
            return
        entry = _last_entry.get() or {}
        self.call.seconds = time.monotonic() - self.started
        self.call.usage, self.call.cost = dict(entry.get("usage") or {}), entry.get("cost")
        record = {
            "model": self.call.model,
            "messages": self.call.messages,
            "replies": self.replies,
            "usage": self.call.usage,
            "cost": self.call.cost,
            "seconds": self.call.seconds,
        }
        # One JSON round trip now: a replay returns exactly what the first sitting returned.
        self.replies = json.loads(json.dumps(self.replies, default=str))
        self.run.ledger.record_call(self.run.trace, self.call.request, self.call.nth, self.run.role, record)

    def finish(self) -> Any:
        self.call.replies = self.replies
        self.run.on_call(self.call)
        return self.replies


def _is_typed(prompt: Any, kwargs: dict[str, Any]) -> bool:
    """DSPy 3.4's adapters call with messages; an explicit lm15 Request answers with a Response, which is not kept."""
    return isinstance(prompt, dspy.lm15.Request) or "request" in kwargs


def _name(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    # An address in a repr would make every sitting look like a new request.
    return name if isinstance(value, type) else f"{name} {re.sub(r' at 0x[0-9a-f]+', '', redact(repr(value)))}"
