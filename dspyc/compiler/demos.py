"""Demos: the examples that stand in a predictor's prompt."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
import numpy as np
from dspy.utils.hasher import Hasher

from ..signatures import fingerprint
from ..signatures.fingerprints import stable
from ..signatures.likeness import Likeness, input_text, likeness_to
from .trace import Trace

Compare = Callable[[Sequence[str]], Likeness]
_SPREAD = 8  # examples, for each demo wanted, that are put in order


def demos_of(run: Trace) -> dict[str, dspy.Example]:
    """What a good run shows of each predictor, by its name: one of its calls, as a demo.

    Of several calls it is the last or, as likely, one of those before it, drawn by their content as DSPy draws.
    """
    places: dict[str, list[int]] = {}
    for at, (name, _, _) in enumerate(run.taken.given):
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
    likeness: Compare = likeness_to,
) -> list[dspy.Example]:
    """`number` examples as demos of `predictor`: drawn, or with `diverse` as unlike each other, and those `beside`, as can be.

    `likeness` compares texts, here and in `spread`: Likenesses, where the same ones are compared again.

    Raises:
        ConfigError: scikit-learn, which `diverse` needs, is not installed.
    """
    if not diverse or number in (0, len(examples)):
        return [example.copy() for example in rng.sample(list(examples), number)]
    texts = [_text(predictor, demo) for demo in [*examples, *beside]]
    first = None if beside else rng.randrange(len(examples))
    chosen = _farthest(texts, number, first=first, candidates=len(examples), likeness=likeness)
    return [examples[at].copy() for at in chosen]


def spread(
    examples: Sequence[dspy.Example], wanted: int, *, first: int = 0, likeness: Compare = likeness_to
) -> list[dspy.Example]:
    """The examples in another order, in which the first of them are as unlike each other as can be, by their inputs.

    A teacher that is tried on them in this order gives `wanted` demos that are unlike each other, though some of its runs
    fail; examples far behind keep their order.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    texts = [" | ".join(map(str, example.inputs().values())) for example in examples]
    number = min(_SPREAD * wanted, len(examples))
    chosen = _farthest(texts, number, first=first, candidates=len(texts), likeness=likeness) if number else []
    return [examples[at] for at in [*chosen, *sorted(set(range(len(examples))) - set(chosen))]]


def _farthest(texts: Sequence[str], number: int, *, first: int | None, candidates: int, likeness: Compare) -> list[int]:
    """Indices of `number` of the first `candidates` texts, chosen farthest first (Gonzalez, 1985).

    By the cosine of tf-idf vectors, each next text is the one whose most similar chosen text is least similar. `first`, if
    given, is chosen first; the texts after the candidates count as chosen already.
    """
    like = likeness(texts)
    chosen = [] if first is None else [first]
    nearest_similarity = np.full(candidates, -1.0)
    for at in [*chosen, *range(candidates, len(texts))]:
        nearest_similarity = np.maximum(nearest_similarity, like(texts[at])[:candidates])
    while len(chosen) < number:
        nearest_similarity[chosen] = np.inf
        chosen.append(int(nearest_similarity.argmin()))
        nearest_similarity = np.maximum(nearest_similarity, like(texts[chosen[-1]])[:candidates])
    return chosen


def _text(predictor: dspy.Predict, demo: dspy.Example) -> str:
    """What the predictor would be asked; of an example of the whole program that lacks its inputs, all there is."""
    return input_text(predictor.signature, demo) or "\n".join(map(str, demo.values()))


def _shown(run: Trace, calls: list[int]) -> dspy.Example:
    at = calls[-1]
    if len(calls) > 1:
        rng = random.Random(_content([_demo(run.taken[at][1], run.taken[at][2]) for at in calls]))
        at = rng.choice(calls[:-1]) if rng.random() < 0.5 else calls[-1]
    _, inputs, outputs = run.taken.given[at]
    return _demo(inputs, outputs)


def _demo(inputs: Mapping[str, Any], outputs: Any) -> dspy.Example:
    return dspy.Example({"augmented": True, **inputs, **dict(outputs.items())})


def _content(demos: list[dspy.Example]) -> str:
    try:
        return str(Hasher.hash(tuple(demos)))
    except Exception:  # a value that cannot be pickled, for whatever reason of its own
        return fingerprint([stable(demo) for demo in demos])
