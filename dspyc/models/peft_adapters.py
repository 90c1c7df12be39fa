"""Adapters that do more than add to linear layers (DoRA, biases, embeddings, whole modules): peft wears them, one at a time.

Each is put around a twin of the base: modules of its own over the same tensors. What peft writes into its base (biases that
were saved, the weights that PiSSA leaves) it writes into copies. So the base and the other adapters stay as they are, and an
adapter that is refused leaves nothing behind.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from .lora import KEY, PLAIN_STARTS
from .weights import tensors_in

_PREFIX = "base_model.model."
_REFUSED = {
    "alora_invocation_tokens": "it acts from its invocation tokens on (aLoRA), not on the whole prompt",
    "layer_replication": "it repeats layers of its base (layer_replication)",
}


class PeftAdapters:
    """Adapters that peft puts around twins of one base, `bytes` in all; they act within `wearing` only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.bytes = 0
        self._twins: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._twins

    def load(self, name: str, folder: Path) -> None:
        """Put the adapter in `folder` around a twin of the base.

        Raises:
            ModelError: It does not fit the base, or is of a kind that cannot share one; nothing has changed then.
        """
        from peft import LoraConfig, PeftModel

        try:
            config = LoraConfig.from_pretrained(str(folder))
            for setting, why in _REFUSED.items():
                if getattr(config, setting, None):
                    raise ModelError(
                        f"The adapter in {folder} cannot be loaded beside others: {why}.",
                        hint="Train one without that setting.",
                    )
            config.inference_mode = True
            keys = list(tensors_in(folder / "adapter_model.safetensors"))
            twin = self._twin(config, keys)
            worn = PeftModel(twin, config)
            tensors = dict(twin.named_parameters(remove_duplicate=False))
            for key in keys:
                if (written := tensors.get(key.removeprefix(_PREFIX))) is not None:  # the base's own
                    written.data = written.data.clone()
            found = worn.load_adapter(str(folder), "default")
            if differing := [*found.missing_keys, *found.unexpected_keys]:
                raise ValueError(f"{min(differing)} is in one of them only.")
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"The adapter in {folder} does not fit the model in {self._model.name_or_path}: {error}",
                hint="Its adapter_config.json names the base that it was trained on.",
            ) from error
        self._twins[name] = twin.eval()
        self.bytes += self._own_bytes(twin)

    def drop(self, name: str) -> None:
        """Free an adapter."""
        self.bytes -= self._own_bytes(self._twins.pop(name))

    @contextmanager
    def wearing(self, name: str) -> Iterator[None]:
        """The forward pass inside is that of the base with this adapter."""
        own = self._model._modules
        self._model._modules = self._twins[name]._modules
        try:
            yield
        finally:
            self._model._modules = own

    def _twin(self, config: Any, keys: list[str]) -> Any:
        """A copy of the base that shares its tensors, but for the weights that peft replaces while it begins the adapter."""
        replacing = config.init_lora_weights not in PLAIN_STARTS or getattr(config, "kasa_config", None)
        layers = {match[1] for key in keys if replacing and (match := KEY.fullmatch(key))}
        memo: dict[int, Any] = {
            id(part.config): part.config for part in self._model.modules() if hasattr(part, "config")
        }
        for name, tensor in self._model.named_parameters(remove_duplicate=False):
            if name.rpartition(".")[0] in layers:
                memo[id(tensor)] = torch.nn.Parameter(tensor.data.clone(), requires_grad=False)
            elif id(tensor) not in memo:
                memo[id(tensor)] = torch.nn.Parameter(tensor.data, requires_grad=False)
        return copy.deepcopy(self._model, memo)

    def _own_bytes(self, twin: Any) -> int:
        shared = {tensor.data_ptr() for tensor in self._model.parameters()}
        return sum(tensor.nbytes for tensor in twin.parameters() if tensor.data_ptr() not in shared)
