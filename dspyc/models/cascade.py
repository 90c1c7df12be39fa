"""Attention of a step's tokens, to a prefix that rows share and to what each row has of its own.

All tokens of a step stand in one sequence, (1, tokens), whatever row they belong to: no linear layer computes padding. Rows
that add one token attend together: to one copy of their prefix in one matrix product, to their own keys in another, with one
softmax over both. A row that adds several tokens (its prompt, or text that its format fixes) attends by itself.

Shapes: queries (1, heads, tokens, size); a prefix's keys (key heads, time, size); own keys (slots, key heads, room, size).
Own values have the same shape, but lie in memory as (slots, key heads, size, room): both products of a single query then read
what lies together, which takes a CPU half of the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

NAME = "dspyc_cascade"  # among transformers' attention implementations
_IGNORED = {
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",  # of mixtures of experts
    "is_causal",
}


@dataclass(eq=False)
class Layer:
    """A layer's keys and values of a prefix, (key heads, time, size), or of slots, (slots, key heads, room, size)."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@dataclass(eq=False)
class Prefix:
    """Keys and values of the tokens `ids` at the beginning of prompts, under one adapter."""

    ids: Sequence[int]
    adapter: str | None
    layers: list[Layer] = field(default_factory=list)
    users: int = 0  # rows that stand behind it; it is kept while there are any

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)


@dataclass(eq=False)
class Span:
    """Several tokens of one row: where they stand in the step and in their slot (or in a prefix that they make)."""

    slot: int
    offset: int
    length: int
    start: int  # own tokens before them
    prefix: Prefix | None
    shared: int  # tokens of the prefix that count
    device: torch.device
    _mask: torch.Tensor | None = field(default=None, init=False)

    def mask(self, each: int, dtype: torch.dtype) -> torch.Tensor | None:
        """(each * length, keys) to add to the scores of `each` queries' heads, made once for all layers.

        None where torch's own causal one will do.
        """
        before = self.shared + self.start
        if self._mask is None and (before or each > 1):
            later = torch.full((self.length, before + self.length), -torch.inf, dtype=dtype, device=self.device)
            self._mask = later.triu(before + 1).repeat(each, 1)
        return self._mask


@dataclass(eq=False)
class Group:
    """The rows that add one token each behind the same prefix; `rows` (slots) is None for all slots."""

    prefix: Prefix | None
    shared: int  # the most tokens of the prefix that count for a row
    rows: torch.Tensor | None
    mask: torch.Tensor | None  # (rows, 1, shared), added to scores; None where all count for all


@dataclass(eq=False)
class Step:
    """What one forward pass computes: `single` rows of one token first, in the order of their slots, then `spans`."""

    slots: int
    single: torch.Tensor  # slots, (rows,)
    columns: torch.Tensor  # where their tokens go in their slots, (rows,)
    column: int | None  # the same, where it is one place for all slots
    width: int  # columns that are looked at
    own_mask: torch.Tensor | None  # (slots, 1, width), added to scores
    groups: list[Group]
    spans: list[Span]
    store: "Store"

    def __post_init__(self) -> None:
        self.all_single = len(self.single) == self.slots
        self.behind = [] if all(group.prefix is None for group in self.groups) else self.groups

    def put(self, store: torch.Tensor, new: torch.Tensor) -> None:
        """Write what the single rows add, (rows, key heads, size), into their slots."""
        if self.column is not None:
            store[: self.slots, :, self.column] = new
        else:
            store[self.single, :, self.columns] = new


class Store:
    """Keys and values of slots, layer by layer, in buffers that grow; `slots` and `room` are asked, not held."""

    def __init__(self, slots: int = 0, room: int = 0) -> None:
        self.layers: list[Layer] = []
        self.slots, self.room = slots, room

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    def reserve(self, slots: int, room: int, kept: int, limit: float = math.inf) -> None:
        """Have space for so many slots of so many tokens each, of which `kept` slots hold something.

        Growing takes half as much again for what may come; where that would be more than `limit` tokens in all, the slots that
        are asked for and as many tokens as the limit leaves them. Beyond the limit tokens come in steps of 32.
        """
        if slots <= self.slots and room <= self.room:
            return
        more_slots = max(self.slots, slots + slots // 2 if self.slots and slots > self.slots else slots)
        more_room = max(self.room, _stepwise(room + room // 2) if room > self.room else 0)
        if more_slots * more_room > limit:
            more_slots = slots
            more_room = min(more_room, int(limit // slots)) if slots * room <= limit else _stepwise(room)
        for at, layer in enumerate(self.layers):
            self.layers[at] = self._grown(layer, more_slots, more_room, kept)
        self.slots, self.room = more_slots, more_room

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot into another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def clear(self) -> None:
        self.layers, self.slots, self.room = [], 0, 0

    def layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> Layer:
        """The layer's buffers, made for such keys and values, (1, key heads, tokens, size), where there are none."""
        while len(self.layers) <= index:
            # Zeros, since what stands behind a row's end is multiplied too, by weights of nothing.
            keys = keys.new_zeros(self.slots, keys.shape[1], self.room, keys.shape[3])
            values = values.new_zeros(self.slots, values.shape[1], values.shape[3], self.room).transpose(2, 3)
            self.layers.append(Layer(keys, values))
        return self.layers[index]

    @staticmethod
    def _grown(old: Layer, slots: int, room: int, kept: int) -> Layer:
        new = Store(slots, room).layer(0, old.keys[:1], old.values[:1])
        kept, before = min(kept, slots, len(old.keys)), min(room, old.keys.shape[2])
        new.keys[:kept, :, :before] = old.keys[:kept, :, :before]
        new.values[:kept, :, :before] = old.values[:kept, :, :before]
        return new


def _stepwise(room: int) -> int:
    """So many tokens or a few more, in steps of 32."""
    return -(-room // 32) * 32


class StepCache(Cache):
    """What a model takes for its cache while `attend` keeps the keys and values: it hands on the new ones."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0, *args: Any) -> int:
        return 0


def refuse_more(beyond: bool, mask: torch.Tensor | None, dropout: float, others: dict[str, Any]) -> None:
    """Raise NotImplementedError where a model asks more of causal attention than it says of itself by default.

    Args:
        beyond: Whether the caller found something else that it cannot do.
        others: What transformers hands an attention beside its usual arguments; sinks and soft caps are among them.
    """
    asked = [name for name, what in others.items() if what is not None and name not in _IGNORED]
    if beyond or mask is not None or dropout or asked:
        raise NotImplementedError(f"attention with a mask, dropout, a short window or {', '.join(asked) or 'the like'}")


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    step: Step | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a step's tokens, (1, tokens, heads, size); their keys and values are stored on the way.

    Raises:
        NotImplementedError: The model asks for what this does not do: sinks, soft caps, windows, masks, dropout.
    """
    refuse_more(step is None, attention_mask, dropout, others)
    step = cast(Step, step)
    layer = step.store.layer(module.layer_idx, key, value)
    index = module.layer_idx
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows = len(step.single)
    queries = query[0].transpose(0, 1)  # (tokens, heads, size)
    if rows:
        step.put(layer.keys, key[0, :, :rows].transpose(0, 1))
        step.put(layer.values, value[0, :, :rows].transpose(0, 1))
        attended = _singles(step, layer, index, queries[:rows] * scale, key.shape[1])
        if not step.spans:
            return attended[None], None
    found = queries.new_empty(*queries.shape[:2], value.shape[-1])
    if rows:
        found[:rows] = attended
    for span in step.spans:
        here, there = slice(span.offset, span.offset + span.length), slice(span.start, span.start + span.length)
        keys, values = key[0, :, here], value[0, :, here]
        layer.keys[span.slot, :, there] = keys
        layer.values[span.slot, :, there] = values
        if span.start:
            keys, values = (own[span.slot, :, : there.stop] for own in (layer.keys, layer.values))
        found[here] = _spanned(span, keys, values, index, query[0, :, here], scale).transpose(0, 1)
    return found[None], None


AttentionInterface.register(NAME, attend)


def _singles(step: Step, layer: Layer, index: int, queries: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention of one scaled query a row, (rows, heads, size)."""
    slots, size = step.slots, queries.shape[-1]
    if not step.all_single:  # a query of zeros for the other slots is cheaper than a copy of these slots' keys
        queries = queries.new_zeros(slots, *queries.shape[1:]).index_copy_(0, step.single, queries)
    queries = queries.reshape(slots, heads, -1, size)  # (slots, key heads, queries of a head, size)
    scores = _times(layer.keys[:slots, :, : step.width], queries)
    own_values = layer.values[:slots, :, : step.width].transpose(-1, -2)
    if step.own_mask is not None:
        scores += step.own_mask[:, None]
    shared = step.behind
    if not shared:
        weights = scores.softmax(-1, dtype=torch.float32).to(queries.dtype)
        found = _times(own_values, weights)
    elif len(shared) == 1 and shared[0].rows is None:
        weights, found = _behind(shared[0], index, queries, scores)
        found += _times(own_values, weights)
    else:
        weights = torch.zeros_like(scores)
        found = queries.new_zeros(*queries.shape[:3], layer.values.shape[-1])
        for group in shared:
            rows = cast(torch.Tensor, group.rows)
            weights[rows], found[rows] = _behind(group, index, queries[rows], scores[rows])
        found += _times(own_values, weights)
    found = found.reshape(slots, -1, found.shape[-1])
    return found if step.all_single else found[step.single]


def _times(store: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
    """(slots, key heads, a few, m) of a store's part (slots, key heads, m, n) and a few vectors (slots, key heads, a few, n).

    What is large stands on the left, where a CPU multiplies it by few columns twice as fast as on the right.
    """
    found = torch.bmm(store.flatten(0, 1), some.flatten(0, 1).transpose(1, 2))
    return found.transpose(1, 2).view(some.shape[0], some.shape[1], -1, store.shape[2])


def _behind(group: Group, index: int, queries: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows' weights of their own values, and what they take of their prefix's.

    Shapes: queries (rows, key heads, queries of a head, size), scores (..., width) of own keys; weights like scores.
    """
    if group.prefix is None:
        weights = scores.softmax(-1, dtype=torch.float32).to(queries.dtype)
        return weights, queries.new_zeros(())
    shared = group.prefix.layers[index]
    keys, values = shared.keys[:, : group.shared], shared.values[:, : group.shared]
    rows, heads, each, size = queries.shape
    flat = queries.transpose(0, 1).reshape(heads, rows * each, size)
    before = torch.bmm(flat, keys.transpose(-1, -2))
    if group.mask is not None:
        before = (before.view(heads, rows, each, -1) + group.mask).view(before.shape)
    own = scores.transpose(0, 1).reshape(heads, rows * each, -1)
    weights = torch.cat([before, own], -1).softmax(-1, dtype=torch.float32).to(queries.dtype)
    taken = torch.bmm(weights[..., : group.shared], values)
    own = weights[..., group.shared :].reshape(heads, rows, each, -1)
    return own.transpose(0, 1), taken.view(heads, rows, each, -1).transpose(0, 1)


def _spanned(
    span: Span, keys: torch.Tensor, values: torch.Tensor, index: int, queries: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of one row's queries, (heads, length, size), to what stands before each: its own keys, and its prefix's."""
    if span.prefix is not None and span.shared:
        shared = span.prefix.layers[index]
        keys = torch.cat([shared.keys[:, : span.shared], keys], 1)
        values = torch.cat([shared.values[:, : span.shared], values], 1)
    elif span.start:
        values = values.contiguous()  # torch's own attention wants each vector in one piece, and a store has time last
    heads, length, size = queries.shape
    each = heads // keys.shape[0]
    mask = span.mask(each, queries.dtype)
    queries = queries.reshape(keys.shape[0], each * length, size)  # those that share a head of keys, behind each other
    found = scaled_dot_product_attention(
        queries[None], keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return found[0].reshape(heads, length, values.shape[-1])
