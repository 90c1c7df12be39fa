"""Which examples a search learns from, which it chooses by, and which it never sees before it is over."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import dspy

from ..compiler.bootstrap import check_examples
from ..errors import DataError

VALIDATION_SHARE, FINAL_SHARE = 0.4, 0.2  # of the examples that are divided


@dataclass(frozen=True)
class Folds:
    """`validation` chooses, and `final` says what the choice is worth; their names say what they are, or why they are empty.

    `places` are where the examples of each stand in the user's `valset`, which has `size` examples.
    """

    train: list[dspy.Example]
    validation: list[dspy.Example]
    validation_name: str
    final: list[dspy.Example]
    final_name: str
    size: int
    places: tuple[list[int], list[int]]


def divide(
    train: list[dspy.Example],
    valset: Sequence[dspy.Example] | None,
    testset: Sequence[dspy.Example] | None,
    *,
    keep_aside: bool,
    seed: int,
) -> Folds:
    """Without a `testset` a fold of `valset` is final, if `keep_aside`; without a `valset`, `trainset` is divided for both.

    Raises:
        DataError: There are too few examples, or what arrived is no list of them.
    """
    final = check_examples(testset, "testset") if testset is not None else []
    if valset is None:
        return _of_train(train, final, seed)
    given = check_examples(valset, "valset")
    aside = round(FINAL_SHARE * len(given)) if keep_aside and not final else 0
    kept, rest = _drawn(len(given), aside, seed)
    name = f"{aside} examples of `valset` that the search did not use"
    if not aside:
        name = f"{len(final)} examples of `testset`" if final else "none were kept aside; pass a `testset`"
    return Folds(
        train,
        [given[i] for i in rest],
        f"{len(rest)} of {len(given)} examples of `valset`" if aside else f"{len(given)} examples of `valset`",
        [given[i] for i in kept] or final,
        name,
        len(given),
        (rest, kept),
    )


def _of_train(train: list[dspy.Example], final: list[dspy.Example], seed: int) -> Folds:
    aside = 0 if final else max(1, round(FINAL_SHARE * len(train)))
    choosing = max(1, round(VALIDATION_SHARE * len(train)))
    if len(train) <= aside + choosing:
        raise DataError(
            f"`trainset` has {len(train)} example(s) and there is no `valset`: none would be left to learn from.",
            hint="Pass a `valset`, or more examples.",
        )
    kept, rest = _drawn(len(train), aside + choosing, seed)
    validation = [train[i] for i in kept[aside:]]
    name = f"{aside} examples of `trainset`, kept aside, that the search did not use"
    return Folds(
        [train[i] for i in rest],
        validation,
        f"{choosing} examples of `trainset`, kept aside because there is no `valset`",
        [train[i] for i in kept[:aside]] or final,
        name if aside else f"{len(final)} examples of `testset`",
        choosing,
        (list(range(choosing)), []),
    )


def _drawn(total: int, number: int, seed: int) -> tuple[list[int], list[int]]:
    """`number` places drawn at random, in the order drawn, and the others in their own."""
    order = list(range(total))
    random.Random(f"folds {seed}").shuffle(order)
    return order[:number], sorted(order[number:])
