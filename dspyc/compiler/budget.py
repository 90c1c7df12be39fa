"""What a compile may spend, and what it has spent.

    optimizer = dspyc.BootstrapFinetune(metric=exact, teacher_lm=teacher, budget=dspyc.Budget(usd=5, seconds=3600))

A limit is on the whole run, over all its sittings; only `seconds` begin anew with each. What the ledger answers costs
nothing, and neither do what DSPy's cache answers and models that run on this machine, which only `seconds` limit.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BudgetError, ConfigError

_LOOK_UP = 0.2  # seconds


@dataclass(frozen=True)
class Budget:
    """Hard limits; what is None is not limited.

    No call begins once a limit is reached, so `calls` is never exceeded, and the others by the calls under way at most.

    Args:
        calls: Answers of language models elsewhere.
        tokens: Their prompts and replies together, as their providers count them.
        usd: Their price. A model whose price is unknown is refused.
        seconds: Wall time of a sitting, after which no call begins, of a model on this machine neither.

    Raises:
        ConfigError: A limit is not a positive number, or there is none.
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        limits = {name: limit for name, limit in asdict(self).items() if limit is not None}
        if not limits:
            raise ConfigError("This Budget limits nothing.", hint="Give it one of calls=, tokens=, usd= and seconds=.")
        for name, limit in limits.items():
            whole = name in ("calls", "tokens")
            kinds = (int,) if whole else (int, float)
            if isinstance(limit, bool) or not isinstance(limit, kinds) or not limit > 0 or not math.isfinite(limit):
                raise ConfigError(
                    f"Budget({name}={limit!r}) allows no call; a {'whole ' if whole else ''}number above 0 is allowed.",
                    hint=f"Leave `{name}` out for no limit. To see what a compile would spend, call `optimizer.plan(…)`.",
                )


@dataclass(frozen=True)
class Spent:
    """Answers, tokens, and USD as far as prices are known."""

    calls: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.calls + other.calls, self.tokens + other.tokens, self.usd + other.usd)

    def beyond(self, known: "Spent") -> "Spent":
        """What is not in `known`."""
        calls, tokens, usd = self.calls - known.calls, self.tokens - known.tokens, self.usd - known.usd
        return Spent(max(0, calls), max(0, tokens), max(0.0, usd))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Meter:
    """Counts what a run spends, and refuses what its budget does not allow. Threads share it.

    A run within another one, whose meter is `counted_by`, spends from the budgets of both. `spent` begins with what
    earlier sittings have paid; `run_dir` is the folder that has their record.
    """

    def __init__(self, budget: Budget | None, spent: Spent, run_dir: Path | None = None) -> None:
        self.budget, self.spent = budget, spent
        self.exhausted: str | None = None  # the limit that was reached, in words
        self._outer = _outer.get()
        self._inner: dict[Path, Meter] = {}  # the last of each folder
        self._under_way = 0
        self._started = time.monotonic()
        self._lock = threading.Condition()
        if self._outer is not None:
            self._outer._add(self, run_dir)

    @property
    def wants_prices(self) -> bool:
        """Whether a limit in USD is to be kept."""
        own = self.budget is not None and self.budget.usd is not None
        return own or (self._outer is not None and self._outer.wants_prices)

    def admit(self, model: str, *, priced: bool, stopped: Callable[[], bool] | None = None) -> None:
        """Allow one call, which `settle` or `release` must end.

        While only the calls under way leave no room, it waits for them, as they may yet give it back, until `stopped`
        says that nobody waits any more, or raises why; without a `stopped` it is refused at once.

        Raises:
            BudgetError: A limit is reached, or the limit is in USD and the model has no known price.
        """
        if self._outer is not None:
            try:
                self._outer.admit(model, priced=priced, stopped=stopped)
            except BudgetError:
                self.exhausted = self._outer.exhausted or self.exhausted  # `stopped` may have raised for this one
                raise
        try:
            with self._lock:
                if self.budget is not None:
                    while stopped is not None and self._is_held(self.budget) and not stopped():
                        self._lock.wait(_LOOK_UP)
                    self._check(self.budget, model, priced)
                self._under_way += 1
        except BudgetError:
            if self._outer is not None:
                self._outer.release()
            raise

    def check_time(self) -> None:
        """Allow one call that costs nothing but time.

        Raises:
            BudgetError: The limit in seconds is reached.
        """
        if self._outer is not None:
            try:
                self._outer.check_time()
            except BudgetError:
                self.exhausted = self._outer.exhausted
                raise
        if self.budget is not None:
            self._refuse(self._out_of_time(self.budget))

    @property
    def is_held(self) -> bool:
        """Whether only the calls under way leave no room."""
        own = self.budget is not None and self._is_held(self.budget)
        return own or (self._outer is not None and self._outer.is_held)

    async def room(self, stopped: Callable[[], bool]) -> None:
        """Wait as `admit` does, in an event loop, where the calls under way go on meanwhile."""
        while self.is_held and not stopped():
            await asyncio.sleep(_LOOK_UP / 10)

    def settle(self, tokens: int, usd: float) -> None:
        """A call that was allowed has been answered."""
        with self._lock:
            self._under_way -= 1
            self.spent += Spent(1, tokens, usd)
            self._lock.notify_all()
        if self._outer is not None:
            self._outer.settle(tokens, usd)

    def release(self) -> None:
        """A call that was allowed got no answer, or one that costs nothing."""
        with self._lock:
            self._under_way -= 1
            self._lock.notify_all()
        if self._outer is not None:
            self._outer.release()

    def _add(self, inner: "Meter", run_dir: Path | None) -> None:
        """Count what a run within this one has paid before, but for what this meter saw an earlier run of its folder pay."""
        with self._lock:
            paid = inner.spent
            if run_dir is not None:
                known = self._inner.get(run_dir.resolve())
                paid = paid if known is None else paid.beyond(known.spent)
                self._inner[run_dir.resolve()] = inner
            self.spent += paid

    def _is_held(self, budget: Budget) -> bool:
        return budget.calls is not None and self.spent.calls < budget.calls <= self.spent.calls + self._under_way

    def _check(self, budget: Budget, model: str, priced: bool) -> None:
        if budget.usd is not None and not priced:
            raise BudgetError(
                f"The price of {model!r} is unknown, so Budget(usd={budget.usd:g}) cannot be kept.",
                hint="Limit `calls` or `tokens` instead.",
            )
        self._refuse(self._reached(budget))

    def _refuse(self, reached: str | None) -> None:
        if reached is not None:
            self.exhausted = reached
            raise budget_spent(reached)

    def _reached(self, budget: Budget) -> str | None:
        if budget.calls is not None and self.spent.calls + self._under_way >= budget.calls:
            return f"{budget.calls:,} calls"
        if budget.tokens is not None and self.spent.tokens >= budget.tokens:
            return f"{self.spent.tokens:,} tokens of {budget.tokens:,}"
        if budget.usd is not None and self.spent.usd >= budget.usd:
            return f"{self.spent.usd:.4g} USD of {budget.usd:g}"
        return self._out_of_time(budget)

    def _out_of_time(self, budget: Budget) -> str | None:
        if budget.seconds is not None and time.monotonic() - self._started >= budget.seconds:
            return f"{budget.seconds:g} seconds"
        return None


def budget_spent(reached: str) -> BudgetError:
    """The error that says which limit was reached, and how the run goes on."""
    return BudgetError(
        f"The budget is spent: {reached}.",
        hint="Raise it and run the same command again: it goes on from here, and pays for nothing twice.",
    )


_outer: ContextVar[Meter | None] = ContextVar("dspyc_outer_meter", default=None)


@contextmanager
def counted_by(meter: Meter) -> Iterator[None]:
    """Meters that are made meanwhile, in this context, spend from `meter` too."""
    token = _outer.set(meter)
    try:
        yield
    finally:
        _outer.reset(token)
