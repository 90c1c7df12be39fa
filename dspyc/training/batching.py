"""Which rows a step learns from, and how rows become one rectangle of numbers."""

import random
from collections.abc import Iterator, Sequence

import torch

from .config import TrainingConfig
from .rows import EncodedRow

_POOL = 50  # steps' worth of rows that are sorted by length together: little padding, still shuffled


class Steps:
    """A batch sampler: the rows of every optimizer step of an epoch, in an order that (seed, epoch) alone decides.

    A step holds `rows` rows of like length, the odd ones of an epoch forming its last, smaller step; or, where `tokens` is
    given, as many rows as have about that many tokens. An epoch has as many steps as the others.
    """

    def __init__(
        self, lengths: Sequence[int], *, rows: int | None = None, tokens: int | None = None, seed: int = 0
    ) -> None:
        self.lengths, self.rows, self.tokens, self.seed = lengths, rows, tokens, seed
        self.epoch = 0

    @classmethod
    def of(cls, rows: Sequence[EncodedRow], config: TrainingConfig) -> "Steps":
        """The steps that training on these rows has."""
        lengths = [len(row) for row in rows]
        return cls(lengths, rows=config.rows_a_step, tokens=config.tokens_a_step, seed=config.seed)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.rows is not None:
            return -(-len(self.lengths) // self.rows)
        return min(len(self.lengths), -(-sum(self.lengths) // (self.tokens or 1)))

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.lengths)))
        rng = random.Random(f"rows {self.seed} {self.epoch}")
        rng.shuffle(order)
        yield from self._by_tokens(order) if self.rows is None else self._by_rows(order, self.rows, rng)

    def _by_rows(self, order: list[int], size: int, rng: random.Random) -> list[list[int]]:
        whole = len(order) - len(order) % size
        steps = []
        for start in range(0, whole, size * _POOL):
            pool = sorted(order[start : min(start + size * _POOL, whole)], key=self._length)
            steps += [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(steps)
        return [*steps, order[whole:]] if order[whole:] else steps

    def _by_tokens(self, order: list[int]) -> list[list[int]]:
        """Cuts where equal shares of all tokens end, with at least one row in each."""
        steps: list[list[int]] = [[]]
        total, count, seen = sum(self.lengths), len(self), 0
        for place, index in enumerate(order):
            due = seen * count >= len(steps) * total or len(order) - place == count - len(steps)
            if steps[-1] and due and len(steps) < count:
                steps.append([])
            steps[-1].append(index)
            seen += self.lengths[index]
        return steps

    def _length(self, index: int) -> int:
        return self.lengths[index]


def rectangle(
    rows: Sequence[EncodedRow], start: int, pad_id: int, prompt_weight: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, weights) of what `rows` hold from `start` on, each (batch, time), padded on the right.

    `weights[b, t]` is the weight in the loss of predicting `ids[b, t]`: 1 in the reply, `prompt_weight` in the prompt, 0 for
    padding and for the first token, which nothing predicts.
    """
    width = max(len(row) for row in rows) - start
    ids, weights = [], []
    for row in rows:
        padding = width - (len(row) - start)
        own = [prompt_weight] * row.prompt_length + [1.0] * (len(row) - row.prompt_length)
        own[0] = 0.0
        ids.append(row.ids[start:] + [pad_id] * padding)
        weights.append(own[start:] + [0.0] * padding)
    return torch.tensor(ids, device=device), torch.tensor(weights, device=device)


def weight_of(row: EncodedRow, prompt_weight: float) -> float:
    """The sum of a row's weights."""
    learned = len(row) - max(1, row.prompt_length)
    return learned + prompt_weight * max(0, row.prompt_length - 1)
