"""Linear layers that are quick where a step has few rows, which is what a batch of replies asks of them.

A CPU's `x W^T` in float32 (MKL) gains nothing from sharing a read of the weights until there are dozens of rows. `W x^T` gives
the same numbers, up to their rounding, and took 0.4 to 0.9 of the time with 2 to 64 rows (docs/log.md has the figures).
"""

from typing import Any

import torch

_FEW = range(2, 65)  # rows


class FewRows(torch.nn.Linear):
    """A `torch.nn.Linear` that multiplies few rows from the other side."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., outputs) of (..., inputs)."""
        rows = input.numel() // self.in_features
        if rows not in _FEW:
            return super().forward(input)
        found = torch.mm(self.weight, input.reshape(rows, -1).t()).t()
        if self.bias is not None:
            found = found + self.bias
        return found.reshape(*input.shape[:-1], -1)


def use_few_rows(model: Any) -> None:
    """Make the linear layers of a model that was loaded for inference `FewRows`, where that pays."""
    for module in model.modules():
        if type(module) is not torch.nn.Linear:
            continue
        if module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.__class__ = FewRows
