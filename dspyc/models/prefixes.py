"""Prefixes of prompts whose keys and values are kept: found by their content, under a memory limit, the unused ones go first.

A prompt is compared with the kept prefixes, and takes as many of the first tokens of one as the two have in common, and with
the prompts that join at the same time. What they share becomes a new prefix; the rest of a prompt is computed in its row's own
slot: what many rows read together should be one prefix for all of them, rather than a slightly longer one for each.
"""

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np

from .store import Prefix

_Key = tuple[str, bytes]  # an adapter and tokens

_SAVED = 256  # tokens that a prefix of several prompts has to save in all, since every prefix makes a step slower
_SHARED = 32  # and for each of them
_COPIED = 8  # and at least one for so many that are copied from another prefix
_LONG = 128  # tokens of one prompt that are kept, if there are half as many as those of the prefix before them


class PrefixCache:
    """The kept prefixes of one model, `bytes` in all; `shrink` keeps those that rows need beyond its limit.

    They are sorted by their tokens: the one that has the most in common with a prompt is beside the prompt's place. One thread
    uses it; `bytes` may be read by any.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._kept: OrderedDict[_Key, Prefix] = OrderedDict()  # the least recently used first
        self._sorted: list[_Key] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._kept.values())

    @property
    def used(self) -> int:
        """The bytes of those that rows need."""
        return sum(prefix.bytes for prefix in self if prefix.users)

    def match(self, adapter: str | None, ids: np.ndarray) -> tuple[Prefix | None, int]:
        """The kept prefix that has the most first tokens in common with `ids`, and how many; the last token never counts.

        Of several it is the one that has no others.
        """
        ids = ids[:-1]
        wanted = _key(adapter, ids)
        place = bisect_left(self._sorted, wanted)
        beside = [key for key in self._sorted[max(0, place - 1) : place + 1] if key[0] == wanted[0]]
        length, best = max(((common(_tokens(key), ids), key) for key in beside), default=(0, wanted))
        if not length:
            return None, 0
        whole = _key(adapter, ids[:length])
        best = whole if whole in self._kept else best
        self._kept.move_to_end(best)
        return self._kept[best], length

    def standing(self, adapter: str | None, ids: np.ndarray) -> tuple[Prefix | None, int]:
        """As `match`, of those that rows stand behind and those that were made for several prompts."""
        found: tuple[int, bool, int] = (0, False, 0)
        best: Prefix | None = None
        for key, prefix in self._kept.items():
            if prefix.adapter == adapter and (prefix.users or prefix.several):
                length = common(_tokens(key), ids[:-1])
                if length and (rank := (length, length == len(prefix.ids), prefix.users)) > found:
                    best, found = prefix, rank
        return best, found[0]

    def keep(self, prefix: Prefix) -> None:
        """Keep a prefix until `shrink` lets it go."""
        key = _key(prefix.adapter, as_array(prefix.ids))
        insort(self._sorted, key)
        self._kept[key] = prefix
        self.bytes += prefix.bytes

    def shrink(self, limit: int) -> bool:
        """Let unused prefixes go, the least recently used first, until `limit` bytes are kept; whether any went."""
        before = len(self._kept)
        for key, prefix in list(self._kept.items()):
            if self.bytes <= limit:
                break
            if not prefix.users:
                self._drop(key)
        return len(self._kept) < before

    def forget(self, adapter: str | None) -> None:
        """Let all prefixes of an adapter go."""
        for key, prefix in list(self._kept.items()):
            if prefix.adapter == adapter:
                self._drop(key)

    def _drop(self, key: _Key) -> None:
        self.bytes -= self._kept.pop(key).bytes
        del self._sorted[bisect_left(self._sorted, key)]


class Overlaps:
    """How many first tokens prompts have in common, each with each.

    Once they are sorted, a prompt has the most in common with those beside it, so n prompts take n comparisons.
    """

    def __init__(self, prompts: Sequence[tuple[str | None, np.ndarray]]) -> None:
        """`prompts` are of adapters, each with its ids; those of two adapters have nothing in common."""
        order = sorted(range(len(prompts)), key=lambda at: _key(*prompts[at]))
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


def _key(adapter: str | None, ids: np.ndarray) -> _Key:
    return adapter or "", ids.tobytes()


def _tokens(key: _Key) -> np.ndarray:
    return np.frombuffer(key[1], dtype=np.int64)


def as_array(ids: Sequence[int]) -> np.ndarray:
    """Token ids as `PrefixCache` compares them."""
    return np.asarray(ids, dtype=np.int64)
