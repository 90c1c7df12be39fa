"""Which rows are computed together, and how they become one rectangle of numbers."""

import random
from collections.abc import Iterator, Sequence

import torch

from .rows import EncodedRow

Batch = dict[str, torch.Tensor]
_POOL = 50  # steps' worth of rows that are sorted by length together: little padding, still shuffled


class LengthBuckets:
    """A batch sampler: rows of like length together, in an order that (seed, epoch) alone decides.

    Rows are first dealt to steps of `batch_size * accumulation` rows, so a step learns from the same rows however it is
    divided. The odd rows of an epoch form its last, smaller step.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, accumulation: int = 1, seed: int = 0) -> None:
        self.lengths, self.batch_size, self.accumulation, self.seed = lengths, batch_size, accumulation, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps():
            yield from (step[i : i + self.batch_size] for i in range(0, len(step), self.batch_size))

    def _steps(self) -> list[list[int]]:
        rng = random.Random(f"rows {self.seed} {self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        size = self.batch_size * self.accumulation
        whole = len(order) - len(order) % size
        steps = []
        for start in range(0, whole, size * _POOL):
            pool = sorted(order[start : min(start + size * _POOL, whole)], key=self._length)
            steps += [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(steps)
        rest = sorted(order[whole:], key=self._length)
        return [*steps, rest] if rest else steps

    def _length(self, index: int) -> int:
        return self.lengths[index]


def in_length_order(rows: Sequence[EncodedRow], batch_size: int) -> Iterator[list[EncodedRow]]:
    """Every row once, the longest first."""
    ordered = sorted(rows, key=len, reverse=True)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


class Collator:
    """Rows as `input_ids`, `attention_mask` and `weights`, each (batch, time), padded on the right.

    `weights[b, t]` is the weight in the loss of predicting `input_ids[b, t]`: 1 in the reply, `prompt_weight` in the
    prompt, 0 for padding and for the first token, which nothing predicts.
    """

    def __init__(self, pad_id: int, prompt_weight: float = 0.0) -> None:
        self.pad_id, self.prompt_weight = pad_id, prompt_weight

    def __call__(self, rows: Sequence[EncodedRow]) -> Batch:
        width = max(len(row) for row in rows)
        ids, mask, weights = [], [], []
        for row in rows:
            length, padding = len(row), width - len(row)
            ids.append(row.ids + [self.pad_id] * padding)
            mask.append([1] * length + [0] * padding)
            prompt = [0.0] + [self.prompt_weight] * (row.prompt_length - 1) if row.prompt_length else []
            reply = [1.0] * (length - row.prompt_length) if row.prompt_length else [0.0] + [1.0] * (length - 1)
            weights.append(prompt + reply + [0.0] * padding)
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "weights": torch.tensor(weights),
        }
