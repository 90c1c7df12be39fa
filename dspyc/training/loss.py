"""The loss: weighted cross entropy of the tokens that are learned, and of no others."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .batching import Batch


class CausalLoss:
    """Sums of weighted next-token losses under a causal language model (a PEFT model included).

    Most rows are prompt, and most of a small model's work is its output projection. Where projecting the last hidden
    states gives exactly the model's own logits (tried on real ids when this is made), it is done for the learned positions
    only. Models that cap, scale or otherwise change their logits take the plain path.
    """

    def __init__(self, model: torch.nn.Module, probe_ids: list[int], label_smoothing: float = 0.0) -> None:
        self.model = model
        self.label_smoothing = label_smoothing
        self._decoder, self._head = _parts(model)
        self.sparse = self._decoder is not None and self._same_logits(probe_ids)

    def __call__(self, batch: Batch, *, label_smoothing: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(the sum of weight x loss in nats, the sum of weights), both scalars."""
        chosen = batch["weights"][:, 1:]
        learned = chosen > 0  # (batch, time - 1)
        weights, targets = chosen[learned], batch["input_ids"][:, 1:][learned]
        logits = self._logits(batch, learned).float()  # (learned tokens, vocabulary)
        smoothing = self.label_smoothing if label_smoothing is None else label_smoothing
        losses = cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        return (losses * weights).sum(), weights.sum()

    def _logits(self, batch: Batch, learned: torch.Tensor) -> torch.Tensor:
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if self.sparse:
            hidden = self._decoder(**inputs, use_cache=False).last_hidden_state[:, :-1]  # type: ignore[misc]
            return self._head(hidden[learned])  # type: ignore[no-any-return, misc]
        return self.model(**inputs, use_cache=False).logits[:, :-1][learned]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _same_logits(self, ids: list[int]) -> bool:
        device = next(self.model.parameters()).device
        inputs = {"input_ids": torch.tensor([ids], device=device), "use_cache": False}
        training = self.model.training
        self.model.eval()
        try:
            whole = self.model(**inputs).logits
            hidden = getattr(self._decoder(**inputs), "last_hidden_state", None)  # type: ignore[misc]
            return hidden is not None and torch.equal(self._head(hidden), whole)  # type: ignore[misc]
        finally:
            self.model.train(training)


def _parts(model: Any) -> tuple[torch.nn.Module | None, torch.nn.Module | None]:
    """(what gives the hidden states, what projects them onto the vocabulary); (None, None) where they cannot be told."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(base, base.base_model_prefix, None) if base.base_model_prefix else None
    head = base.get_output_embeddings()
    if not isinstance(decoder, torch.nn.Module) or decoder is base or not isinstance(head, torch.nn.Linear):
        return None, None
    return decoder, head
