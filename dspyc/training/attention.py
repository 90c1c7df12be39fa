"""Attention of rows to one prompt before all of them, and to themselves, without a copy of that prompt for each.

A few rows are computed at a time, and their scores are computed again in the backward pass: what is held for it is what came
in. On a CPU that is faster than holding them, too: the scores of so few rows stay in its cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from ..models.cascade import refuse_more

NAME = "dspyc_prompt"  # among transformers' attention implementations

SCORES = 1 << 20  # that are computed at once


class PromptLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a prompt, one row of them, and of what follows it in any number of rows; a layer's share.

    `keys` and `values` are the prompt's alone while rows run behind it, and grow where a single row continues it.
    """

    def __init__(self, before: tuple[torch.Tensor, torch.Tensor] | None, continued: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before, self.continued = before, continued
        if before is not None:
            self.lazy_initialization(*before)
            self.keys, self.values = before

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new keys and values, (batch, heads, time, size), alone: `attend` finds those before them itself."""
        if self.continued:
            new = (key_states, value_states)
            if self.before is not None:
                new = (torch.cat([self.before[0], new[0]], 2), torch.cat([self.before[1], new[1]], 2))
            self.keys, self.values = new
            self.is_initialized = True
        return key_states, value_states


def prompt_cache(before: DynamicCache | None, layers: int, *, continued: bool) -> DynamicCache:
    """A cache for rows behind what `before` holds; with `continued` it takes them up, and becomes the prompt of others."""
    cache = DynamicCache()
    held = [(layer.keys, layer.values) for layer in cast(list[Any], before.layers)] if before is not None else []
    cache.layers.extend(PromptLayer(held[i] if held else None, continued) for i in range(layers))
    return cache


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prompt: DynamicCache | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of (batch, heads, time, size) queries; (batch, time, heads, size).

    Raises:
        NotImplementedError: The model asks for what this does not do: masks, sinks, soft caps, short windows, dropout.
    """
    before = cast(Any, prompt).layers[module.layer_idx].before if prompt is not None else None
    length = key.shape[2] + (before[0].shape[2] if before is not None else 0)
    window = others.pop("sliding_window", None)
    refuse_more(window is not None and length > window, attention_mask, dropout, others)
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    given = (query, key, value, *(before or ()))
    with torch.autocast(kind, enabled=False):
        found = cast(Any, Attention).apply(scaling, SCORES, *(tensor.to(dtype) for tensor in given))
    return cast(torch.Tensor, found).transpose(1, 2), None


AttentionInterface.register(NAME, attend)


class Attention(torch.autograd.Function):
    """Queries (batch, heads, time, size); keys and values (batch, fewer heads, time, size); those before them, of one row."""

    @staticmethod
    def forward(
        ctx: Any,
        scale: float | None,
        scores: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *before: torch.Tensor,
    ) -> torch.Tensor:
        ctx.scale = query.shape[-1] ** -0.5 if scale is None else scale
        ctx.scores = scores
        ctx.save_for_backward(query, key, value, *before)
        found = query.new_empty(*query.shape[:3], value.shape[-1])
        parts, scaled = _parts(query, key, before, scores), query * ctx.scale
        behind = _Behind(key, before[:1], parts), _Behind(value, before[1:], parts)
        for part in parts:
            keys, values = (each.seen_by(part) for each in behind)
            part.put(found, torch.matmul(part.weights(part.of(scaled), keys), values))
        return found

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        query, key, value, *before = ctx.saved_tensors
        of_query = torch.empty_like(query)
        sums = torch.promote_types(query.dtype, torch.float32)
        of_own = [torch.zeros_like(tensor, dtype=sums) for tensor in (key, value)]
        of_before = [torch.zeros_like(tensor, dtype=sums) for tensor in before]
        parts, scaled = _parts(query, key, before, ctx.scores), query * ctx.scale
        behind = _Behind(key, before[:1], parts), _Behind(value, before[1:], parts)
        for part in parts:
            keys, values = (each.seen_by(part) for each in behind)
            queries, above = part.of(scaled), part.of(gradient)
            weights = part.weights(queries, keys)
            of_weights = torch.matmul(above, values.transpose(-1, -2))
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            part.put(of_query, torch.matmul(of_scores, keys))
            part.add(torch.matmul(of_scores.transpose(-1, -2), queries), of_own[0], of_before[:1])
            part.add(torch.matmul(weights.transpose(-1, -2), above), of_own[1], of_before[1:])
        of_query *= ctx.scale
        return None, None, of_query, *(tensor.to(query.dtype) for tensor in (*of_own, *of_before))


@dataclass(frozen=True)
class _Part:
    """Some queries of some rows, (rows, heads of keys, queries, size): those that share a head stand behind each other."""

    rows: slice
    times: slice
    heads: int  # of keys

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of something with the queries' (batch, heads, time, size)."""
        found = tensor[self.rows, :, self.times]
        return found.reshape(len(found), self.heads, -1, found.shape[-1])

    def put(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        place = whole[self.rows, :, self.times]
        place.copy_(part.view(place.shape))

    def add(self, gradient: torch.Tensor, own: torch.Tensor, before: Sequence[torch.Tensor]) -> None:
        """To the gradients of the rows' own keys (or values), and of those before them."""
        start = gradient.shape[2] - self.times.stop
        own[self.rows, :, : self.times.stop] += gradient[:, :, start:]
        for tensor in before:
            shared = gradient[:, :, :start]
            tensor += shared if len(shared) == 1 else shared.sum(0)

    def weights(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """What each query takes of each value: none of those that come after it."""
        time = self.times.stop - self.times.start
        scores = torch.matmul(queries, keys.transpose(-1, -2))
        latest = scores[..., -time:]
        latest.view(*scores.shape[:2], -1, time, time).add_(_later(time, scores.dtype, scores.device))
        return scores.softmax(-1)


class _Behind:
    """The keys (or values) that parts see: those before the rows, written once, and behind them the rows' own."""

    def __init__(self, own: torch.Tensor, before: Sequence[torch.Tensor], parts: Sequence[_Part]) -> None:
        self._own, self._start = own, 0
        self._all: torch.Tensor | None = None
        for tensor in before:
            rows, self._start = parts[0].rows.stop, tensor.shape[2]
            self._all = own.new_empty(rows, own.shape[1], self._start + own.shape[2], own.shape[3])
            self._all[:, :, : self._start] = tensor

    def seen_by(self, part: _Part) -> torch.Tensor:
        """(rows, heads, time, size), good until the next part's are asked for."""
        own = self._own[part.rows, :, : part.times.stop]
        if self._all is None:
            return own
        found = self._all[: len(own), :, : self._start + part.times.stop]
        found[:, :, self._start :] = own
        return found


@lru_cache(maxsize=16)
def _later(time: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(time, time) to add to scores: minus infinity where the key comes after the query."""
    return torch.full((time, time), -torch.inf, dtype=dtype, device=device).triu(1)


def _parts(query: torch.Tensor, key: torch.Tensor, before: Sequence[torch.Tensor], scores: int) -> list[_Part]:
    """Parts of at most so many scores: several rows, or some queries of one."""
    rows, heads, time = query.shape[:3]
    of_one = heads * (time + (before[0].shape[2] if before else 0))  # scores of one query
    some, steps = max(1, scores // (of_one * time)), max(1, min(time, scores // of_one))
    return [
        _Part(slice(row, min(rows, row + some)), slice(start, min(time, start + steps)), key.shape[1])
        for row in range(0, rows, some)
        for start in range(0, time, steps)
    ]
