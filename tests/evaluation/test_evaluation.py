"""Scores and intervals."""

import math

import dspy
import numpy as np
import pytest

from dspyc.errors import ConfigError
from dspyc.evaluation import as_score, call_metric, mean, metric_fingerprint, paired_interval


@pytest.mark.parametrize(
    ("value", "score"),
    [
        *[(True, 1.0), (False, 0.0), (0.25, 0.25), (3, 3.0), (dspy.Prediction(score=0.5), 0.5)],
        *[(np.True_, 1.0), (np.float32(0.5), 0.5), (np.int64(2), 2.0), (np.array(0.5), 0.5)],
    ],
)
def test_a_score_is_a_float(value: object, score: float) -> None:
    assert as_score(value) == score


BAD_SCORES = [
    *[None, math.nan, math.inf, "good", "0.5", dspy.Prediction(answer="x"), 10**400],
    *[np.float64("nan"), np.array([0.5, 1.0]), [0.5]],
]


@pytest.mark.parametrize("value", BAD_SCORES, ids=str)
def test_what_is_no_score_is_an_error_that_names_the_metric(value: object) -> None:
    def exactness(example: object, prediction: object) -> object:
        return value

    with pytest.raises(ConfigError, match="exactness"):
        call_metric(exactness, dspy.Example(), dspy.Prediction(), [])


def test_a_metric_gets_the_trace_if_it_takes_one() -> None:
    trace = [("predictor", {}, None)]
    assert call_metric(lambda e, p, t=None: len(t), None, None, trace) == 1.0  # type: ignore[arg-type]
    assert call_metric(lambda e, p: 1, None, None, trace) == 1.0  # type: ignore[arg-type]


def test_metric_fingerprint_changes_with_the_source() -> None:
    first = metric_fingerprint(lambda e, p: 1)
    second = metric_fingerprint(lambda e, p: 2)
    assert first != second


def test_interval_of_a_constant_difference_is_that_difference() -> None:
    assert paired_interval([0.0] * 20, [0.5] * 20) == (0.5, 0.5)


def test_interval_agrees_with_the_normal_approximation() -> None:
    before = [0.0] * 400
    after = [1.0] * 240 + [-1.0] * 160  # mean 0.2, standard deviation sqrt(0.96)
    low, high = paired_interval(before, after, seed=3)
    margin = 1.96 * math.sqrt(0.96 / 400)
    assert low == pytest.approx(0.2 - margin, abs=0.012)
    assert high == pytest.approx(0.2 + margin, abs=0.012)
    assert paired_interval(before, after, seed=3) == (low, high)


@pytest.mark.parametrize("sign", [1, -1])
def test_few_pairs_that_differ_prove_nothing(sign: int) -> None:
    """A test by signs, the strongest of paired randomisation tests, rejects at 5 % from six on."""
    for differ in range(9):
        low, high = paired_interval([0.0] * 10, [float(sign)] * differ + [1e-12] * (10 - differ))
        assert (low > 0 or high < 0) == (differ > 5 and 2 * 0.5**differ <= 0.05)
    assert paired_interval([0.0] * 5, [0.5 * sign] * 5) == ((0.0, 0.5) if sign > 0 else (-0.5, 0.0))


def test_interval_needs_pairs() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_interval([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="0 and 0"):
        paired_interval([], [])


def test_mean_of_nothing_is_zero() -> None:
    assert mean([]) == 0.0
