"""A batch of prompts decoded to replies: one prefill, then a token a step, each row with its own settings.

Shapes: `(batch, time)` for ids and masks, `(batch, vocabulary)` for logits. Prompts are padded on the left, so that every
row's next token stands in the last column.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import DynamicCache

_COLDEST = 1e-5  # below this temperature, scaled logits overflow, and the likeliest token is certain anyway

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. A temperature of None or 0 takes the likeliest token; a seed makes sampling repeatable."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def is_sampled(self) -> bool:
        return self.temperature is not None and self.temperature >= _COLDEST


@dataclass(frozen=True)
class Reply:
    """`text` without control tokens and stop strings; `tokens` counts all that were generated."""

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


@dataclass
class _Row:
    sampling: Sampling
    ids: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None
    finish_reason: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        if self.sampling.is_sampled and self.sampling.seed is not None:
            # A generator of its own: what else is in the batch cannot change what a seed draws.
            self.generator = torch.Generator().manual_seed(self.sampling.seed % 2**63)


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    *,
    stop_ids: set[int],
    pad_id: int,
    decode: Decode,
) -> list[Reply]:
    """A reply to each prompt, in order. `stop_ids` end a reply; `decode` turns generated ids into text."""
    rows = [_Row(sampling) for sampling in samplings]
    batch = _Batch(model, prompts, pad_id)
    live = rows
    logits = batch.prefill()
    while True:
        tokens = _next_tokens(logits, live)
        for row, token in zip(live, tokens, strict=True):
            _append(row, token, stop_ids, decode)
        if not any(row.finish_reason is None for row in live):
            break
        if sum(row.finish_reason is None for row in live) <= len(live) // 2:
            kept = [i for i, row in enumerate(live) if row.finish_reason is None]
            batch.keep(kept)
            live, tokens = [live[i] for i in kept], [tokens[i] for i in kept]
        logits = batch.step(tokens)
    return [_reply(row, stop_ids, decode) for row in rows]


class _Batch:
    """The rows that are still being written: their keys and values, mask and next positions."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], pad_id: int) -> None:
        width = max(len(ids) for ids in prompts)
        self._model = model
        self._ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in prompts], device=model.device)
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        self._mask = torch.tensor(mask, device=model.device)
        self._cache = DynamicCache(config=model.config)
        self._accepted = _forward_arguments(model)

    def prefill(self) -> torch.Tensor:
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._next = positions[:, -1:] + 1
        return self._forward(self._ids, positions)

    def step(self, tokens: list[int]) -> torch.Tensor:
        """The logits `(batch, vocabulary)` that follow one more token a row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        logits = self._forward(torch.tensor(tokens, device=self._mask.device)[:, None], self._next)
        self._next = self._next + 1
        return logits

    def keep(self, rows: list[int]) -> None:
        chosen = torch.tensor(rows, device=self._mask.device)
        self._cache.batch_select_indices(chosen)
        self._mask, self._next = self._mask[chosen], self._next[chosen]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        extra: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **{name: value for name, value in extra.items() if name in self._accepted},
        )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]


def _forward_arguments(model: Any) -> set[str]:
    """What the model's forward takes; a PEFT wrapper's own signature says nothing about it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(inner.forward).parameters)


def _next_tokens(logits: torch.Tensor, rows: list[_Row]) -> list[int]:
    tokens: list[int] = logits.argmax(-1).tolist()
    sampled = [i for i, row in enumerate(rows) if row.sampling.is_sampled and row.finish_reason is None]
    if sampled:
        drawn = logits[sampled].cpu()
        for index, scores in zip(sampled, drawn, strict=True):
            tokens[index] = _sample(scores, rows[index])
    return tokens


def _sample(scores: torch.Tensor, row: _Row) -> int:
    """One token from `scores` `(vocabulary,)`: temperature, then top-k, then top-p."""
    sampling = row.sampling
    scores, order = (scores / (sampling.temperature or 1.0)).sort(descending=True, stable=True)
    if sampling.top_k is not None:
        scores = scores[: sampling.top_k]
    probabilities = scores.softmax(-1)
    if sampling.top_p is not None:
        before = probabilities.cumsum(-1) - probabilities  # the likeliest token always stays
        probabilities = probabilities.masked_fill((before >= sampling.top_p) & (before > 0), 0.0)
    drawn = torch.multinomial(probabilities, 1, generator=row.generator)
    return int(order[drawn])


def _append(row: _Row, token: int, stop_ids: set[int], decode: Decode) -> None:
    if row.finish_reason is not None:
        return
    row.ids.append(token)
    if token in stop_ids or _says_stop(row, decode):
        row.finish_reason = "stop"
    elif len(row.ids) >= row.sampling.max_tokens:
        row.finish_reason = "length"


def _says_stop(row: _Row, decode: Decode) -> bool:
    """Whether the last tokens complete a stop string; a token holds at least a byte, so few of them need decoding."""
    if not row.sampling.stop:
        return False
    window = max(len(text.encode()) for text in row.sampling.stop) + 8
    tail = decode(row.ids[-window:])
    return any(text in tail for text in row.sampling.stop)


def _reply(row: _Row, stop_ids: set[int], decode: Decode) -> Reply:
    written = row.ids[:-1] if row.ids[-1] in stop_ids else row.ids
    text = decode(written)
    cuts = [text.index(stop) for stop in row.sampling.stop if stop in text]
    return Reply(text[: min(cuts)] if cuts else text, len(row.ids), row.finish_reason or "length")
