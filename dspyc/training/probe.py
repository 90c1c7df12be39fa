"""Whether sharing prompts is exact here, which a few rows tell before a run begins."""

from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import torch

from ..models.memory import is_out_of_memory
from . import shards
from .checkpoint import RandomState
from .loss import Learner
from .rows import EncodedRow
from .sharing import Planner, Tree, common

_LOW = 5e-2  # of 16 bits, and of weights in 4 or 8, which are integers to torch and multiplied in 16
_TOLERANCE = {torch.float32: 1e-3}  # relative, of loss and gradients

Gradients = tuple[float, dict[str, torch.Tensor]]  # the loss, and what it has by the name of each trained tensor


def why_not_shared(learner: Learner, rows: Sequence[EncodedRow], planner: Planner) -> str | None:
    """Why prompts cannot be shared in training this model, or None: its loss and gradients were compared on some rows.

    `learner` is left attending to prompts in place where that is exact here, and faster (it was measured on CPUs).

    Args:
        rows: All that will be trained or evaluated on: those that come first may share nothing, or less than a window.
    """
    in_place = learner.device.type == "cpu"
    samples = _telling(rows, planner.worth, in_place or _has_windows(learner))
    if not samples:
        return None  # there is nothing to share
    training, before = learner.training, RandomState.capture()
    learner.attend_in_place(False)
    learner.eval()  # dropout would draw other numbers on either path
    try:
        expected = [_gradients(learner, Planner(1, share=False)(sample)) for sample in samples]
        trees = [replace(planner, share=True, worth=0)(sample) for sample in samples]
        for way in (True, False) if in_place else (False,):
            why = _why_not(learner, trees, expected, way)
            if why is None:
                break
        return why
    finally:
        learner.zero_grad(set_to_none=True)
        learner.train(training)
        before.restore()


def _telling(rows: Sequence[EncodedRow], worth: int, windows: bool) -> list[list[EncodedRow]]:
    """The two rows with the longest prompt that is shared; for `windows` also the longest row, and one that is like it."""
    # In any order that keeps like beginnings together, the longest common one is that of two neighbours.
    ordered = sorted(rows, key=lambda row: array("I", row.ids[: row.prompt_length]).tobytes())
    shared = [common(list(pair), 0) for pair in pairwise(ordered)]
    if not shared or len(shared) * max(shared) <= worth:
        return []
    places = [shared.index(max(shared))]
    if windows:
        longest = max(range(len(ordered)), key=lambda i: len(ordered[i]))
        places.append(max((i for i in (longest - 1, longest) if 0 <= i < len(shared)), key=shared.__getitem__))
    return [ordered[place : place + 2] for place in dict.fromkeys(places)]


def _has_windows(learner: Learner) -> bool:
    return getattr(learner.config.get_text_config(), "sliding_window", None) is not None


def _why_not(learner: Learner, samples: list[list[Tree]], expected: list[Gradients], in_place: bool) -> str | None:
    try:
        learner.attend_in_place(in_place)
        differences = [
            _difference(plain, _gradients(learner, trees)) for plain, trees in zip(expected, samples, strict=True)
        ]
        if in_place:
            _gradients(learner.train(), samples[0])  # only here does a model ask for its dropout
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        shards.free_gathered(learner)
        return f"the model does not take a prompt computed before ({type(error).__name__}: {error})"
    finally:
        learner.eval()
    allowed = max(_TOLERANCE.get(p.dtype, _LOW) for p in learner.parameters())
    if max(differences) <= allowed:
        return None
    return f"loss or gradients differ by {max(differences):.1e} from those of whole rows, and {allowed:.0e} is allowed"


def _gradients(learner: Learner, trees: list[Tree]) -> Gradients:
    learner.zero_grad(set_to_none=True)
    total = 0.0
    for tree in trees:
        total += float(learner.learn(tree, lambda loss: loss, nullcontext))
    return total, {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def _difference(expected: Gradients, found: Gradients) -> float:
    """The larger of the relative differences of the losses and of all gradients taken as one vector."""
    if expected[1].keys() != found[1].keys():
        return float("inf")
    off = sum(
        float(shards.whole((found[1][name] - gradient).float().square().sum()))
        for name, gradient in expected[1].items()
    )
    size = sum(float(shards.whole(gradient.float().square().sum())) for gradient in expected[1].values())
    losses = abs(found[0] - expected[0]) / max(abs(expected[0]), 1e-12)
    return float(max(losses, (off / max(size, 1e-24)) ** 0.5))
