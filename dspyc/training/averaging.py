"""A moving average of the weights, which a run with `ema_decay` evaluates and keeps in place of those of its last step.

Steps circle around what they aim at, and their mean lies nearer to it than any of them, the more so while the rate is high:
Polyak and Juditsky, 1992, doi 10.1137/0330046; for networks Izmailov et al., 2018, arXiv 1803.05407.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import shards
from .checkpoint import trained_tensors


class Average:
    """The exponential moving average of what training changes in `model`, in float32, beginning with its weights as they are.

    `decay` is the old average's share after a step. In the first steps it is (1 + step) / (10 + step), where that is less, so
    that what the run began with is soon forgotten.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = trained_tensors(model)  # the very memory that steps write to
        self.tensors = {name: tensor.float().clone() for name, tensor in self._weights.items()}

    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            held = shards.local(average)
            held.lerp_(shards.local(self._weights[name]).to(held.dtype), share)

    def put(self) -> None:
        """Make it the model's weights."""
        for name, tensor in self._weights.items():
            tensor.copy_(self.tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have it as the model's weights for a while."""
        own = {name: tensor.clone() for name, tensor in self._weights.items()}
        self.put()
        try:
            yield
        finally:
            for name, tensor in self._weights.items():
                tensor.copy_(own[name])
