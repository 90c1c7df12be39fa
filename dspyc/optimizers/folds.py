"""Which examples a search learns from, which it chooses by, and which it never sees before it is over."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import dspy

from ..compiler.examples import check_examples, others_than
from ..errors import DataError

logger = logging.getLogger(__name__)

VALIDATION_SHARE, FINAL_SHARE = 0.4, 0.2  # of training examples that are divided
FINAL_EXAMPLES = 100  # of a final score on training examples; more only where more have chosen


@dataclass(frozen=True)
class Folds:
    """`validation` chooses, and `final`, which may be empty, says what the choice is worth; their names say what they are."""

    train: list[dspy.Example]
    validation: list[dspy.Example]
    validation_name: str
    final: list[dspy.Example]
    final_name: str

    @cached_property
    def spare(self) -> list[dspy.Example]:
        """The training examples that do not choose: without a final fold, those that may say what the choice is worth."""
        return others_than(self.train, self.validation)

    @property
    def final_size(self) -> int:
        """The most of the spare ones that a final score is of, so that it costs little beside the choice."""
        return max(FINAL_EXAMPLES, len(self.validation))


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
    warn_of_shared("testset", final, "trainset", train)
    if valset is not None:
        given = check_examples(valset, "valset")
        warn_of_shared("valset", given, "trainset", train)
        warn_of_shared("testset", final, "valset", given)
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
    drawn = [train[i] for i in order[:aside]]
    validation = apart([train[i] for i in order[aside : aside + choosing]], drawn, "choose by")
    learned_from = [train[i] for i in sorted(order[aside + choosing :])]
    return Folds(
        apart(learned_from, [*drawn, *validation], "learn from"),
        validation,
        f"{len(validation)} examples of `trainset`, kept aside because there is no `valset`",
        final or drawn,
        final_name if final else f"{aside} examples of `trainset` that were kept aside",
    )


def apart(examples: list[dspy.Example], held_out: Sequence[dspy.Example], purpose: str) -> list[dspy.Example]:
    """The examples without those that equal a held-out one; the log says how many were left out, and for what `purpose`.

    Raises:
        DataError: None is left.
    """
    left = others_than(examples, held_out)
    if examples and not left:
        raise DataError(
            f"All {len(examples)} example(s) of `trainset` to {purpose} equal ones that are held out.",
            hint="Pass a `valset`, or more examples.",
        )
    if len(left) < len(examples):
        said = "%d of %d examples of `trainset` to %s are left out: they equal ones that are held out."
        logger.warning(said, len(examples) - len(left), len(examples), purpose)
    return left


def warn_of_shared(name: str, held_out: Sequence[dspy.Example], other: str, used: Sequence[dspy.Example]) -> None:
    """Say how many examples that were given to be held out are among those that are used."""
    shared = len(held_out) - len(others_than(held_out, used))
    if shared:
        said = "%d of %d examples of `%s` are in `%s` too: scores on them say less of examples not seen."
        logger.warning(said, shared, len(held_out), name, other)
