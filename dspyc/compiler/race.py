"""The race: candidates meet the same examples, and one that will not win stops being paid for.

    entrants = {number: threads.submit(make, number) for number in range(16)}     # futures of subjects
    race = Race(examples, keys, pool, rule=Rule(), max_errors=10)
    winner = race.run(entrants)
    race.lanes[0].judged, race.lanes[0].left                                      # what each saw, and why it left

The examples come in a random order. Candidates are compared after 16 of them, then after a quarter more, and so on: a
geometric schedule, so that a long race has few looks (Mnih, Szepesvári & Audibert, 2008). At a look a candidate leaves when
the paired differences to the leader say that it will not overtake it: racing is Maron & Moore's (1994), the paired t test
in it F-race's (Birattari, Stützle, Paquete & Varrentrapp, 2002). Two things are added to that test. What is asked is who
wins on *these* examples, of which some are seen already, so the standard error has the correction for finite populations
(Cochran, 1977, 2.6). And the level is divided by the number of looks (Bonferroni).

Who leaves depends on scores and the seed alone, never on which thread was faster: a look is taken once all that are in the
race have its examples. Threads that would wait for the last of them begin the leaders' next ones.
"""

import queue
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import dspy
import numpy as np
from numpy.typing import NDArray

from ..errors import BudgetError, ConfigError, DspycError
from ..evaluation.intervals import student_quantile
from .failures import too_many
from .pool import Pool
from .recording import Subject
from .trace import Trace

FIRST_LOOK, GROWTH = 16, 1.25
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """When a candidate leaves. `risk` is the chance, over all looks, that one does that would have beaten a given leader.

    With 19 candidates and 200 examples, simulated 300 times, a risk of 0.2 lost the later winner in 2 to 4 % of races where
    true qualities differed by a standard deviation of 0.11, and in 12 % where they hardly did (0.03); the choice was worse by
    0.000 and 0.0015 on average.
    """

    risk: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.risk, bool) or not isinstance(self.risk, (int, float)) or not 0 < self.risk < 1:
            raise ConfigError(f"`risk` is {self.risk!r}; a probability between 0 and 1 is allowed.")

    def lead(self, leader: Scores, other: Scores, total: int, looks: int) -> tuple[float, float]:
        """By how much `leader` leads on the examples that both have seen, and by how much at least on all `total`.

        Where the latter is above 0, `other` will not win. `looks` are all that the race may take.
        """
        differences = leader - other
        seen = len(differences)
        error = float(differences.std(ddof=1)) * ((1 - seen / total) / seen) ** 0.5
        mean = float(differences.mean())
        return mean, mean - student_quantile(1 - self.risk / looks, seen - 1) * error


class Withdrawn(Exception):  # noqa: N818 (an event, told by an entrant's future, and no error of the race)
    """Why a candidate does not join."""


@dataclass
class Lane:
    """One candidate on its way. Places are those of the race's order; a score is NaN until its run is over."""

    number: int  # the candidate's, by which ties are settled: the lower wins
    scores: Scores
    subject: Subject | None = None
    begun: int = 0
    seen: int = 0  # places from the first on that have scores
    failed: dict[int, Trace] = field(default_factory=dict)
    left: str | None = None  # why it is out
    left_at: int = 0  # places that it was judged by when it left
    going: dict[int, "Future[Trace]"] = field(default_factory=dict)
    refused: bool = False  # one of its runs that were needed, so what is behind that does not count
    _beyond: set[int] = field(default_factory=set)  # places with scores that are not among the `seen`

    @property
    def judged(self) -> Scores:
        """The scores that count: those of the leader's comparisons, not of runs that were begun ahead of them."""
        return self.scores[: self.left_at if self.left is not None else self.seen]

    def begin(self) -> int:
        """The next place to run; then `begun` is the first behind it that was not run before."""
        place = self.begun
        self.begun += 1
        while self.begun in self.going or (self.begun < len(self.scores) and not np.isnan(self.scores[self.begun])):
            self.begun += 1
        return place

    def keep(self, place: int, trace: Trace) -> None:
        self.scores[place] = trace.counted
        if trace.error:
            self.failed[place] = trace
        self._beyond.add(place)
        while self.seen in self._beyond:
            self._beyond.remove(self.seen)
            self.seen += 1


def schedule(total: int) -> list[int]:
    """How many examples have been seen at each look; the last is all of them."""
    looks, at = [], FIRST_LOOK
    while at < total:
        looks.append(at)
        at = round(at * GROWTH)
    return [*looks, total]


def percent(scores: Sequence[float] | Scores) -> float:
    """A mean as dspy.Evaluate gives it: in percent, to two decimals."""
    return round(100 * float(sum(scores)) / len(scores), 2)


class Race:
    """One race over an open pool.

    Args:
        examples: What every candidate meets; `keys` are theirs from `example_keys`.
        pool: Runs and scores them.
        rule: When a candidate leaves. None: all see every example, in the candidates' order.
        seed: Of the order of the examples.
        stop_at_score: In percent: the search ends with a candidate that has it on all examples.
        max_errors: Failed runs that put a candidate out.
        ahead: Whether threads that would wait begin what later looks may need: the leader's runs, then others' next ones.
        watch: Called after every run, in the thread that called `run`.
    """

    def __init__(
        self,
        examples: Sequence[dspy.Example],
        keys: Sequence[str],
        pool: Pool,
        *,
        rule: Rule | None,
        seed: int = 0,
        stop_at_score: float | None = None,
        max_errors: int,
        ahead: bool = True,
        watch: "Callable[[Race], None] | None" = None,
    ) -> None:
        self.examples, self.keys, self.pool, self.rule = examples, keys, pool, rule
        self.stop_at_score, self.max_errors, self.ahead, self.watch = stop_at_score, max_errors, ahead, watch
        self.order = list(range(len(examples)))
        self.looks = [len(examples)]
        if rule is not None:
            random.Random(f"race {seed}").shuffle(self.order)
            self.looks = schedule(len(examples))
        self.refused: BudgetError | None = None  # why not all were compared
        self.spent = False  # a run that was needed was refused; candidates may be refused while runs cost nothing
        self.lanes: list[Lane] = []
        self._rank: list[Lane] = []  # the best first
        self._look = 0  # the index of the next one
        self._first: Lane | None = None  # the only one to run for now
        self._unmade = 0  # candidates that are still being made
        self._going = 0  # runs that the pool has
        self._done: queue.SimpleQueue[tuple[Lane, int | None, Future[Any]]] = queue.SimpleQueue()

    def run(self, entrants: Mapping[int, "Future[Subject]"]) -> Lane:
        """The winner. Entrants are candidates by their numbers; they join as they are made, unless they raise Withdrawn.

        Raises:
            BootstrapError: All candidates failed too often.
            BudgetError: Not one run was allowed. A budget that is spent later ends the race with the best so far.
            LedgerError: The ledger cannot be written.
        """
        self.lanes = [Lane(number, np.full(len(self.examples), np.nan)) for number in sorted(entrants)]
        self._rank, self._unmade = list(self.lanes), len(entrants)
        for lane in self.lanes:
            entrants[lane.number].add_done_callback(lambda made, lane=lane: self._done.put((lane, None, made)))  # type: ignore[misc]
        while (winner := self._decide()) is None:
            self._fill()
            lane, place, future = self._done.get()
            if place is None:
                self._join(lane, future)
            else:
                self._collect(lane, place, future)
            if self.watch is not None:
                self.watch(self)
        return winner

    @property
    def running(self) -> list[Lane]:
        """Those that are not out, the leader first."""
        return [lane for lane in self._rank if lane.left is None]

    def by_example(self, lane: Lane) -> list[float | None]:
        """A lane's scores in the order of the examples; None where it was not judged."""
        found: list[float | None] = [None] * len(self.order)
        for at, score in zip(self.order, lane.judged, strict=False):
            found[at] = float(score)
        return found

    def _fill(self) -> None:
        """Give the pool so much more work than it has threads that none of them waits for this one."""
        while self._going < self.pool.num_threads + max(2, self.pool.num_threads // 4):
            if (lane := self._next()) is None:
                return
            self._begin(lane, lane.begin())

    def _needed(self, lane: Lane) -> int:
        """How many places the next look needs of a lane."""
        return len(self.order) if lane is self._first else self.looks[self._look]

    def _next(self) -> Lane | None:
        """Whose run the next look needs; after those, who is likely to be asked for more.

        Once the budget is spent others' runs are needed still: the ledger may have them.
        """
        joined = [lane for lane in ([self._first] if self._first else self.running) if lane.subject is not None]
        for lane in joined:
            if lane.begun < self._needed(lane) and not lane.refused:
                return lane
        if not self.ahead or self.spent or not joined or len(joined) < len(self.running):
            return None
        later = self.looks[min(self._look + 1, len(self.looks) - 1)]
        if joined[0].begun < len(self.order):  # should it win, it has to meet them all
            return joined[0]
        return next((lane for lane in joined if lane.begun < later), None)

    def _begin(self, lane: Lane, place: int) -> None:
        assert lane.subject is not None
        at = self.order[place]
        run = self.pool.submit(lane.subject, self.examples[at], self.keys[at], at)
        self._going += 1
        lane.going[place] = run
        run.add_done_callback(lambda run: self._done.put((lane, place, run)))

    def _join(self, lane: Lane, made: "Future[Subject]") -> None:
        self._unmade -= 1
        try:
            lane.subject = made.result()
        except Withdrawn as error:
            self._leave(lane, str(error), 0)
        except BudgetError as error:
            self.refused = error
            self._leave(lane, "not made: the budget was spent", 0)

    def _collect(self, lane: Lane, place: int, run: "Future[Trace]") -> None:
        self._going -= 1
        del lane.going[place]
        if run.cancelled():
            if lane.left is None:  # cancelled by another, who shared the run
                self._begin(lane, place)
            return
        try:
            trace = run.result()
        except BudgetError as error:
            if lane.left is None and place < self._needed(lane):
                self.refused, self.spent, lane.refused = error, True, True
            else:  # begun ahead: what the ledger has may do without it
                self.ahead, lane.begun = False, min(lane.begun, place)
            return
        lane.keep(place, trace)
        if trace.error:
            self.pool.ledger.event("bad example", role=trace.role, trace=trace.id, error=trace.error)

    def _decide(self) -> Lane | None:
        """Put out who fails, and take the looks that can be taken; the winner, once there is one."""
        look = self.looks[self._look]
        for lane in self.running:
            errors = [trace for place, trace in lane.failed.items() if place < look]
            if len(errors) >= self.max_errors:
                self._leave(lane, f"{len(errors)} of its runs failed, the first: {errors[0].error}", lane.seen)
        if not self.running:
            raise self._all_out()
        if self.rule is None and (early := self._stopped_early()) is not None:
            return early
        if self.spent:
            return None if self._going or self._unmade or self._next() else self._best_so_far()
        while not self._unmade and all(lane.seen >= self.looks[self._look] for lane in self.running):
            if (winner := self._compare(self.looks[self._look])) is not None or self._first is not None:
                return winner
        return None

    def _all_out(self) -> DspycError:
        """What to raise once nobody is left: the runs that failed say more than a candidate that was never made."""
        failed = [trace for lane in self.lanes for trace in lane.failed.values()]
        if self.refused is not None and not failed:
            return self.refused
        finished = sum(int(np.count_nonzero(~np.isnan(lane.scores))) for lane in self.lanes)
        return too_many(failed, finished, self.max_errors, failed[0].role)

    def _compare(self, seen: int) -> Lane | None:
        """One look. It waits, with `_first` set, where the leader may have reached `stop_at_score`."""
        self._rank = sorted(self.running, key=lambda lane: self._place(lane, seen))
        leader, self._first = self._rank[0], None
        if seen == len(self.order):
            return leader
        if self._reached(leader.scores[:seen]):
            if leader.seen < len(self.order):
                self._first = leader
                return None
            if self._reached(leader.scores):
                return self._end(leader, seen)
        assert self.rule is not None
        for lane in self._rank[1:]:
            mean, least = self.rule.lead(leader.scores[:seen], lane.scores[:seen], len(self.order), len(self.looks) - 1)
            if least > 0:
                gap = f"behind candidate {leader.number} by {mean:.3f}, and on all examples by {least:.3f} at least"
                self._leave(lane, gap, seen)
        self._look = len(self.looks) - 1 if len(self.running) == 1 else self._look + 1
        return None

    def _place(self, lane: Lane, seen: int) -> tuple[float, int]:
        """By what lanes are ranked, the best lowest; without a rule as DSPy does, for which scores in percent are rounded."""
        scores = lane.scores[:seen]
        return -(percent(scores) if self.rule is None else float(scores.mean())), lane.number

    def _stopped_early(self) -> Lane | None:
        """Without a rule: the first candidate that reaches `stop_at_score`, once those before it are over."""
        for lane in self.lanes:
            if lane.left is None and (lane.seen < len(self.order) or self._reached(lane.scores)):
                return self._end(lane, 0) if lane.seen == len(self.order) else None
        return None

    def _best_so_far(self) -> Lane:
        """The leader at the last look that all who met any examples reached; before the first, of those who came furthest.

        Runs that were begun ahead do not count: whoever goes on with the same budget may not begin them.
        """
        for lane in self.running:
            lane.seen = min(lane.seen, self._needed(lane))
        reached = [lane.seen for lane in self.running if lane.seen]
        if not reached:
            assert self.refused is not None
            raise self.refused
        seen = max((look for look in self.looks if look <= min(reached)), default=min(self.looks[0], max(reached)))
        met = [lane for lane in self.running if lane.seen >= seen]
        winner = min(met, key=lambda lane: self._place(lane, seen))
        for lane in self.running:
            if lane is not winner:
                self._leave(lane, "the budget was spent", min(seen, lane.seen))
        return winner

    def _reached(self, scores: Scores) -> bool:
        return self.stop_at_score is not None and percent(scores) >= self.stop_at_score

    def _end(self, winner: Lane, judged: int) -> Lane:
        """End the search with `winner`; without a rule those before it have been judged, and the others have not."""
        for lane in self.running:
            if lane.number > winner.number or (lane is not winner and self.rule is not None):
                self._leave(lane, f"candidate {winner.number} reached `stop_at_score`", judged)
        return winner

    def _leave(self, lane: Lane, reason: str, judged: int) -> None:
        lane.left, lane.left_at = reason, judged
        if lane is self._first:
            self._first = None
        for run in list(lane.going.values()):
            run.cancel()
