"""The loss: weighted cross entropy of the tokens that are learned, and of no others."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .batching import rectangle
from .sharing import Tree

_CHUNK = 1 << 25  # logits that are held at once: 128 MiB of float32

Sums = tuple[torch.Tensor, torch.Tensor]


class Learner(torch.nn.Module):
    """A causal language model (a PEFT model included) as a function from rows to the sum of their losses.

    Most rows are prompt, and much of a
    small model's work is its output projection: where projecting the last hidden states gives the model's own logits (tried
    on real ids when this is made), only learned positions are projected. Models that scale their logits take the long way.
    """

    def __init__(
        self,
        model: Any,
        probe_ids: list[int],
        *,
        pad_id: int = 0,
        label_smoothing: float = 0.0,
        prompt_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.pad_id, self.label_smoothing, self.prompt_weight = pad_id, label_smoothing, prompt_weight
        self._find_parts(model)
        self.sparse = self._decoder is not None and self._same_logits(probe_ids)

    def forward(self, tree: Tree) -> Sums:
        """(the sum of weight x loss in nats, the sum of weights) of a tree's rows, both scalars."""
        found = self._walk(tree, None)
        return torch.stack([loss for loss, _ in found]).sum(), torch.stack([weight for _, weight in found]).sum()

    def learn(self, tree: Tree, scaled: Callable[[torch.Tensor], torch.Tensor], precision: Any) -> torch.Tensor:
        """Add the gradients of `scaled(sum of losses)` to the parameters', a batch of rows at a time; returns the sum.

        Batches behind a trunk add to the gradients of its keys and values, and the trunk's own backward pass runs once, at
        the end: what is held at a time is the trunk and one batch.

        Args:
            precision: Makes the autocast context of a forward pass.
        """
        return self._learn(tree, None, scaled, precision)

    def _learn(self, tree: Tree, before: DynamicCache | None, scaled: Any, precision: Any) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        grown: list[torch.Tensor] = []
        held = before
        if tree.ids:
            with precision():
                trunk = self._grow(tree, before)
            grown = [tensor for layer in cast(list[Any], trunk.layers) for tensor in (layer.keys, layer.values)]
            held = _fork(trunk, 1, detach=True)
        if tree.rows:
            with precision():
                loss, _ = self._rows(tree, held)
            scaled(loss).backward()
            total += loss.detach().float()
        for branch in tree.branches:
            total += self._learn(branch, held, scaled, precision)
        if grown and held is not None:
            leaves = [tensor for layer in cast(list[Any], held.layers) for tensor in (layer.keys, layer.values)]
            pairs = [(t, leaf.grad) for t, leaf in zip(grown, leaves, strict=True) if t.requires_grad]
            if pairs:  # an adapter on queries alone leaves a first layer's keys and values without any
                torch.autograd.backward([t for t, _ in pairs], [gradient for _, gradient in pairs])
        return total

    def _walk(self, tree: Tree, before: DynamicCache | None) -> list[Sums]:
        if tree.ids:
            before = self._grow(tree, before)
        sums = [self._rows(tree, before)] if tree.rows else []
        return sums + [found for branch in tree.branches for found in self._walk(branch, before)]

    def _grow(self, tree: Tree, before: DynamicCache | None) -> DynamicCache:
        """Keys and values of what stands before a tree's rows."""
        cache = _fork(before, 1)
        self._run(torch.tensor([tree.ids], device=self.device), cache)
        return cache

    def _rows(self, tree: Tree, before: DynamicCache | None) -> Sums:
        prompt_weight = self.prompt_weight if self.training else 0.0
        ids, weights = rectangle(tree.rows, tree.end, self.pad_id, prompt_weight, self.device)
        states = self._run(ids, _fork(before, len(tree.rows)) if before is not None else None)[:, :-1]
        chosen = weights[:, 1:] > 0  # (batch, time - 1)
        return self._sums(states[chosen], ids[:, 1:][chosen], weights[:, 1:][chosen])

    def _run(self, ids: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        """Hidden states where they can be projected later, else logits; (batch, time, ·). `cache` is extended."""
        kept: dict[str, Any] = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
        if self.sparse:
            return cast(Any, self._decoder)(input_ids=ids, **kept).last_hidden_state  # type: ignore[no-any-return]
        return self.model(input_ids=ids, **kept).logits  # type: ignore[no-any-return]

    def _sums(self, states: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Sums:
        """Of (n, ·) states with n targets and weights, a chunk of positions at a time where the vocabulary is large."""
        smoothing = self.label_smoothing if self.training else 0.0
        project = self._head if self.sparse else torch.nn.Identity()

        def loss(states: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            logits = cast(Callable[..., torch.Tensor], project)(states).float()
            losses = cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
            return (losses * weights).sum()

        size = max(1, _CHUNK // self._vocabulary)
        if not self.sparse or len(targets) <= size:
            return loss(states, targets, weights), weights.sum()
        chunks = zip(*(torch.split(part, size) for part in (states, targets, weights)), strict=True)
        sums = [cast(torch.Tensor, checkpoint(loss, *chunk, use_reentrant=False)) for chunk in chunks]
        return torch.stack(sums).sum(), weights.sum()

    @property
    def device(self) -> torch.device:
        return cast(torch.device, next(self.model.parameters()).device)

    def _find_parts(self, model: Any) -> None:
        """What gives the hidden states, and what projects them onto the vocabulary, where they can be told apart."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        decoder = getattr(base, base.base_model_prefix, None) if base.base_model_prefix else None
        head = base.get_output_embeddings()
        found = isinstance(decoder, torch.nn.Module) and decoder is not base and isinstance(head, torch.nn.Module)
        # Tuples, so that the parts are not registered as modules a second time.
        self._parts = (decoder, head) if found else (None, None)
        self._vocabulary = int(getattr(head, "out_features", 0) or base.config.get_text_config().vocab_size)

    @property
    def _decoder(self) -> torch.nn.Module | None:
        return self._parts[0]

    def _head(self, states: torch.Tensor) -> torch.Tensor:
        cap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)  # Gemma 2
        logits = cast(torch.Tensor, cast(Any, self._parts[1])(states))
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @torch.no_grad()
    def _same_logits(self, ids: list[int]) -> bool:
        inputs = {"input_ids": torch.tensor([ids], device=self.device), "use_cache": False}
        training = self.model.training
        self.model.eval()
        try:
            whole = self.model(**inputs).logits
            hidden = getattr(cast(Any, self._decoder)(**inputs), "last_hidden_state", None)
            return hidden is not None and torch.equal(self._head(hidden), whole)
        finally:
            self.model.train(training)


def _fork(cache: DynamicCache | None, rows: int, *, detach: bool = False) -> DynamicCache:
    """A cache that begins with what `cache` holds, for so many rows; it grows without changing `cache`.

    With `detach` its tensors are leaves that collect gradients.
    """
    forked = DynamicCache()
    for layer in cast(list[Any], cache.layers if cache is not None else []):
        copy: Any = cast(Any, DynamicLayer)()
        keys, values = (tensor.expand(rows, -1, -1, -1) for tensor in (layer.keys, layer.values))
        if detach:
            keys, values = (t.detach().requires_grad_(t.requires_grad) for t in (keys, values))
        copy.lazy_initialization(keys, values)
        copy.keys, copy.values = keys, values
        forked.layers.append(copy)
    return forked
