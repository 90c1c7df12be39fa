"""What to say when a teacher has no good run: three of them, and what to try."""

from collections.abc import Sequence

import dspy

from ..compiler.attempts import Attempt
from ..compiler.trace import Trace
from ..errors import BootstrapError
from ..signatures.values import cut, short

_SHOWN = 300  # characters of a value or an error


def no_good_run(attempts: list[Attempt], trainset: Sequence[dspy.Example], threshold: float | None) -> BootstrapError:
    """The error that ends a bootstrap none of whose attempts at `trainset` was good."""
    shown = "\n".join(f"  {_failure(attempt.runs[-1], trainset[attempt.index])}" for attempt in attempts[:3])
    bar = "above 0" if threshold is None else f"{threshold} or more"
    return BootstrapError(
        f"No run of the teacher on {len(attempts)} examples was good, which is a score of {bar}. Among them:\n{shown}\n",
        hint="Look at these with the metric in mind: mend the metric or the examples' labels, lower `metric_threshold`, "
        "raise `max_rounds`, or pass a stronger teacher: teacher_settings={'lm': dspy.LM(...)}.",
    )


def _failure(run: Trace, example: dspy.Example) -> str:
    asked = short(dict(example.inputs().items()), _SHOWN)
    if run.error is not None:
        return f"{asked}: {run.blame} raised {cut(run.error, _SHOWN)}"
    answered = dict(run.prediction.items()) if isinstance(run.prediction, dspy.Prediction) else run.prediction
    labels = short(dict(example.labels().items()), _SHOWN)
    return f"{asked}: scored {run.score:g} with {short(answered, _SHOWN)}, labels {labels}"
