"""The first good runs of a program in the examples' order, found by runs that go on at once."""

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field

from ..errors import BudgetError
from ..progress import Advance
from .failures import too_many
from .ledger import Ledger
from .trace import Trace

_MOST_UNDECIDED = 64  # for each thread: all of them are looked at whenever a run ends
Begin = Callable[[int, int], "Future[Trace]"]


@dataclass
class Attempt:
    """The runs of one example, a run a round; where one is good it is the last."""

    index: int
    runs: list[Trace] = field(default_factory=list)
    good: bool = False


def first_good(
    begin: Begin,
    examples: int,
    *,
    wanted: int,
    max_rounds: int,
    good: Callable[[Trace], bool],
    ledger: Ledger,
    num_threads: int,
    max_errors: int,
    advance: Advance,
) -> list[Attempt]:
    """Try examples until `wanted` of them have a good run; the attempts up to that one, in order.

    `begin(index, round)` begins a run of an example; `advance` hears of each good one. The answer is that of a search that
    makes one run after the other. Runs go on at once that are needed for sure, which are as many as good ones are missing,
    and beyond them so many as the share of good ones so far calls for, at most `num_threads - 1`. So fewer than
    `num_threads` examples are run that such a search would not have reached, and none while every run is good.

    Where the ledger's budget is spent, the search ends with the good runs that it has: those of the examples before the
    first that was refused, and of those that go on beside it.

    Raises:
        BootstrapError: `max_errors` runs failed before that.
        BudgetError: The budget did not allow one good run.
    """
    search = _Search(begin, max_rounds, good)
    decided: list[Attempt] = []
    errors: list[Trace] = []
    found = begun = 0
    try:
        while found < wanted:
            for _ in range(len(search.waiting), _ahead(wanted - found, found, len(decided), num_threads)):
                if begun < examples and not search.refused:
                    search.add(begun)
                    begun += 1
            if not search.waiting:
                break
            attempt = search.next_decided()
            decided.append(attempt)
            found += attempt.good
            advance(int(attempt.good), note=f"{len(decided)} examples")
            for run in attempt.runs:
                if not run.error:
                    continue
                errors.append(run)
                ledger.event("bad example", role=run.role, trace=run.id, error=run.error)
                if len(errors) >= max_errors:
                    raise too_many(errors, sum(len(one.runs) for one in decided), max_errors, run.role)
    finally:
        search.cancel()
    if search.refused and not found:
        raise search.refused
    return decided


class _Search:
    """Attempts in the examples' order that are not decided yet, each with its run that goes on, if one does."""

    def __init__(self, begin: Begin, max_rounds: int, good: Callable[[Trace], bool]) -> None:
        self.waiting: deque[Attempt] = deque()
        self._going: dict[int, Future[Trace]] = {}
        self._begin, self._max_rounds, self._good = begin, max_rounds, good
        self._refused: dict[int, BudgetError] = {}
        self.refused: BudgetError | None = None  # an attempt that was taken

    def add(self, index: int) -> None:
        self.waiting.append(Attempt(index))
        self._going[index] = self._begin(index, 0)

    def next_decided(self) -> Attempt:
        """Wait until the attempt at the front is over, and take it. What was refused behind it changes nothing yet."""
        while self.waiting[0].index in self._going:
            wait(self._going.values(), return_when=FIRST_COMPLETED)
            for attempt in self.waiting:
                self._proceed(attempt)
        attempt = self.waiting.popleft()
        self.refused = self._refused.get(attempt.index, self.refused)
        return attempt

    def cancel(self) -> None:
        """Forget the runs that have not begun; those that have are finished and recorded by their pool."""
        for run in self._going.values():
            run.cancel()

    def _proceed(self, attempt: Attempt) -> None:
        run = self._going.get(attempt.index)
        if run is None or not run.done():
            return
        try:
            attempt.runs.append(run.result())
            attempt.good = self._good(attempt.runs[-1])
        except CancelledError:
            pass  # another search shared the run and has no more use for it
        except BudgetError as error:
            self._refused[attempt.index] = error
        if attempt.good or attempt.index in self._refused or len(attempt.runs) == self._max_rounds:
            del self._going[attempt.index]
        else:
            self._going[attempt.index] = self._begin(attempt.index, len(attempt.runs))


def _ahead(missing: int, found: int, decided: int, num_threads: int) -> int:
    """How many examples to have undecided. The share of good runs counts one good run more than there were."""
    expected = math.ceil(missing * (decided + 1) / (found + 1))
    return min(expected, missing + num_threads - 1, _MOST_UNDECIDED * num_threads)
