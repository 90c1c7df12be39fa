"""A metric is DSPy's: `metric(example, prediction, trace=None)`, answering with a bool, a number or a scored Prediction."""

import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import dspy

from ..errors import ConfigError
from ..signatures import fingerprint
from ..signatures.code import code_key

Metric = Callable[..., Any]


def call_metric(metric: Metric, example: dspy.Example, prediction: Any, trace: list[Any] | None) -> float:
    """The metric's score of one run; it is given the run's DSPy trace, or None, when it takes a third argument.

    Raises:
        ConfigError: The metric answered with something that is no score.
    """
    if _takes_trace(metric):
        return as_score(metric(example, prediction, trace), metric)
    return as_score(metric(example, prediction), metric)


def as_score(value: Any, metric: Metric | None = None) -> float:
    """One finite float; higher is better. True is 1.0, and a Prediction counts by its `score`.

    Raises:
        ConfigError: `value` is None, NaN, infinite or not a number.
    """
    name = getattr(metric, "__name__", "the metric") if metric else "the metric"
    if isinstance(value, dspy.Prediction):
        value = value.get("score")
    number: float | None = None
    if isinstance(value, (bool, int, float)) or hasattr(value, "__float__"):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):  # an array of several numbers, say
            number = None
    if number is None or not math.isfinite(number):
        raise ConfigError(
            f"Metric `{name}` answered {value!r}; a score is a bool, a finite number or a dspy.Prediction with `score`.",
            hint="Return a value on every path of the metric, and 0 where there is nothing to compare.",
        )
    return number


def check_metric(metric: Any, name: str = "`metric`") -> None:
    """Raises ConfigError unless `metric` can be called; `name` says in the message what it was given as."""
    if not callable(metric):
        raise ConfigError(f"{name} is a {type(metric).__name__}; a function of (example, prediction) is allowed.")


def metric_fingerprint(metric: Metric | None) -> str:
    """Names what the metric does, as far as `signatures.code` can see."""
    return "none" if metric is None else fingerprint(code_key(metric))


def _takes_trace(metric: Metric) -> bool:
    try:
        return _has_third_argument(metric)
    except TypeError:  # a callable without a hash, which cannot be remembered
        return _has_third_argument.__wrapped__(metric)


@lru_cache(maxsize=64)
def _has_third_argument(metric: Metric) -> bool:
    try:
        parameters = list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 3 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
