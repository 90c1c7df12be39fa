"""The masks of a tokenizer's grammars, held in one place up to so many bytes; those that were used last stay."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

import torch

MASK_BYTES = 128 << 20  # some 900 masks over 150,000 tokens


class Masks:
    """Masks by what they belong to, `most` of them. Safe to share between threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> torch.Tensor | None:
        """The mask, if it is still held."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def keep(self, key: Hashable, mask: torch.Tensor) -> None:
        """Hold a mask until others need its place. Whoever uses it meanwhile has it for as long as they like."""
        with self._lock:
            self._kept[key] = mask
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
