"""Replies written under a constraint: a small loop in the scheduler's place, with a model or by chance."""

from collections.abc import Callable
from typing import Any

import torch

from dspyc.models.constraints import Constraint

Choose = Callable[[list[int], torch.Tensor], int]  # the reply so far and the mask of what may follow


def write(constraint: Constraint, max_tokens: int, choose: Choose) -> list[int]:
    """The ids of a reply, without an end-of-turn token."""
    ids: list[int] = []
    while True:
        ids += constraint.forced()
        left = max_tokens - len(ids)
        assert left >= 0
        if constraint.finished or left == 0:
            return ids
        closing = constraint.closing(left)
        if closing is not None:
            assert len(closing) <= left
            return ids + closing
        mask = constraint.allowed()
        assert mask is not None
        assert mask.any()
        token = choose(ids, mask)
        constraint.accept(token)
        if constraint.finished:
            return ids
        ids.append(token)


def by_chance(seed: int) -> Choose:
    """Any allowed token, each as likely."""
    generator = torch.Generator().manual_seed(seed)

    def choose(ids: list[int], mask: torch.Tensor) -> int:
        allowed = mask.nonzero().flatten()
        return int(allowed[torch.randint(len(allowed), (1,), generator=generator)])

    return choose


def by_model(model: Any, prompt: list[int], temperature: float = 0.0, seed: int = 0) -> Choose:
    """What the model finds likeliest among the allowed, or, with a temperature, a draw from it."""
    generator = torch.Generator().manual_seed(seed)

    @torch.inference_mode()
    def choose(ids: list[int], mask: torch.Tensor) -> int:
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].float().masked_fill(~mask, -torch.inf)
        if not temperature:
            return int(logits.argmax())
        return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))

    return choose


def needed(constrain: Callable[[int], Constraint]) -> int:
    """The fewest tokens that a reply takes."""
    for tokens in range(1, 2000):
        try:
            constrain(tokens)
        except Exception:
            continue
        return tokens
    raise AssertionError("no reply of 2,000 tokens")
