"""How sure a mean is, and a difference of means; quantiles of Student's t without SciPy. All intervals are at 95 %."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

Difference = Literal["better", "worse", "no clear difference"]

SAME = 1e-9  # scores that differ by less are equal: sums of floats depend on their order
RESAMPLES = 10_000
_FEWEST = 6  # pairs that differ: of fewer no test by their signs is below 5 %, for 2 * 0.5**5 is 6 %
_UPPER = 0.975  # the quantile at which an interval of 95 % ends


def mean(scores: Sequence[float]) -> float:
    """The arithmetic mean; 0.0 of nothing."""
    return float(np.mean(scores)) if len(scores) else 0.0


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """An interval of the mean that scores like these have on examples not seen.

    Of scores that are all 0 or 1, Wilson's (1927; Brown, Cai & DasGupta, 2001, recommend it), which knows that ten right of
    ten are not certainty; of others, Student's t.

    Raises:
        ValueError: There are no scores.
    """
    values = np.asarray(scores, dtype=float)
    if not len(values):
        raise ValueError("An interval of a mean needs at least one score.")
    center, n = float(values.mean()), len(values)
    if np.isin(values, (0.0, 1.0)).all():
        z = NormalDist().inv_cdf(_UPPER)
        middle = (center + z**2 / (2 * n)) / (1 + z**2 / n)
        reach = z / (1 + z**2 / n) * math.sqrt(center * (1 - center) / n + z**2 / (4 * n**2))
        return max(0.0, middle - reach), min(1.0, middle + reach)
    if n == 1:
        return -math.inf, math.inf
    reach = student_quantile(_UPPER, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return center - reach, center + reach


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t with `freedom` degrees of freedom, by Cornish and Fisher's expansion.

    Abramowitz & Stegun (1964), 26.7.5; within 1 % for 9 degrees and up at probabilities from 0.001 to 0.999.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def paired_interval(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of `mean(after) - mean(before)`, both scored on the same examples in the same order.

    By the paired bootstrap: Efron & Tibshirani, 1993, ch. 13; Koehn, 2004, for NLP. Where fewer than six pairs differ it is
    extended to 0: they might as well have differed the other way, and the bootstrap cannot know, which sees no other pairs.

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
    low, high = map(float, np.quantile(means, [1 - _UPPER, _UPPER]))
    if np.count_nonzero(np.abs(differences) > SAME) < _FEWEST:
        return min(low, 0.0), max(high, 0.0)
    return low, high


def difference_of(interval: tuple[float, float]) -> Difference:
    """What the interval of a difference says of what came after."""
    low, high = interval
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no clear difference"
