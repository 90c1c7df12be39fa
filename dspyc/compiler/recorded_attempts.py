"""Runs that were made before, as attempts: what a teacher was paid for once makes demos again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import dspy

from ..errors import DataError
from ..evaluation.metrics import Metric
from .attempts import Attempt
from .examples import contents_of
from .fitted_traces import current
from .trace import DSPyTrace, PredictorNames, Trace


def recorded_attempts(
    traces: Sequence[Trace],
    examples: Sequence[dspy.Example],
    predictors: Mapping[str, dspy.Predict],
    *,
    metric: Metric | None,
    good: Callable[[Trace], bool],
    wanted: int,
) -> list[Attempt]:
    """The attempts at `examples` that `traces` hold, in the examples' order, up to the one with which `wanted` are good.

    Runs are scored anew by `metric`; of several runs of one example the first good one counts.

    Raises:
        DataError: No trace is of one of the examples, or one gave a predictor what it does not take.
    """
    keys = contents_of(examples)
    known = set(keys)
    of_these = [trace for trace in traces if trace.example in known]
    if not of_these:
        raise DataError(
            f"None of the {len(traces)} traces is of an example of `trainset`.",
            hint="An example is known by its fields and inputs: pass the examples that the traces were made of.",
        )
    runs: dict[str, list[Trace]] = {}
    for trace in current(of_these, examples, predictors, metric):
        runs.setdefault(trace.example, []).append(_with_calls(trace, predictors))
    attempts: list[Attempt] = []
    found = 0
    for index, key in enumerate(keys):
        if found == wanted:
            break
        of_example = runs.pop(key, [])
        if of_example:
            chosen = next((run for run in of_example if good(run)), of_example[0])
            attempts.append(Attempt(index, [chosen], good(chosen)))
            found += attempts[-1].good
    return attempts


def _with_calls(trace: Trace, predictors: Mapping[str, dspy.Predict]) -> Trace:
    """With DSPy's own trace, which no file holds."""
    taken = DSPyTrace(PredictorNames(predictors))
    for step in trace.steps:
        if step.predictor in predictors and step.outputs is not None:
            taken.append((predictors[step.predictor], step.inputs, dspy.Prediction(**step.outputs)))
    return replace(trace, taken=taken)
