"""Which examples a search learns from, which it chooses by, and which it never sees before it is over."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from ..compiler.examples import check_examples
from ..errors import DataError

VALIDATION_SHARE, FINAL_SHARE = 0.4, 0.2  # of training examples that are divided


@dataclass(frozen=True)
class Folds:
    """`validation` chooses, and `final`, which may be empty, says what the choice is worth; their names say what they are."""

    train: list[dspy.Example]
    validation: list[dspy.Example]
    validation_name: str
    final: list[dspy.Example]
    final_name: str


def divide(
    train: list[dspy.Example],
    valset: Sequence[dspy.Example] | None,
    testset: Sequence[dspy.Example] | None,
    *,
    seed: int,
) -> Folds:
    """Folds of what was given; without a `valset`, `train` is divided at random, for a final fold too if there is no `testset`.

    Raises:
        DataError: There are too few examples, or what arrived is no list of them.
    """
    final = check_examples(testset, "testset") if testset is not None else []
    final_name = f"{len(final)} examples of `testset`"
    if valset is not None:
        given = check_examples(valset, "valset")
        return Folds(train, given, f"{len(given)} examples of `valset`", final, final_name)
    aside = 0 if final else max(1, round(FINAL_SHARE * len(train)))
    choosing = max(1, round(VALIDATION_SHARE * len(train)))
    if len(train) <= aside + choosing:
        raise DataError(
            f"`trainset` has {len(train)} example(s) and there is no `valset`: none would be left to learn from.",
            hint="Pass a `valset`, or more examples.",
        )
    order = list(range(len(train)))
    random.Random(f"folds {seed}").shuffle(order)
    return Folds(
        [train[i] for i in sorted(order[aside + choosing :])],
        [train[i] for i in order[aside : aside + choosing]],
        f"{choosing} examples of `trainset`, kept aside because there is no `valset`",
        final or [train[i] for i in order[:aside]],
        final_name if final else f"{aside} examples of `trainset` that were kept aside",
    )
