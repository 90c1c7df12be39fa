"""The output projection in chunks: the loss and the gradients of all positions at once, in the memory of a few."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from dspyc.training.projection import loss_in_chunks, positions

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VOCABULARY, WIDTH, COUNT = 50, 16, 20


def loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


def sample() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, targets and weights."""
    torch.manual_seed(0)
    return torch.randn(COUNT, WIDTH, requires_grad=True), torch.randint(VOCABULARY, (COUNT,)), torch.rand(COUNT)


def listened_to(head: torch.nn.Linear) -> torch.nn.Linear:
    head.register_forward_hook(lambda _, __, logits: logits * 2)
    return head


class OfOneShape(TorchDispatchMode):
    """Counts the tensors of one shape that are made in memory of their own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {tensor.data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        if isinstance(made, torch.Tensor) and tuple(made.shape) in (self.shape, self.shape[::-1]):
            self.count += made.data_ptr() not in given
        return made


@pytest.mark.parametrize(
    "head",
    [
        torch.nn.Linear(WIDTH, VOCABULARY, bias=False),
        torch.nn.Linear(WIDTH, VOCABULARY),
        listened_to(torch.nn.Linear(WIDTH, VOCABULARY, bias=False)),
        torch.nn.Sequential(torch.nn.Linear(WIDTH, 4), torch.nn.Linear(4, VOCABULARY)),
        torch.nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(False),
    ],
    ids=["plain", "bias", "listened to", "two layers", "frozen"],
)
@pytest.mark.parametrize(("dtype", "allowed"), [(None, 1e-6), (torch.bfloat16, 1e-2)])
def test_loss_and_gradients_are_those_of_all_positions_at_once(
    head: torch.nn.Module, dtype: torch.dtype | None, allowed: float
) -> None:
    states, targets, weights = sample()
    trained = [states, *(p for p in head.parameters() if p.requires_grad)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        found = loss_in_chunks(loss, head, 3, states, targets, weights)
        expected = loss(head(states), targets, weights)
    torch.testing.assert_close(found, expected, rtol=allowed, atol=0.0)
    pairs = zip(torch.autograd.grad(found * 3, trained), torch.autograd.grad(expected * 3, trained), strict=True)
    for mine, other in pairs:
        assert mine.dtype == other.dtype
        assert (mine - other).norm() <= allowed * other.norm()


def test_the_heads_gradient_is_one_tensor() -> None:
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    with OfOneShape(VOCABULARY, WIDTH) as seen:
        loss_in_chunks(loss, head, 3, *sample()).backward()  # type: ignore[no-untyped-call]
    assert seen.count <= 1


def test_an_evaluation_makes_no_gradients() -> None:
    head, (states, targets, weights) = torch.nn.Linear(WIDTH, VOCABULARY), sample()
    with torch.no_grad(), OfOneShape(VOCABULARY, WIDTH) as seen:
        found = loss_in_chunks(loss, head, 3, states.detach(), targets, weights)
    assert seen.count == 0
    torch.testing.assert_close(found, loss(head(states), targets, weights))


@pytest.mark.parametrize(
    ("vocabulary", "width", "device", "expected"),
    [
        (16_384, 256, CPU, 128),
        (151_936, 1024, CPU, 256),
        (151_936, 64, CPU, 32),
        (10_000_000, 1, CPU, 1),
        (151_936, 1024, CUDA, 883),
        (1 << 20, 4096, CUDA, 256),
    ],
)
def test_a_chunk_is_worth_reading_the_head_for(
    vocabulary: int, width: int, device: torch.device, expected: int
) -> None:
    assert positions(vocabulary, width, device) == expected
