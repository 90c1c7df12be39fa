"""What a run will need, which its largest batch tells before it begins."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from . import shards
from .checkpoint import RandomState
from .loss import Learner
from .sharing import Tree

_ADAM = 2  # moments of a trained number, in float32


@dataclass(frozen=True)
class Forecast:
    """What a run is expected to need, from one pass over its largest batch."""

    tokens: int  # of an epoch's rows
    computed_tokens: int  # of an epoch, padding included: prompts that rows share count once
    seconds: float  # of the whole run, without evaluations
    memory: int  # bytes: weights, gradients, the optimizer's moments and the largest batch's activations

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        shared = 1 - self.computed_tokens / self.tokens
        saved = f"Shared prompts save {shared:.0%} of the tokens. " if shared >= 0.005 else ""
        return f"{saved}About {_duration(self.seconds)} and {self.memory / 1e9:.1f} GB."


def forecast(learner: Learner, epoch: list[Tree], sample: Tree, epochs: float, precision: Any) -> Forecast:
    """Time and memory of `epochs` passes over the trees of one, measured on a sample.

    Args:
        epoch: All trees of one epoch.
        sample: Their largest batch.
        precision: Makes the autocast context that training runs in.
    """
    before = RandomState.capture()
    parameters = list(learner.parameters())
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        learner.train()
        _wait_for(learner.device)
        started = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            learner.learn(sample, lambda loss: loss, precision)
        _wait_for(learner.device)
        seconds = time.perf_counter() - started
    finally:
        learner.zero_grad(set_to_none=True)
        before.restore()
    trained = sum(shards.local(p).numel() for p in parameters if p.requires_grad)
    bytes_of_weights = sum(shards.local(p).numel() * p.element_size() for p in parameters)
    computed = sum(tree.tokens for tree in epoch)
    return Forecast(
        tokens=sum(len(row) for tree in epoch for row in tree.all_rows()),
        computed_tokens=computed,
        seconds=round(seconds * computed / sample.tokens * epochs, 1),
        memory=bytes_of_weights + 4 * trained * (1 + _ADAM) + sum(held.values()),
    )


def largest_batch(trees: list[Tree]) -> Tree:
    """The batch of rows of some trees that computes most, behind its trunks: what is held at a time."""
    tree = max(trees, key=lambda tree: max(tree.passes()))
    if tree.rows or not tree.branches:
        return replace(tree, branches=[])
    return replace(tree, branches=[largest_batch(tree.branches)])


def _wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was told: it is told ahead of time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
