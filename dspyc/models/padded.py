"""A batch for models whose cache is more than keys and values (state spaces, sliding windows): padded, and closed to others.

Prompts are padded on the left, so that every row's next token stands in the last column. Rows leave, but none joins.
Shapes: `(batch, time)` for ids and masks.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from .generation import Generation
from .runner import Wearing


class PaddedBatch:
    """A `Batch` of rows that start together, all of one adapter.

    A row that comes to `anew_beyond` tokens is computed anew before the next: see `longrope`. It has to be the only one.
    """

    def __init__(
        self,
        model: Any,
        generations: Sequence[Generation],
        pad_id: int,
        wearing: Wearing,
        anew_beyond: int | None = None,
    ) -> None:
        self._model = model
        self._rows = list(generations)
        self._wearing = wearing
        self._anew_beyond = anew_beyond
        self._over: set[int] = set()
        self._cache: Any = None
        self._mask = self._next = torch.empty(0)  # (batch, time) and (batch, 1), once there is a cache
        self._pad_id = pad_id
        self._accepted = set(inspect.signature(model.forward).parameters)
        self._cache_name = "cache_params" if "cache_params" in self._accepted else "past_key_values"

    def __len__(self) -> int:
        return len(self._rows) - len(self._over)

    @property
    def generations(self) -> list[Generation]:
        return [row for row in self._rows if id(row) not in self._over]

    def drop(self, over: Sequence[Generation]) -> None:
        self._over |= {id(row) for row in over}
        kept = [at for at, row in enumerate(self._rows) if id(row) not in self._over]
        if not kept:
            self._rows, self._cache = [], None
            self._over.clear()
        elif len(kept) <= len(self._rows) // 2 and self._cache is not None:
            chosen = torch.tensor(kept, device=self._mask.device)
            self._cache.reorder_cache(chosen)
            self._mask, self._next = self._mask[chosen], self._next[chosen]
            self._rows = [self._rows[at] for at in kept]
            self._over.clear()

    def forward(self) -> tuple[list[Generation], torch.Tensor]:
        """As `Batch.forward`. A row that has several tokens to read reads one a step; only then it needs another."""
        if self._cache is not None and self._rows[0].computed == self._anew_beyond:
            self._cache, self._rows[0].computed = None, 0
        if self._cache is None:
            logits = self._prefill()
        else:
            tokens = [row.pending(1) or [self._pad_id] for row in self._rows]
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
            logits = self._run(torch.tensor(tokens, device=self._mask.device), self._next)
            self._next = self._next + 1
            for row in self._rows:
                row.computed += 1
        ready = [at for at, row in enumerate(self._rows) if id(row) not in self._over and row.computed == row.length]
        return [self._rows[at] for at in ready], logits[torch.tensor(ready, dtype=torch.long, device=logits.device)]

    def _prefill(self) -> torch.Tensor:
        prompts = [row.pending(row.length) for row in self._rows]
        width = max(len(ids) for ids in prompts)
        ids = [[self._pad_id] * (width - len(ids)) + ids for ids in prompts]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        self._cache = DynamicCache(config=self._model.config)
        self._mask = torch.tensor(mask, device=self._model.device)
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._next = positions[:, -1:] + 1
        logits = self._run(torch.tensor(ids, device=self._model.device), positions)
        for row in self._rows:
            row.computed = row.length
        return logits

    def _run(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        extra: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        # A state-space model masks the tokens that it is given, an attention model those that it has seen, too.
        masks_new = self._cache_name == "cache_params"
        with self._wearing([(self._rows[0].adapter, len(self._rows))]):
            output = self._model(
                input_ids=ids,
                attention_mask=self._mask[:, -ids.shape[1] :] if masks_new else self._mask,
                use_cache=True,
                **{self._cache_name: self._cache},
                **{name: value for name, value in extra.items() if name in self._accepted},
            )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]
