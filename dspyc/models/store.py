"""Where keys and values lie: a prefix's once for all rows behind it, a row's own in a slot of a buffer that grows.

Shapes: a prefix's keys (key heads, time, size); own keys (slots, key heads, room, size). Own values have the same shape, but
lie in memory as (slots, key heads, size, room): both products of a single query then read what lies together, which takes a
CPU half of the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch


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
    several: bool = False  # whether it was made because several prompts begin so
    users: int = 0  # rows that stand behind it, or have yet to copy it; it is kept while there are any
    rows: int = 0  # that began with it and are not over, copies included

    @cached_property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)


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
        are asked for and as many tokens as the limit leaves them. Beyond the limit tokens come in steps of 32, and what is
        held for later is given back.
        """
        held, least = self.slots * self.room, _stepwise(room)
        if slots * room <= limit < math.inf:
            least = min(least, int(limit // slots))
        if slots <= self.slots and room <= self.room:
            if limit < held > slots * least:
                self._resize(slots, least, kept)
            return
        more_slots = max(self.slots, slots + slots // 2 if self.slots and slots > self.slots else slots)
        more_room = _stepwise(room + room // 2)
        if room <= self.room:  # no more than before; less, where a long row has left
            more_room = min(self.room, more_room)
        if more_slots * more_room > limit:
            more_slots = slots
            more_room = min(more_room, int(limit // slots)) if slots * room <= limit else least
        self._resize(more_slots, more_room, kept)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot into another."""
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def fill(self, slot: int, prefix: Prefix, start: int, stop: int) -> None:
        """Copy the tokens from `start` to `stop` of a prefix to the beginning of a slot."""
        for at, layer in enumerate(prefix.layers):
            own = self.layer(at, layer.keys[None], layer.values[None])
            own.keys[slot, :, : stop - start] = layer.keys[:, start:stop]
            own.values[slot, :, : stop - start] = layer.values[:, start:stop]

    def taken(self, slot: int, length: int, base: Prefix | None, shared: int) -> list[Layer]:
        """A copy of the first `length` tokens of a slot, behind the first `shared` tokens of `base`: a prefix's layers."""
        layers = []
        for at, own in enumerate(self.layers):
            before = base.layers[at] if base is not None else Layer(own.keys[slot, :, :0], own.values[slot, :, :0])
            keys = torch.cat([before.keys[:, :shared], own.keys[slot, :, :length]], 1)
            values = torch.cat([before.values[:, :shared], own.values[slot, :, :length]], 1)
            layers.append(Layer(keys.contiguous(), values.contiguous()))
        return layers

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

    def _resize(self, slots: int, room: int, kept: int) -> None:
        for at, layer in enumerate(self.layers):
            self.layers[at] = self._copied(layer, slots, room, kept)
        self.slots, self.room = slots, room

    @staticmethod
    def _copied(old: Layer, slots: int, room: int, kept: int) -> Layer:
        new = Store(slots, room).layer(0, old.keys[:1], old.values[:1])
        kept, before = min(kept, slots, len(old.keys)), min(room, old.keys.shape[2])
        new.keys[:kept, :, :before] = old.keys[:kept, :, :before]
        new.values[:kept, :, :before] = old.values[:kept, :, :before]
        return new


def _stepwise(room: int) -> int:
    """So many tokens or a few more, in steps of 32."""
    return -(-room // 32) * 32
