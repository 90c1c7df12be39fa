"""Attention of a step's tokens, to a prefix that rows share and to what each row has of its own.

All tokens of a step stand in one sequence, (1, tokens), whatever row they belong to: no linear layer computes padding. Rows
that add one token attend together: to one copy of their prefix in one matrix product, to their own keys in another, with one
softmax over both. Rows that add several tokens (a prompt, or text that a format fixes) attend in bunches, padded to one length.

Queries are (1, heads, tokens, size); keys and values lie as store.py says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from .store import Layer, Prefix, Store

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
class Span:
    """Several tokens of one row: where they stand in the step and in their slot (or in a prefix that they make)."""

    slot: int
    offset: int
    length: int
    start: int  # own tokens before them
    prefix: Prefix | None
    shared: int  # tokens of the prefix that count

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def tokens(self) -> range:
        """Where its tokens stand in the step."""
        return range(self.offset, self.offset + self.length)


class Bunch:
    """Spans behind the same tokens of one prefix, which attend together, padded to the longest."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self.prefix, self.shared = spans[0].prefix, spans[0].shared
        self.length = max(span.length for span in spans)
        # Where their tokens stand in the step, (spans, length), with a span's first token for padding; and without padding.
        padded = [[*span.tokens, *[span.offset] * (self.length - span.length)] for span in spans]
        self.tokens = torch.tensor(padded, device=device)
        self.where = torch.tensor([token for span in spans for token in span.tokens], device=device)
        # Which of (spans * length) are no padding; None where there is none.
        real = [at * self.length + i for at, span in enumerate(spans) for i in range(span.length)]
        self.real = None if len(real) == self.tokens.numel() else torch.tensor(real, device=device)
        # Where some of their own stands before them, it is read from their slots, (spans,), as far as the last of them goes.
        starts = [span.start for span in spans]
        self.slots = torch.tensor([span.slot for span in spans], device=device) if any(starts) else None
        self.width = max(span.end for span in spans)
        self._starts = torch.tensor(starts if any(starts) else [0], device=device)
        self._mask: torch.Tensor | None = None

    def mask(self, each: int, dtype: torch.dtype) -> torch.Tensor | None:
        """(spans or 1, 1, each * length, keys) to add to the scores of `each` queries' heads, made once for all layers.

        None where torch's own causal one will do.
        """
        if self._mask is None and (self.shared or self.slots is not None or each > 1):
            device = self._starts.device
            columns = self._starts[:, None] + torch.arange(self.length, device=device)  # the queries' own
            hidden = torch.arange(self.width, device=device) > columns[..., None]
            added = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
            keys = self.shared + self.width
            # Rows of a multiple of eight in memory: a GPU's kernels would make a copy that has them, in every layer.
            self._mask = pad(added, (self.shared, -keys % 8)).repeat(1, each, 1)[:, None, :, :keys]
        return self._mask


def bunched(spans: Sequence[Span], device: torch.device) -> list[Bunch]:
    """Spans in bunches: one call for several, where that saves more than their padding and the copies of their prefix cost.

    A call takes a GPU longer than all that it computes. On a CPU it is worth some thousand products of a query and a key, and
    copies that its caches hold.
    """
    most_padding, most_keys = (1 << 20, 1 << 15) if device.type == "cuda" else (1 << 13, 1 << 10)
    alike: dict[tuple[int, int, bool], list[Span]] = {}
    for span in sorted(spans, key=lambda span: -span.length):
        alike.setdefault((id(span.prefix), span.shared, span.start > 0), []).append(span)
    made: list[list[Span]] = []
    for same in alike.values():
        some: list[Span] = []
        end = 0
        for span in same:
            end = max(end, span.end)
            keys = span.shared + end
            if some and ((some[0].length - span.length) * keys > most_padding or (len(some) + 1) * keys > most_keys):
                made.append(some)
                some, end = [], span.end
            some.append(span)
        made.append(some)
    return [Bunch(some, device) for some in made]


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
    store: Store

    def __post_init__(self) -> None:
        self.all_single = len(self.single) == self.slots
        self.bunches = bunched(self.spans, self.single.device)
        self._slots, self._columns = self.single, self.columns  # of all tokens
        if self.spans:
            slots = [span.slot for span in self.spans for _ in span.tokens]
            columns = [column for span in self.spans for column in range(span.start, span.end)]
            places = torch.tensor([slots, columns], device=self.single.device)
            self._slots, self._columns = torch.cat([torch.stack([self.single, self.columns]), places], 1)
        self.behind = [] if all(group.prefix is None for group in self.groups) else self.groups

    def put(self, store: torch.Tensor, new: torch.Tensor) -> None:
        """Write what the step adds, (tokens, key heads, size), into the slots."""
        if self.column is not None:
            store[: self.slots, :, self.column] = new
        else:
            store[self._slots, :, self._columns] = new


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
    step.put(layer.keys, key[0].transpose(0, 1))
    step.put(layer.values, value[0].transpose(0, 1))
    if rows:
        attended = _singles(step, layer, index, queries[:rows] * scale, key.shape[1])
        if not step.spans:
            return attended[None], None
    found = queries.new_empty(*queries.shape[:2], value.shape[-1])
    if rows:
        found[:rows] = attended
    for bunch in step.bunches:
        found[bunch.where] = _together(bunch, layer, index, query[0], key[0], value[0], scale)
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


def _together(
    bunch: Bunch,
    layer: Layer,
    index: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention of a bunch's tokens, (tokens, heads, size), to what stands before each: its own keys, and its prefix's.

    Shapes: query (heads, tokens of the step, size), key and value (key heads, ...).
    """
    if bunch.slots is None:
        keys, values = key[:, bunch.tokens].transpose(0, 1), value[:, bunch.tokens].transpose(0, 1)
    else:
        keys = layer.keys[bunch.slots, :, : bunch.width]
        # torch's own attention wants each vector in one piece, and a store of values has time last.
        values = layer.values[bunch.slots, :, : bunch.width].contiguous()
    spans = len(bunch.tokens)
    if bunch.prefix is not None and bunch.shared:
        before = bunch.prefix.layers[index]
        keys = torch.cat([before.keys[:, : bunch.shared].expand(spans, -1, -1, -1), keys], 2)
        values = torch.cat([before.values[:, : bunch.shared].expand(spans, -1, -1, -1), values], 2)
    heads, _, size = query.shape
    each = heads // len(key)
    queries = query[:, bunch.tokens].view(len(key), each, spans, bunch.length, size)
    queries = queries.permute(2, 0, 1, 3, 4).reshape(spans, len(key), -1, size)  # those that share a head of keys
    mask = bunch.mask(each, query.dtype)
    found = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale)
    found = found.reshape(spans, heads, bunch.length, -1).transpose(1, 2).flatten(0, 1)
    return found if bunch.real is None else found[bunch.real]
