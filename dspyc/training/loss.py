"""The loss: weighted cross entropy of the tokens that are learned, and of no others."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .attention import NAME, prompt_cache
from .batching import rectangle
from .config import TrainingConfig
from .precision import Precision
from .projection import loss_in_chunks, positions
from .rows import EncodedRow
from .sharing import Tree

Sums = tuple[torch.Tensor, torch.Tensor]


class Learner(torch.nn.Module):
    """A causal language model (a PEFT model included) as a function from rows to the sum of their losses.

    Most of a row is prompt, and much of a small model's work is its output projection: where projecting the last hidden
    states gives the model's own logits (tried on real ids when this is made), only learned positions are projected. Models
    that scale their logits take the long way.

    Rows behind a trunk read its keys and values each from a copy of its own, or, after `attend_in_place(True)`, where they
    are.
    """

    in_place = False
    divided = False  # whether a process holds a part of the model only (shards.py)
    passes = ("_grow", "_rows")  # the methods that call the model

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
        self._own_attention = NAME
        self._find_parts(model)
        self.sparse = self._decoder is not None and self._same_logits(probe_ids)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, rows: Sequence[EncodedRow], config: TrainingConfig) -> "Learner":
        """What a run trains by its config on its rows."""
        pad = tokenizer.pad_token_id
        return cls(
            model,
            rows[0].ids[:64],
            pad_id=tokenizer.eos_token_id if pad is None else pad,
            label_smoothing=config.label_smoothing,
            prompt_weight=config.prompt_loss_weight,
        )

    def forward(self, tree: Tree) -> Sums:
        """(the sum of weight x loss in nats, the sum of weights) of a tree's rows, both scalars."""
        found = self._walk(tree, None)
        return torch.stack([loss for loss, _ in found]).sum(), torch.stack([weight for _, weight in found]).sum()

    def learn_all(self, trees: Sequence[Tree], weight: float, precision: Precision, scaler: Any = None) -> torch.Tensor:
        """Add the gradients of the trees' losses over `weight`, scaled by `scaler` if there is one; returns that mean."""

        def scaled(loss: torch.Tensor) -> torch.Tensor:
            return loss / weight if scaler is None else cast(torch.Tensor, scaler.scale(loss / weight))

        total = torch.zeros((), device=self.device)
        for tree in trees:
            total += self.learn(tree, scaled, precision)
        return total / weight

    def learn(
        self,
        tree: Tree,
        scaled: Callable[[torch.Tensor], torch.Tensor],
        precision: Precision,
        before: DynamicCache | None = None,
    ) -> torch.Tensor:
        """Add the gradients of `scaled(sum of losses)` to the parameters', a batch of rows at a time; returns the sum.

        Batches behind a trunk add to the gradients of its keys and values, and the trunk's own backward pass runs once, at
        the end: what is held at a time is the trunk and one batch.

        Args:
            before: Keys and values of the trunk that the tree grows on; they collect gradients.
        """
        total = torch.zeros((), device=self.device)
        grown: list[torch.Tensor] = []
        held = before
        if tree.ids:
            with precision():
                trunk, states = self._grow(tree, before)
            grown = [tensor for layer in cast(list[Any], trunk.layers) for tensor in (layer.keys, layer.values)]
            held = _fork(trunk, 1, detach=True)
        if tree.rows:
            with precision():
                loss, _ = self._rows(tree, held)
            scaled(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().float()
        for branch in tree.branches:
            total += self.learn(branch, scaled, precision, held)
        if grown and held is not None:
            leaves = [tensor for layer in cast(list[Any], held.layers) for tensor in (layer.keys, layer.values)]
            pairs = [(t, leaf.grad) for t, leaf in zip(grown, leaves, strict=True) if t.requires_grad]
            if states is not None:
                pairs.append((states, torch.zeros_like(states)))
            if pairs:  # an adapter on queries alone leaves a first layer's keys and values without any
                torch.autograd.backward([t for t, _ in pairs], [gradient for _, gradient in pairs])
        return total

    def attend_in_place(self, on: bool) -> None:
        """Switch between our attention to shared prompts (attention.py) and the model's own.

        Raises NotImplementedError where the model takes no other than its own.
        """
        if on != self.in_place:
            base = _base_of(self.model)
            before = base.config._attn_implementation
            base.set_attn_implementation(NAME if on else self._own_attention)
            if base.config._attn_implementation == before:
                raise NotImplementedError(f"{type(base).__name__} takes no attention but its own")
            self._own_attention, self.in_place = before, on

    def _walk(self, tree: Tree, before: DynamicCache | None) -> list[Sums]:
        if tree.ids:
            before, _ = self._grow(tree, before)
        sums = [self._rows(tree, before)] if tree.rows else []
        return sums + [found for branch in tree.branches for found in self._walk(branch, before)]

    def _grow(self, tree: Tree, before: DynamicCache | None) -> tuple[DynamicCache, torch.Tensor | None]:
        """Keys and values of what stands before a tree's rows.

        The hidden states too, where the model is divided: a layer's parts are gathered again once its output gets a gradient.
        """
        cache = prompt_cache(before, self._layers, continued=True) if self.in_place else _fork(before, 1)
        states = self._run(torch.tensor([tree.ids], device=self.device), cache)
        return cache, states if self.divided and states.requires_grad else None

    def _rows(self, tree: Tree, before: DynamicCache | None) -> Sums:
        prompt_weight = self.prompt_weight if self.training else 0.0
        ids, weights = rectangle(tree.rows, tree.end, self.pad_id, prompt_weight, self.device)
        states = self._run(ids, self._behind(before, len(tree.rows)) if before is not None else None)[:, :-1]
        chosen = weights[:, 1:] > 0  # (batch, time - 1)
        return self._sums(states[chosen], ids[:, 1:][chosen], weights[:, 1:][chosen])

    def _behind(self, before: DynamicCache, rows: int) -> DynamicCache:
        return prompt_cache(before, self._layers, continued=False) if self.in_place else _fork(before, rows)

    def _run(self, ids: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        """Hidden states where they can be projected later, else logits; (batch, time, ·). `cache` is extended."""
        kept: dict[str, Any] = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
        if self.in_place:
            kept["prompt"] = cache
        if self.sparse:
            return cast(Any, self._decoder)(input_ids=ids, **kept).last_hidden_state  # type: ignore[no-any-return]
        return self.model(input_ids=ids, **kept).logits  # type: ignore[no-any-return]

    def _sums(self, states: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Sums:
        """Of (n, ·) states with n targets and weights, a chunk of positions at a time where the vocabulary is large."""
        smoothing = self.label_smoothing if self.training else 0.0

        def loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            logits = self._capped(logits) if self.sparse else logits
            losses = cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)
            return (losses * weights).sum()

        if not self.sparse:
            return loss(states, targets, weights), weights.sum()
        head = cast(torch.nn.Module, self._parts[1])
        size = positions(self._vocabulary, states.shape[-1], states.device)
        if len(targets) <= size:
            return loss(head(states), targets, weights), weights.sum()
        return loss_in_chunks(loss, head, size, states, targets, weights), weights.sum()

    @property
    def device(self) -> torch.device:
        return cast(torch.device, next(self.model.parameters()).device)

    def _find_parts(self, model: Any) -> None:
        """What gives the hidden states, and what projects them onto the vocabulary, where they can be told apart."""
        base = _base_of(model)
        decoder = getattr(base, base.base_model_prefix, None) if base.base_model_prefix else None
        head = base.get_output_embeddings()
        found = isinstance(decoder, torch.nn.Module) and decoder is not base and isinstance(head, torch.nn.Module)
        # Tuples, so that the parts are not registered as modules a second time.
        self._parts = (decoder, head) if found else (None, None)
        self._layers = int(base.config.get_text_config().num_hidden_layers)
        self._vocabulary = int(getattr(head, "out_features", 0) or base.config.get_text_config().vocab_size)

    @property
    def _decoder(self) -> torch.nn.Module | None:
        return self._parts[0]

    def _capped(self, logits: torch.Tensor) -> torch.Tensor:
        cap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @torch.no_grad()
    def _same_logits(self, ids: list[int]) -> bool:
        inputs = {"input_ids": torch.tensor([ids], device=self.device), "use_cache": False}
        training = self.model.training
        self.model.eval()
        try:
            whole = self.model(**inputs).logits
            hidden = getattr(cast(Any, self._decoder)(**inputs), "last_hidden_state", None)
            return hidden is not None and torch.equal(self._capped(cast(Any, self._parts[1])(hidden)), whole)
        finally:
            self.model.train(training)


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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
