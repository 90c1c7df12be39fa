"""Demos: the examples that stand in a predictor's prompt."""

import random
from collections.abc import Mapping
from typing import Any

import dspy
from dspy.utils.hasher import Hasher

from ..signatures import fingerprint
from ..signatures.fingerprints import stable
from .trace import Trace


def demos_of(run: Trace) -> dict[str, dspy.Example]:
    """What a good run shows of each predictor, by its name: one of its calls, as a demo.

    Of several calls it is the last or, as likely, one of those before it, drawn by their content as DSPy draws.
    """
    places: dict[str, list[int]] = {}
    for at, (name, _) in enumerate(run.taken.given):
        if name is not None:
            places.setdefault(name, []).append(at)
    return {name: _shown(run, calls) for name, calls in places.items()}


def _shown(run: Trace, calls: list[int]) -> dspy.Example:
    at = calls[-1]
    if len(calls) > 1:
        rng = random.Random(_content([_demo(run.taken[at][1], run.taken[at][2]) for at in calls]))
        at = rng.choice(calls[:-1]) if rng.random() < 0.5 else calls[-1]
    return _demo(run.taken.given[at][1], run.taken[at][2])


def _demo(inputs: Mapping[str, Any], outputs: Any) -> dspy.Example:
    return dspy.Example({"augmented": True, **inputs, **dict(outputs.items())})


def _content(demos: list[dspy.Example]) -> str:
    try:
        return str(Hasher.hash(tuple(demos)))
    except Exception:  # a value that cannot be pickled, for whatever reason of its own
        return fingerprint([stable(demo) for demo in demos])
