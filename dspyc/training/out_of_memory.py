"""Computing what fits: where memory runs out less is computed at once, and a step stays what it was."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ..errors import TrainingError
from ..models.memory import is_out_of_memory
from .loss import Learner
from .precision import lighter_base
from .sharing import Planner, Tree

Found = TypeVar("Found")


def in_smaller_parts(
    learner: Learner,
    planner: Planner,
    plan: Callable[[Planner], list[Tree]],
    compute: Callable[[list[Tree]], Found],
    step: int,
) -> tuple[Found, Planner]:
    """What `compute` makes of the planned trees, and the planner: one with a smaller budget, where memory ran out.

    Args:
        step: The optimizer step that an error names.

    Raises:
        TrainingError: Nothing can be divided further, or other processes wait for this one.
    """
    while True:
        trees = plan(planner)
        try:
            return compute(trees), planner
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            planner = _smaller(learner, planner, plan, step, error)
        learner.zero_grad()  # what it came to before memory ran out
        torch.cuda.empty_cache()


def others_wait(when: str, budget: int) -> TrainingError:
    """What ends a run whose model is divided: one process alone cannot compute a step in smaller parts."""
    return TrainingError(
        f"Out of memory {when}, and the other processes wait for this one.",
        hint=f"Train again in a new output_dir with micro_batch_tokens below {budget}.",
    )


def _smaller(
    learner: Learner, planner: Planner, plan: Callable[[Planner], list[Tree]], step: int, error: BaseException
) -> Planner:
    """With half of what the largest call took, or half of that, until the plan is another."""
    if learner.divided:
        raise others_wait(f"at step {step}", planner.budget) from error
    trees = plan(planner)
    passes = _passes(trees)
    smaller = replace(planner, budget=min(planner.budget, planner.largest(trees)))
    while _passes(plan(smaller)) == passes:
        smaller = replace(smaller, budget=smaller.budget // 2)
        if smaller.budget < 1:
            raise TrainingError(
                f"The device ran out of memory at step {step}, where a single row, or a prompt that rows share, is "
                f"computed at once ({max(passes):,} tokens).",
                hint="Set gradient_checkpointing=True or a smaller max_length, or use method='lora' or 'qlora'."
                + lighter_base(_frozen_dtypes(learner.model), learner.device),
            ) from error
    return smaller


def _frozen_dtypes(model: Any) -> set[torch.dtype]:
    """What the base under an adapter is held in; nothing where there is no adapter."""
    return {p.dtype for p in model.parameters() if not p.requires_grad} if hasattr(model, "peft_config") else set()


def _passes(trees: list[Tree]) -> list[int]:
    """Tokens of every call of the model."""
    return [n for tree in trees for n in tree.passes()]
