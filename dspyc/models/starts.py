"""What rows begin behind: prefixes that were kept, or that are made when prompts join which share them.

A prefix that rows share is read once for all of them at every token, and is an attention of its own in every layer. So a row
that would stand behind one with few others, while more stand elsewhere, has it copied into its slot, where it attends together
with them. A long prompt is computed in its slot, and a copy of it kept: the next one often begins like it.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, takewhile

import numpy as np

from .batch import CascadeBatch, Start
from .generation import Generation
from .memory import is_out_of_memory
from .prefixes import Overlaps, PrefixCache, as_array, is_long, shared_length
from .runner import Runner
from .store import Prefix

_SEVERAL = 3  # rows with which another stands behind a prefix, rather than copy it
_FEW = 2  # prefixes that rows stand behind, beside which another one is no trouble
_AGAIN = 64  # tokens that are computed once more, where it saves a pass at every token


class Starts:
    """The kept prefixes of one model, `limit` bytes of them; each token takes `token_bytes`."""

    def __init__(self, limit: int, token_bytes: int) -> None:
        self.kept = PrefixCache()
        self._limit, self._token_bytes = limit, token_bytes

    def of(self, generation: Generation, ids: np.ndarray, overlaps: Overlaps, at: int, runner: Runner) -> Start:
        """The start of a row with the prompt `ids`, which is number `at` of those that join."""
        adapter, most = generation.adapter, len(ids) - 1  # the last token is computed
        found, known = self.kept.match(adapter, ids)
        generation.cached = min(known, len(generation.job.ids))  # what a format fixes may be in a prefix too
        length = shared_length(most, overlaps.of(at), known)
        base, before = found, known
        if length and (made := self._kept(length, lambda: runner.prefix(ids[:length].tolist(), adapter, base, before))):
            found, known, made.several = made, length, True
        generation.keep = is_long(most, known)
        if found is None or self._together(found, known, overlaps.of(at)):
            return Start(found, known)
        base, shared = self.kept.standing(adapter, ids)
        if 2 * shared < known and not self._in_use:
            return Start(found, known)
        return Start(base, shared, found, known) if shared < known else Start(base, shared)

    def again(self, generation: Generation, batch: CascadeBatch) -> Iterator[tuple[int, Callable[[], Start]]]:
        """Where a row of `batch` may go on in another: how many tokens it would share there, and the start that does it."""
        ids = as_array(generation.job.ids + generation.written)
        if len(ids) != generation.computed + 1:
            return  # it has yet to read more than the token that was chosen last
        base, shared = self.kept.standing(generation.adapter, ids)
        yield shared, lambda: Start(base, shared, batch.taken(generation), generation.computed)
        if (start := self.kept_of(generation)) is not None:
            yield start.shared, lambda: start

    def kept_of(self, generation: Generation) -> Start | None:
        """What a row may stand behind of what was kept of it; None where that is not nearly all, or many stand elsewhere."""
        ids = as_array(generation.job.ids + generation.written)
        found, known = self.kept.match(generation.adapter, ids)
        return Start(found, known) if len(ids) - known <= _AGAIN and self._in_use <= _FEW else None

    @property
    def _in_use(self) -> int:
        """The prefixes that rows stand behind."""
        return sum(prefix.users > 0 for prefix in self.kept)

    def _together(self, prefix: Prefix, length: int, others: Iterable[int]) -> bool:
        """Whether a row would stand behind so many tokens of a prefix with several others."""
        joining = len(list(islice(takewhile(lambda shared: shared >= length, others), _SEVERAL)))
        return prefix.several or max(prefix.users, prefix.rows) + joining >= _SEVERAL

    def keep(self, generation: Generation, batch: CascadeBatch) -> None:
        """Keep a copy of a prompt that was computed, if it is long and there is room for it."""
        if generation.keep:
            generation.keep = False
            ids = as_array(generation.job.ids)
            if is_long(len(ids), self.kept.match(generation.adapter, ids)[1]):  # no other row has computed it too
                self._kept(generation.computed, lambda: batch.taken(generation))

    def _kept(self, length: int, make: Callable[[], Prefix]) -> Prefix | None:
        """The prefix of so many tokens that `make` gives, which is kept; None where there is no room for it."""
        left = self._limit - length * self._token_bytes
        if self.kept.used > left:
            return None
        self.kept.shrink(left)
        try:
            made = make()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.kept.shrink(0)
            return None
        self.kept.keep(made)
        return made
