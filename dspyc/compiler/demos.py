"""Demos: the examples that stand in a predictor's prompt."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import numpy as np
from dspy.utils.hasher import Hasher

from ..errors import ConfigError
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


def labelled(
    predictor: dspy.Predict,
    examples: Sequence[dspy.Example],
    number: int,
    rng: random.Random,
    *,
    diverse: bool = False,
    beside: Sequence[dspy.Example] = (),
) -> list[dspy.Example]:
    """`number` examples as demos of `predictor`: drawn, or with `diverse` as unlike each other as can be.

    Diverse is farthest first (Gonzalez, 1985) by the cosine of tf-idf vectors of the predictor's inputs: each next example
    is the one whose likest among those chosen, and among the demos `beside` them, is least like it. Examples without a
    word in them are drawn.

    Raises:
        ConfigError: scikit-learn, which `diverse` needs, is not installed.
    """
    if not diverse or number in (0, len(examples)):
        return [example.copy() for example in rng.sample(list(examples), number)]
    vectors = _vectors([_text(predictor, demo) for demo in [*examples, *beside]])
    if vectors is None:
        return labelled(predictor, examples, number, rng)
    likeness = np.full(len(examples), -1.0)
    chosen = [] if beside else [rng.randrange(len(examples))]
    for at in [*chosen, *range(len(examples), len(examples) + len(beside))]:
        likeness = np.maximum(likeness, _likeness(vectors, at, len(examples)))
    while len(chosen) < number:
        likeness[chosen] = np.inf
        chosen.append(int(likeness.argmin()))
        likeness = np.maximum(likeness, _likeness(vectors, chosen[-1], len(examples)))
    return [examples[at].copy() for at in chosen]


def _text(predictor: dspy.Predict, demo: dspy.Example) -> str:
    """What the predictor would be asked; of an example of the whole program that lacks its inputs, all there is."""
    asked = [str(demo[name]) for name in predictor.signature.input_fields if name in demo]
    return "\n".join(asked or map(str, demo.values()))


def _vectors(texts: list[str]) -> Any:
    """Sparse tf-idf rows of length 1, or None where there is no word in any text."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ConfigError(
            "`diverse=True` compares examples by scikit-learn's tf-idf, which is not installed.",
            hint='pip install "dspyc[search]"',
        ) from error
    try:
        return TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(texts)
    except ValueError:  # an empty vocabulary
        return None


def _likeness(vectors: Any, at: int, number: int) -> Any:
    return (vectors[:number] @ vectors[at].T).toarray().ravel()


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
