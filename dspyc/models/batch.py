"""A live batch: rows join with their prompts and leave at any step, and stand behind prefixes that were computed once.

Every step is one forward pass over the tokens that each row has to read next: one that was just chosen, or more. A row's
keys and values lie in its slot, apart from those of its prefix; the slots in use are the first ones, without a gap.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .cascade import Group, Span, Step
from .generation import Generation
from .store import Prefix, Store

STEP_TOKENS = 2048  # that are read in one forward pass at most; a longer prompt takes several

_AHEAD = 64  # tokens of a reply that are counted before they are written; most replies are short

Read = Callable[[list[int], list[int], Step, list[int], list[tuple[str | None, int]]], torch.Tensor]


class Batch(Protocol):
    """Rows that are computed together."""

    def __len__(self) -> int:
        """Rows, those included that are over and not yet dropped."""
        ...

    @property
    def generations(self) -> list[Generation]: ...

    def forward(self) -> tuple[list[Generation], torch.Tensor]:
        """Compute what rows have not computed; the rows that need a token now, and their scores (rows, vocabulary)."""
        ...

    def drop(self, over: Sequence[Generation]) -> None:
        """Let rows go."""
        ...


@dataclass(frozen=True)
class Start:
    """Where a row begins: behind the first `shared` tokens of `prefix`; its slot gets those up to `copied` from `source`."""

    prefix: Prefix | None = None
    shared: int = 0
    source: Prefix | None = None
    copied: int = 0

    @property
    def known(self) -> int:
        """Tokens that need not be computed."""
        return max(self.shared, self.copied)

    @property
    def prefixes(self) -> list[Prefix]:
        """Those that have to be there."""
        return [prefix for prefix in (self.prefix, self.source) if prefix is not None]


NOTHING = Start()


@dataclass(eq=False)
class _Row:
    generation: Generation
    start: Start
    like: Generation | None  # a row with the same tokens that computes them for this one as well
    began: Prefix | None  # with which

    @property
    def own(self) -> int:
        """Tokens in the row's slot."""
        return self.generation.computed - self.start.shared

    @property
    def unread(self) -> int:
        return self.generation.length - self.generation.computed


def _coming(generation: Generation, shared: int) -> int:
    """Tokens of a row's own, those that it will write soon included."""
    return generation.length - shared + min(generation.left, _AHEAD)


class CascadeBatch:
    """A `Batch` over a model whose attention is `cascade.attend`.

    Args:
        read: The model's forward pass (see `runner.Runner`).
        device: Where it is.
        worn: The adapter that all rows have, where it cannot share a step with others.
    """

    def __init__(self, read: Read, device: torch.device, worn: str | None = None) -> None:
        self.worn = worn
        self._read = read
        self._device = device
        self._rows: list[_Row] = []
        self._store = Store()
        self._groups: dict[tuple[int, ...], list[Group]] = {}
        self._needs: tuple[int, int, int] | None = None  # slots, tokens of the widest and of all, until a row writes
        self.limit = math.inf  # tokens that the slots hold at most beyond what rows need

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def generations(self) -> list[Generation]:
        return [row.generation for row in self._rows]

    @property
    def bytes(self) -> int:
        """What the keys and values of the slots take, used or not."""
        return self._store.bytes

    @property
    def token_bytes(self) -> int:
        """What the keys and values of one token take; 0 before the first."""
        return sum(layer.bytes // (self._store.slots * self._store.room) for layer in self._store.layers)

    def room(self, joining: Generation | None = None, shared: int = 0) -> int:
        """Tokens that the slots will hold: of the rows, and of one that joins behind a prefix of `shared` tokens, if any."""
        return math.prod(self._slots(joining, shared)[:2])

    def idle(self, joining: Generation | None = None, shared: int = 0) -> int:
        """How many of these will be of no row, since all slots are as wide as the widest."""
        slots, width, used = self._slots(joining, shared)
        return slots * width - used

    def _slots(self, joining: Generation | None, shared: int) -> tuple[int, int, int]:
        """Slots, the tokens of the widest, and those of all."""
        if self._needs is None:
            coming = [_coming(row.generation, row.start.shared) for row in self._rows]
            self._needs = len(coming), max(coming, default=0), sum(coming)
        if joining is None:
            return self._needs
        slots, width, used = self._needs
        more = _coming(joining, shared)
        return slots + 1, max(width, more), used + more

    def add(self, generation: Generation, start: Start = NOTHING, like: Generation | None = None) -> None:
        """Let a row join; or the twin of one that joined just before, from the same start."""
        if like is not None:
            start = Start(start.prefix, start.shared)
        self._needs = self._slots(generation, start.shared)
        generation.computed = start.known
        for prefix in start.prefixes:
            prefix.users += 1
        row = _Row(generation, start, like, start.source or start.prefix)
        if row.began is not None:
            row.began.rows += 1
        self._rows.append(row)
        self._groups.clear()

    def drop(self, over: Sequence[Generation]) -> None:
        gone = set(map(id, over))
        if not gone:
            return
        for row in self._rows:
            if id(row.generation) in gone:
                for prefix in row.start.prefixes:
                    prefix.users -= 1
                if row.began is not None:
                    row.began.rows -= 1
            if row.like is not None and id(row.like) in gone:
                row.like = None  # it computes its tokens itself
        kept = [at for at, row in enumerate(self._rows) if id(row.generation) not in gone]
        holes = [at for at in range(len(kept)) if id(self._rows[at].generation) in gone]
        for hole in holes:
            last = kept.pop()
            if self._rows[last].own and self._rows[last].start.source is None:  # else it has nothing in its slot yet
                self._store.move(last, hole, self._rows[last].own)
            self._rows[hole] = self._rows[last]
        del self._rows[len(kept) + len(holes) :]
        self._groups.clear()
        self._needs = None
        if not self._rows:
            self._store.clear()

    def forward(self) -> tuple[list[Generation], torch.Tensor]:
        single = [at for at, row in enumerate(self._rows) if row.unread == 1 and row.like is None]
        ids = [self._rows[at].generation.pending(1)[0] for at in single]
        places = [self._rows[at].generation.computed for at in single]
        order = list(single)
        counts = [1] * len(single)
        spans: list[Span] = []
        for at, row in enumerate(self._rows):
            count = min(row.unread, STEP_TOKENS - len(ids))
            if row.unread == 1 or row.like is not None or count <= 0:
                continue
            spans.append(Span(at, len(ids), count, row.own, row.start.prefix, row.start.shared))
            ids += row.generation.pending(count)
            places += range(row.generation.computed, row.generation.computed + count)
            order.append(at)
            counts.append(count)
        columns = [self._rows[at].own for at in single]
        self.reserve()
        self._fill()
        step = self._step(single, columns, spans)
        ready, last, offset = [], [], 0
        for at, count in zip(order, counts, strict=True):
            offset += count
            if self._rows[at].unread == count:
                ready.append(at)
                last.append(offset - 1)
        owners = [(self._rows[at].generation.adapter, count) for at, count in zip(order, counts, strict=True)]
        logits = self._read(ids, places, step, last, owners)
        for at, count in zip(order, counts, strict=True):
            self._rows[at].generation.computed += count
        self._needs = None
        return self._with_twins(ready, logits)

    def taken(self, generation: Generation) -> Prefix:
        """A copy of what a row has computed, as a prefix."""
        at = next(at for at, row in enumerate(self._rows) if row.generation is generation)
        row, start = self._rows[at], self._rows[at].start
        ids = (generation.job.ids + generation.written)[: generation.computed]
        return Prefix(ids, generation.adapter, self._store.taken(at, row.own, start.prefix, start.shared))

    def reserve(self) -> None:
        """Have slots for all that rows have to read, parts of prompts included that come later, and give back what is over."""
        needed = max((row.generation.length - row.start.shared for row in self._rows), default=0)
        self._store.reserve(len(self._rows), needed, len(self._rows), self.limit)

    def _fill(self) -> None:
        """Copy what rows that have just joined need into their slots."""
        for at, row in enumerate(self._rows):
            start = row.start
            if start.source is not None:
                self._store.fill(at, start.source, start.shared, start.copied)
                start.source.users -= 1
                row.start = Start(start.prefix, start.shared)

    def _with_twins(self, ready: list[int], logits: torch.Tensor) -> tuple[list[Generation], torch.Tensor]:
        """Copies to twins what was computed for them; they are ready with the row that they are like."""
        found = [self._rows[at].generation for at in ready]
        if all(row.like is None for row in self._rows):
            return found, logits
        of = {id(generation): (place, at) for place, (generation, at) in enumerate(zip(found, ready, strict=True))}
        chosen = list(range(len(found)))
        for at, row in enumerate(self._rows):
            if row.like is None or id(row.like) not in of:
                continue
            place, source = of[id(row.like)]
            row.generation.computed = row.generation.length
            row.generation.cached = len(row.generation.job.ids)
            row.like = None
            self._store.move(source, at, row.own)
            found.append(row.generation)
            chosen.append(place)
        return found, logits[torch.tensor(chosen, device=logits.device)]

    def _step(self, single: list[int], columns: list[int], spans: list[Span]) -> Step:
        slots = len(self._rows)
        width = max(columns, default=-1) + 1
        where = torch.tensor(columns, dtype=torch.long, device=self._device)
        rows = torch.tensor(single, dtype=torch.long, device=self._device)
        mask = None
        if single and (len(single) < slots or min(columns) < width - 1):
            ends = where
            if len(single) < slots:
                ends = torch.zeros(slots, dtype=torch.long, device=self._device).index_copy_(0, rows, where)
            hidden = torch.arange(width, device=self._device) > ends[:, None]
            mask = torch.zeros(slots, 1, width, device=self._device).masked_fill_(hidden[:, None], -torch.inf)
        key = tuple(single)
        if single and key not in self._groups:
            if len(self._groups) > 8:
                self._groups.clear()
            self._groups[key] = self._grouped(single)
        everywhere = columns[0] if len(single) == slots and len(set(columns)) == 1 else None
        return Step(slots, rows, where, everywhere, width, mask, self._groups.get(key, []), spans, self._store)

    def _grouped(self, single: list[int]) -> list[Group]:
        """The single rows by the prefix that they stand behind; with one prefix, all slots are its group.

        Those behind less than half of what another row has of a prefix are a group of their own, which reads no more of it.
        """
        longest: dict[int, int] = {}
        for at in single:
            start = self._rows[at].start
            longest[id(start.prefix)] = max(longest.get(id(start.prefix), 0), start.shared)
        members: dict[tuple[int, bool], list[int]] = {}
        for at in single:
            start = self._rows[at].start
            members.setdefault((id(start.prefix), 2 * start.shared < longest[id(start.prefix)]), []).append(at)
        groups = []
        for rows in members.values():
            prefix = self._rows[rows[0]].start.prefix
            everyone = len(members) == 1
            shared, mask = max(self._rows[at].start.shared for at in rows), None
            rows = list(range(len(self._rows))) if everyone else rows
            # Rows of a span may stand behind another.
            lengths = [min(self._rows[at].start.shared, shared) for at in rows]
            if prefix is not None and min(lengths) < shared:
                ends = torch.tensor(lengths, device=self._device)
                hidden = torch.arange(shared, device=self._device) >= ends[:, None]
                mask = torch.zeros(len(rows), 1, shared, device=self._device).masked_fill_(hidden[:, None], -torch.inf)
            chosen = None if everyone else torch.tensor(rows, device=self._device)
            groups.append(Group(prefix, shared, chosen, mask))
        return groups
