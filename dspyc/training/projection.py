"""The loss of hidden states under the output projection, so many positions at a time, whose logits are held only meanwhile."""

from collections.abc import Callable
from typing import Any, cast

import torch

_LOGITS = {"cuda": 1 << 27}  # numbers that are held at once: 512 MiB of float32
_LOGITS_ELSEWHERE = 1 << 21
_POSITIONS = 256

LossOfLogits = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def positions(vocabulary: int, width: int, device: torch.device) -> int:
    """How many positions are projected at a time.

    Every chunk reads the whole head, forward and backward. So however large the vocabulary, a chunk has as many positions as
    make logits of half the head's size, up to 256: more take memory and hardly any time off.
    """
    fitting = _LOGITS.get(device.type, _LOGITS_ELSEWHERE) // vocabulary
    return max(1, fitting, min(_POSITIONS, width // 2))


def loss_in_chunks(
    loss: LossOfLogits,
    head: torch.nn.Module,
    size: int,
    states: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The sum of `loss(logits, targets, weights)` over chunks of `size` positions, whose logits are `head(states)`."""
    trained = [p for p in head.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    return cast(torch.Tensor, cast(Any, _InChunks).apply(loss, head, size, states, targets, weights, *trained))


class _InChunks(torch.autograd.Function):
    """The gradients of a chunk are computed along with its loss, as in Liger Kernel (Hsu et al., 2024, arXiv 2410.10989)."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: LossOfLogits,
        head: torch.nn.Module,
        size: int,
        states: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros((), device=states.device)
        learned = any(ctx.needs_input_grad)
        of_states = torch.empty_like(states) if learned else None
        sums = [torch.zeros_like(p) for p in parameters]
        project: Callable[[torch.Tensor], torch.Tensor] = head
        asked = list(parameters)
        if parameters and _is_plain(head):
            project, asked = _adding_to(sums[0], parameters[0]), []
        for part in (slice(start, start + size) for start in range(0, len(targets), size)):
            with torch.set_grad_enabled(learned):
                chunk = states[part].detach().requires_grad_(learned)
                found = loss(project(chunk), targets[part], weights[part])
            total += found.detach()
            if of_states is not None:
                own, *rest = torch.autograd.grad(found, [chunk, *asked])
                of_states[part] = own
                for held, more in zip(sums, rest, strict=False):
                    held += more
        ctx.gradients = [of_states, *sums]
        return total

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None  # good once: scaled where they are, for copies would be the peak
        of_states, *rest = (gradient.mul_(above) for gradient in gradients)
        return None, None, None, of_states, None, None, *rest


def _is_plain(head: torch.nn.Module) -> bool:
    """Whether a head is the product with its weight, and nobody listens to it."""
    return (
        type(head) is torch.nn.Linear and head.bias is None and not head._forward_hooks and not head._forward_pre_hooks
    )


def _adding_to(total: torch.Tensor, weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product with `weight`, whose backward pass adds the weight's gradient to `total`."""
    place = weight.device.type
    kind = torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else weight.dtype
    held = weight.detach().to(kind)
    return lambda states: cast(torch.Tensor, cast(Any, _Product).apply(states.to(kind), held, total))


class _Product(torch.autograd.Function):
    """A gradient of the weight's size for every chunk would be the peak, and most of the time."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(states, weight)
        ctx.total = total
        return states @ weight.t()

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        states, weight = ctx.saved_tensors
        if above.dtype == ctx.total.dtype:
            ctx.total.addmm_(above.t(), states)
        else:
            ctx.total += above.t() @ states
        return above @ weight, None, None
