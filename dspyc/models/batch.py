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
from .store import Layer, Prefix, Store

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


@dataclass(eq=False)
class _Row:
    generation: Generation
    prefix: Prefix | None
    shared: int  # tokens of the prefix that are this row's too
    like: Generation | None  # a row with the same tokens that computes them for this one as well

    @property
    def own(self) -> int:
        """Tokens in the row's slot."""
        return self.generation.computed - self.shared

    @property
    def unread(self) -> int:
        return self.generation.length - self.generation.computed


def _coming(generation: Generation, shared: int) -> int:
    """Tokens of a row's own, those that it will write soon included."""
    return generation.length - shared + min(generation.left, _AHEAD)


class CascadeBatch:
    """A `Batch` over a model whose attention is `cascade.attend`; `read` is its forward pass (see `runner.Runner`)."""

    def __init__(self, read: Read, device: torch.device) -> None:
        self._read = read
        self._device = device
        self._rows: list[_Row] = []
        self._store = Store()
        self._groups: dict[tuple[int, ...], list[Group]] = {}
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
        lengths = [_coming(row.generation, row.shared) for row in self._rows]
        if joining is not None:
            lengths.append(_coming(joining, shared))
        return len(lengths) * max(lengths, default=0)

    def add(
        self, generation: Generation, prefix: Prefix | None = None, shared: int = 0, like: Generation | None = None
    ) -> None:
        """Let a row join, behind the first `shared` tokens of `prefix`; or as the twin of one that joined just before."""
        generation.computed = shared
        if prefix is not None:
            prefix.users += 1
        self._rows.append(_Row(generation, prefix, shared, like))
        self._groups.clear()

    def drop(self, over: Sequence[Generation]) -> None:
        gone = set(map(id, over))
        if not gone:
            return
        for row in self._rows:
            if id(row.generation) in gone and row.prefix is not None:
                row.prefix.users -= 1
            if row.like is not None and id(row.like) in gone:
                row.like = None  # it computes its tokens itself
        kept = [at for at, row in enumerate(self._rows) if id(row.generation) not in gone]
        holes = [at for at in range(len(kept)) if id(self._rows[at].generation) in gone]
        for hole in holes:
            last = kept.pop()
            if self._rows[last].own:  # a row that has not begun has no slot yet
                self._store.move(last, hole, self._rows[last].own)
            self._rows[hole] = self._rows[last]
        del self._rows[len(kept) + len(holes) :]
        self._groups.clear()
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
            spans.append(Span(at, len(ids), count, row.own, row.prefix, row.shared))
            ids += row.generation.pending(count)
            places += range(row.generation.computed, row.generation.computed + count)
            order.append(at)
            counts.append(count)
        columns = [self._rows[at].own for at in single]
        held = (row.own for row in self._rows)
        needed = max([*held, *(column + 1 for column in columns), *(span.end for span in spans)])
        self._store.reserve(len(self._rows), needed, len(self._rows), self.limit)
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
        return self._with_twins(ready, logits)

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

    def prefix(self, ids: Sequence[int], adapter: str | None, base: Prefix | None, shared: int) -> Prefix:
        """The prefix of these tokens, computed now; `base` holds the first `shared` of them already."""
        store, done = Store(1, len(ids) - shared), 0
        while done < len(ids) - shared:
            count = min(STEP_TOKENS, len(ids) - shared - done)
            start = shared + done
            span = Span(0, 0, count, done, base, shared)
            places = list(range(start, start + count))
            none = torch.empty(0, dtype=torch.long, device=self._device)
            step = Step(1, none, none, None, 0, None, [], [span], store)
            self._read(list(ids[start : start + count]), places, step, [count - 1], [(adapter, count)])
            done += count
        layers = []
        for at, own in enumerate(store.layers):
            keys, values = own.keys[0, :, :done], own.values[0, :, :done]
            if base is not None and shared:
                keys = torch.cat([base.layers[at].keys[:, :shared], keys], 1)
                values = torch.cat([base.layers[at].values[:, :shared], values], 1)
            layers.append(Layer(keys.contiguous(), values.contiguous()))
        return Prefix(list(ids), adapter, layers)

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
        """The single rows by the prefix that they stand behind; with one prefix, all slots are its group."""
        members: dict[int, list[int]] = {}
        for at in single:
            members.setdefault(id(self._rows[at].prefix), []).append(at)
        groups = []
        for rows in members.values():
            prefix = self._rows[rows[0]].prefix
            everyone = len(members) == 1
            shared, mask = max(self._rows[at].shared for at in rows), None
            rows = list(range(len(self._rows))) if everyone else rows
            lengths = [min(self._rows[at].shared, shared) for at in rows]  # rows of a span may stand behind another
            if prefix is not None and min(lengths) < shared:
                ends = torch.tensor(lengths, device=self._device)
                hidden = torch.arange(shared, device=self._device) >= ends[:, None]
                mask = torch.zeros(len(rows), 1, shared, device=self._device).masked_fill_(hidden[:, None], -torch.inf)
            chosen = None if everyone else torch.tensor(rows, device=self._device)
            groups.append(Group(prefix, shared, chosen, mask))
        return groups
