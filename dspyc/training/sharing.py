"""Prompts that rows share, computed once: rows become trees whose trunks stand in front of several rows.

Rows of one predictor open with the same system message and demos. With N rows of S own tokens behind P shared ones, a tree
computes P + N*S tokens instead of N*(P + S); the keys and values of the P tokens stay in the autograd graph, so gradients
are the same. Only tokens whose successor is not learned are shared: every learned position is computed in its own row.

The rows behind a trunk need not fit into memory together: they are computed a batch at a time, and the trunk learns from all of
them at once, at the end (`Learner.learn`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .rows import EncodedRow


@dataclass
class Tree:
    """`ids`, then rows and trees that go on from there. At the top of rows that share nothing, `ids` is empty."""

    ids: list[int]
    rows: list[EncodedRow]
    branches: list["Tree"] = field(default_factory=list)
    depth: int = 0  # tokens in front of `ids`

    @property
    def end(self) -> int:
        return self.depth + len(self.ids)

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding included."""
        return sum(self.passes())

    def passes(self) -> list[int]:
        """Tokens of every call of the model, padding included."""
        own = len(self.rows) * max((len(row) - self.end for row in self.rows), default=0)
        return [n for n in (len(self.ids), own) if n] + [n for branch in self.branches for n in branch.passes()]

    def all_rows(self) -> list[EncodedRow]:
        return [*self.rows, *(row for branch in self.branches for row in branch.all_rows())]


_BUDGET = {"cpu": 2_048, "cuda": 32_768, "mps": 8_192}
_WORTH = {"cpu": 64, "cuda": 1_024, "mps": 256}  # tokens that take about as long as one more call of the model
_COPIED = 4  # tokens whose keys and values take no more memory than all that training holds of one in a layer


@dataclass(frozen=True)
class Planner:
    """Decides what is computed together.

    Args:
        budget: Tokens of one call of the model. A prompt or a row that is longer stands alone.
        share: False computes every row whole.
        worth: Tokens that one more call of the model has to save.
        copied: Every row behind a prompt holds a copy of its keys and values, which counts against the budget.
        short: Rows of more tokens share no call with shorter ones, nor a prompt: the model turns their positions by other
            factors, all those of a call by the same (`models.longrope.short_length`).
    """

    budget: int
    share: bool = True
    worth: int = 64
    copied: bool = False
    short: int | None = None

    @classmethod
    def of(cls, device: str, budget: int | None, *, share: bool, short: int | None = None) -> "Planner":
        """With what measured well on this type of device."""
        return cls(budget or _BUDGET[device], share, _WORTH[device], short=short)

    def __call__(self, rows: Sequence[EncodedRow]) -> list[Tree]:
        """Trees that hold every row once."""
        long = [row for row in rows if self.short is not None and len(row) > self.short]
        short = [row for row in rows if self.short is None or len(row) <= self.short]
        trees, alone = self._forest(sorted(short, key=lambda row: row.ids), 0) if self.share else ([], short)
        batches = [*self._batches(alone, 0), *self._batches(long, 0)]
        return [self._divided(tree) for tree in trees] + [Tree([], batch) for batch in batches]

    def largest(self, trees: Sequence[Tree]) -> int:
        """What the largest call of some trees counts against the budget."""
        calls = [len(tree.ids) for tree in trees]
        calls += [len(t.rows) * self._counted(max(t.rows, key=len), t.end) for t in trees if t.rows]
        return max(calls + [self.largest(tree.branches) for tree in trees], default=0)

    def _counted(self, row: EncodedRow, start: int) -> int:
        """What a row that is computed from `start` on counts against the budget."""
        return len(row) - start + (start // _COPIED if self.copied else 0)

    def _divided(self, tree: Tree) -> Tree:
        """The tree with its rows in batches within the budget, all behind the same trunk."""
        batches = [Tree([], batch, depth=tree.end) for batch in self._batches(tree.rows, tree.end)]
        return replace(tree, rows=[], branches=[*batches, *map(self._divided, tree.branches)])

    def _batches(self, rows: list[EncodedRow], start: int) -> list[list[EncodedRow]]:
        """Rows that are padded to one width, in equal parts where they are above the budget."""
        made = []
        for alike in self._by_length(rows):
            fitting = max(1, self.budget // self._counted(alike[-1], start))
            parts = -(-len(alike) // fitting)
            made += [alike[i * len(alike) // parts : (i + 1) * len(alike) // parts] for i in range(parts)]
        return made

    def _forest(self, rows: list[EncodedRow], depth: int) -> tuple[list[Tree], list[EncodedRow]]:
        """The trees of sorted rows that agree up to `depth`, and the rows that share nothing from there on.

        Tokens that k trees and rows begin with become a trunk where the k - 1 times that they would be computed again are
        more than `worth`; else each of the k keeps them.
        """
        if len(rows) < 2:
            return [], rows
        end = common(rows, depth)
        branches: list[Tree] = []
        alone: list[EncodedRow] = []
        for group in _groups(rows, end):
            grown, left = self._forest(group, end)
            branches += grown
            alone += left
        ids = rows[0].ids[depth:end]
        if (len(branches) + len(alone) - 1) * len(ids) > self.worth:
            return [Tree(ids, alone, branches, depth)], []
        for branch in branches:
            branch.ids, branch.depth = ids + branch.ids, depth
        return branches, alone

    def _by_length(self, rows: list[EncodedRow]) -> list[list[EncodedRow]]:
        """Rows that are padded to one width: divided where the padding that it saves is worth another call."""
        if not rows:
            return []
        ordered = sorted(rows, key=len)
        longest = len(ordered[-1])
        saved, cut = max(((i + 1) * (longest - len(row)), i + 1) for i, row in enumerate(ordered))
        if saved <= self.worth:
            return [ordered]
        return [*self._by_length(ordered[:cut]), ordered[cut:]]


def _groups(rows: list[EncodedRow], depth: int) -> list[list[EncodedRow]]:
    """Sorted rows by the token at `depth`; a row whose shareable part ends there stands alone."""
    groups: list[list[EncodedRow]] = []
    for row in rows:
        same = groups and _shareable(row) > depth and _shareable(groups[-1][0]) > depth
        if same and groups[-1][0].ids[depth] == row.ids[depth]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def common(rows: list[EncodedRow], start: int) -> int:
    """Where sorted rows stop agreeing, within the part of each that can be shared."""
    first, last = rows[0].ids, rows[-1].ids
    low, high = start, min(_shareable(row) for row in rows)
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == last[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _shareable(row: EncodedRow) -> int:
    """Tokens at the start of a row whose successors are not learned."""
    return max(0, row.prompt_length - 1)
