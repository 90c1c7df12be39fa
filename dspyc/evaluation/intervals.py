"""How sure a difference of means is: the paired bootstrap (Efron & Tibshirani, 1993, ch. 13; Koehn, 2004, for NLP)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Difference = Literal["better", "worse", "no clear difference"]

RESAMPLES = 10_000


def mean(scores: Sequence[float]) -> float:
    """The arithmetic mean; 0.0 of nothing."""
    return float(np.mean(scores)) if len(scores) else 0.0


def paired_interval(
    before: Sequence[float], after: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `mean(after) - mean(before)`, both scored on the same examples in the same order.

    Raises:
        ValueError: The two differ in length, or there is nothing to compare.
    """
    if len(before) != len(after) or not len(before):
        raise ValueError(f"A paired interval needs two equally long lists, got {len(before)} and {len(after)} scores.")
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    rows = max(1, 2_000_000 // len(differences))  # bounds memory to 16 MB of indices
    for start in range(0, RESAMPLES, rows):
        picked = rng.integers(0, len(differences), size=(min(rows, RESAMPLES - start), len(differences)))
        means[start : start + len(picked)] = differences[picked].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def difference_of(interval: tuple[float, float]) -> Difference:
    """What the interval of a difference says of what came after."""
    low, high = interval
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no clear difference"
