"""The batches of one model whose rows have slots, within the memory that is planned for them.

The rows of a batch share its reading of the weights; but a slot is as wide as the widest of its batch, and what is in none of
them is read too. So a row joins a batch while what its slots leave empty takes no more than reading the weights once again,
and opens another one otherwise. Rows whose adapter cannot share a step with others are in batches of their own.
"""

from collections.abc import Iterator

import torch

from ..errors import ModelError
from .batch import CascadeBatch
from .generation import Generation
from .memory import GIB
from .runner import Runner

_STEP_ON_GPU = 16 * GIB  # bytes that a GPU reads while it is told what to do in a step: 15 ms, and a TiB a second
_MOST = 3  # batches of one kind, before a row joins whichever it widens least


class Batches:
    """The batches that have rows, `limit` bytes of slots in all; each row's token takes `token_bytes`.

    One thread uses it; `bytes` may be read by any.
    """

    def __init__(self, limit: int, token_bytes: int, weights: int, device: torch.device) -> None:
        self._open: tuple[CascadeBatch, ...] = ()  # replaced, never changed
        self._limit, self._token_bytes = limit, token_bytes
        self._apart = max(weights, _STEP_ON_GPU if device.type == "cuda" else 0)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[CascadeBatch]:
        return iter(self._open)

    @property
    def bytes(self) -> int:
        """What the slots of all batches take."""
        return sum(batch.bytes for batch in self._open)

    def find(self, generation: Generation, shared: int, runner: Runner, worn: str | None) -> CascadeBatch | None:
        """The batch for a row that joins behind `shared` tokens, opened where none will do; None where it has to wait.

        `worn` is its adapter, where that cannot share a step.

        Raises:
            ModelError: It does not fit into the memory that is planned, even alone.
        """
        new = CascadeBatch(runner.read, runner.device, worn)
        for batch in (*self._alike(generation, shared, worn), new):
            if self.fits(batch, generation, shared):
                self._open = self._open if batch in self._open else (*self._open, batch)
                return batch
        if any(len(batch) for batch in self._open):
            return None
        raise ModelError(
            f"A prompt's keys and values take {new.room(generation, shared) * self._token_bytes / GIB:.2f} GiB, and "
            f"{self._limit / GIB:.2f} GiB are planned for batches.",
            hint="Shorten the prompt, close other models, or load this one in a smaller dtype.",
        )

    def _alike(self, generation: Generation, shared: int, worn: str | None) -> list[CascadeBatch]:
        """The batches that a row had better join than open another, the best first."""
        ours = [batch for batch in self._open if batch.worn == worn]
        more = {batch: batch.idle(generation, shared) - batch.idle() for batch in ours}
        if len(ours) >= _MOST:
            return sorted(ours, key=more.__getitem__)
        most_idle = self._apart / max(1, self._token_bytes)
        fitting = [batch for batch in ours if more[batch] <= 0 or batch.idle(generation, shared) <= most_idle]
        return sorted(fitting, key=len, reverse=True)  # the fullest, so that the others come to their end

    def beside(self, batch: CascadeBatch, generation: Generation, shared: int) -> CascadeBatch | None:
        """A batch of as many rows or more that one of `batch` had better be in, were it to stand behind `shared` tokens."""
        alike = [other for other in self._alike(generation, shared, batch.worn) if other is not batch]
        return next((b for b in alike if len(b) >= len(batch) and self.fits(b, generation, shared)), None)

    def fits(self, batch: CascadeBatch, generation: Generation, shared: int) -> bool:
        """Whether a row that joins `batch` keeps to the memory that is planned."""
        others = sum(other.room() for other in self._open if other is not batch)
        return (batch.room(generation, shared) + others) * self._token_bytes <= self._limit

    def bound(self, batch: CascadeBatch) -> None:
        """Tell a batch how many tokens the plan leaves its slots now, beyond what they need, beside those of the others."""
        others = (other for other in self._open if other is not batch)
        held = sum(max(other.bytes, other.room() * self._token_bytes) for other in others)
        batch.limit = (self._limit - held) / max(1, self._token_bytes)

    def close(self) -> None:
        """Let the batches without rows go."""
        self._open = tuple(batch for batch in self._open if len(batch))

    def make_room(self) -> None:
        """Have the batches give back what they hold for later, where others need it now."""
        needed = {batch: batch.room() for batch in self._open}
        if sum(max(batch.bytes, room * self._token_bytes) for batch, room in needed.items()) > self._limit:
            for batch, room in needed.items():
                batch.limit = self._limit / max(1, self._token_bytes) - sum(needed.values()) + room
                batch.reserve()
