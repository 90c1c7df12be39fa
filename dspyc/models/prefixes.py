"""Prefixes of prompts whose keys and values are kept: found by their content, under a memory limit, the unused ones go first.

A prompt is compared with the kept prefixes, and takes as many of the first tokens of one as the two have in common, and with
the prompts that join at the same time. What they share becomes a new prefix; the rest of a prompt is computed in its row's own
slot: what many rows read together should be one prefix for all of them, rather than a slightly longer one for each.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np

from .store import Prefix

_SAVED = 256  # tokens that a prefix of several prompts has to save in all, since every prefix makes a step slower
_SHARED = 32  # and for each of them
_COPIED = 8  # and at least one for so many that are copied from another prefix
_LONG = 128  # tokens of one prompt that are kept, if there are half as many as those of the prefix before them


class PrefixCache:
    """The kept prefixes of one model, `bytes` in all; `shrink` keeps those that rows stand behind beyond its limit.

    One thread uses it; `bytes` may be read by any.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._kept: OrderedDict[int, tuple[Prefix, np.ndarray]] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def used(self) -> int:
        """The bytes of those that rows stand behind."""
        return sum(prefix.bytes for prefix, _ in self._kept.values() if prefix.users)

    @property
    def in_use(self) -> bool:
        """Whether rows stand behind any."""
        return any(prefix.users for prefix, _ in self._kept.values())

    def match(self, adapter: str | None, ids: np.ndarray, in_use: bool = False) -> tuple[Prefix | None, int]:
        """The kept prefix that has the most first tokens in common with `ids`, and how many; the last token never counts.

        Of several the one that most rows stand behind; with `in_use`, one that some do.
        """
        best: Prefix | None = None
        length = users = 0
        for prefix, tokens in self._kept.values():
            if prefix.adapter != adapter or (in_use and not prefix.users):
                continue
            found = common(tokens, ids[:-1])
            if found and (found, prefix.users) > (length, users):
                best, length, users = prefix, found, prefix.users
        if best is not None:
            self._kept.move_to_end(id(best))
        return best, length

    def keep(self, prefix: Prefix) -> None:
        """Keep a prefix until `shrink` lets it go."""
        self._kept[id(prefix)] = (prefix, as_array(prefix.ids))
        self.bytes += prefix.bytes

    def shrink(self, limit: int) -> bool:
        """Let unused prefixes go, the least recently used first, until `limit` bytes are kept; whether any went."""
        before = len(self._kept)
        for prefix, _ in list(self._kept.values()):
            if self.bytes <= limit:
                break
            if not prefix.users:
                self._drop(prefix)
        return len(self._kept) < before

    def forget(self, adapter: str | None) -> None:
        """Let all prefixes of an adapter go."""
        for prefix, _ in list(self._kept.values()):
            if prefix.adapter == adapter:
                self._drop(prefix)

    def _drop(self, prefix: Prefix) -> None:
        del self._kept[id(prefix)]
        self.bytes -= prefix.bytes


class Overlaps:
    """How many first tokens prompts have in common, each with each.

    Once they are sorted, a prompt has the most in common with those beside it, so n prompts take n comparisons.
    """

    def __init__(self, prompts: Sequence[tuple[str | None, np.ndarray]]) -> None:
        """`prompts` are of adapters, each with its ids; those of two adapters have nothing in common."""
        order = sorted(range(len(prompts)), key=lambda at: (prompts[at][0] or "", prompts[at][1].tobytes()))
        self._place = {at: place for place, at in enumerate(order)}
        self._with_next: list[int] = []
        for (adapter, ids), (other, others_ids) in pairwise(prompts[at] for at in order):
            self._with_next.append(common(ids, others_ids) if adapter == other else 0)

    def of(self, at: int) -> Iterator[int]:
        """The numbers of tokens that prompt `at` shares with each of the others, the largest first."""
        place = self._place[at]
        before, after = reversed(self._with_next[:place]), self._with_next[place:]
        return heapq.merge(accumulate(before, min), accumulate(after, min), reverse=True)


def shared_length(most: int, others: Iterable[int], matched: int) -> int:
    """How many first tokens of a prompt are worth a prefix, as other prompts have them too; 0 if the `matched` ones will do.

    That is the length that saves the most tokens in all.

    Args:
        most: How many may be in a prefix.
        others: How many each of the other prompts has in common with it, the largest first.
    """
    saved, best = 0, 0
    for count, length in enumerate(others, 1):
        length = min(length, most)
        if length <= matched:
            break
        saved, best = max((saved, best), ((length - matched) * count, length))
    return best if saved >= _SAVED and best - matched >= max(_SHARED, matched // _COPIED) else 0


def is_long(most: int, matched: int) -> bool:
    """Whether a prompt, of which `most` tokens can be in a prefix and `matched` are in one, is worth a prefix by itself."""
    return most - matched >= max(_LONG, matched // 2)


def common(first: np.ndarray, second: np.ndarray) -> int:
    """How many first tokens two prompts share."""
    size = min(len(first), len(second))
    if not size or first[0] != second[0]:
        return 0
    differ = first[:size] != second[:size]
    at = int(differ.argmax())
    return at if differ[at] else size


def as_array(ids: Sequence[int]) -> np.ndarray:
    """Token ids as `PrefixCache` compares them."""
    return np.asarray(ids, dtype=np.int64)
