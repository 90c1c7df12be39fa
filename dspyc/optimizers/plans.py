"""What the prompt searches will ask for, before anything is spent."""

import random
from collections.abc import Sequence

import dspy

from ..compiler.plan import Plan, Stage, plan_stages
from ..compiler.race import FIRST_LOOK
from .folds import Folds
from .labeled_few_shot import blank_copy, with_labelled_demos


def bootstrap_stages(
    teacher: dspy.Module, train: Sequence[dspy.Example], wanted: Sequence[int], *, labels: int, rounds: int
) -> list[Stage]:
    """The runs of a teacher that is tried on `train` once for each of `wanted`, until so many of them are good.

    At least so many as are wanted, and at most all examples in all rounds. Where the teacher shows no labelled demos, its
    runs are the same for all, so each is made once.
    """
    program = _shown(teacher, train, labels)
    same = program is teacher
    needed = [min(number, len(train)) for number in wanted]
    searches = min(1, len(needed)) if same else len(needed)
    least = max(needed, default=0) if same else sum(needed)
    most = searches * len(train) * rounds if any(needed) else 0
    return plan_stages(program, "teacher", train, runs=most, least=least)


def search_stages(
    student: dspy.Module,
    teacher: dspy.Module,
    folds: Folds,
    numbers: Sequence[int],
    *,
    most: int,
    labels: int,
    rounds: int,
    race: bool,
    stops_early: bool,
) -> list[Stage]:
    """The parts of a search over the candidates of these numbers: their bootstraps, their comparison and the final score.

    At most, every candidate meets all of `folds.validation`; at least, in a race, each is there for the first comparison and
    the winner for all.
    """
    bootstrapped = [demos_wanted(number, most) for number in numbers if number >= -1]
    stages = bootstrap_stages(teacher, folds.train, bootstrapped, labels=labels, rounds=rounds)
    total = len(folds.validation)
    least = total * (1 if stops_early else len(numbers))
    if race:
        least = total + min(FIRST_LOOK, total) * (len(numbers) - 1)
    shown = _shown(student, folds.train, labels)
    candidate = blank_copy(student) if list(numbers) == [-3] else shown
    stages += plan_stages(candidate, "candidate", folds.validation, runs=len(numbers) * total, least=least)
    final = folds.final or (folds.spare[: folds.final_size] if race else [])  # less those that the winner has a part of
    if final:
        stages += plan_stages(candidate, "final", final, least=len(final) if folds.final else 0)
    return stages


def demos_wanted(number: int, most: int) -> int:
    """How many good runs a candidate looks for, by its number: shuffled ones draw, as DSPy's do."""
    return random.Random(number).randint(1, most) if number >= 0 else most


def sum_of(plans: Sequence[tuple[str, Plan | None]], judged: Sequence[Stage], threads: int) -> Plan:
    """The plan of steps by their names, and of what compares them."""
    stages = [
        Stage(**{**vars(stage), "role": f"{name}: {stage.role}"})
        for name, plan in plans
        if plan
        for stage in plan.stages
    ]
    return Plan([*stages, *judged], threads, [name for name, plan in plans if plan is None])


def _shown(program: dspy.Module, train: Sequence[dspy.Example], labels: int) -> dspy.Module:
    """With as many labelled demos as there may be: that some will not fit is for the compile to find, and to say."""
    return with_labelled_demos(program, train, labels, fit_context=False)
