"""LoRA adapters beside the base's layers: every token of a step gets what its own row's adapter adds.

The base is never changed: a hook on each layer that some adapter targets adds `B A x` to the layer's output, for the tokens
that belong to that adapter. So any mixture of adapters runs in one forward pass, and loading or dropping one touches no other.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import ModelError
from .weights import adapter_settings

KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # that leave the base's weights as they are
_BEYOND = (
    "use_dora",
    "modules_to_save",
    "target_parameters",
    "layer_replication",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
)


class Pair(NamedTuple):
    """A layer's two factors: `down` (rank, inputs), and `up` (outputs, rank) with the scaling in it."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


class Adapters:
    """The adapters of one base model that are loaded now, by name, `bytes` in all; any thread may read that."""

    def __init__(self, model: Any) -> None:
        self.bytes = 0
        self._model = model
        self._layers: dict[str, dict[str, Pair]] = {}  # layer -> adapter -> its factors
        self._hooks: dict[str, list[Any]] = {}
        self._names: set[str] = set()
        self._routes: list[tuple[str, torch.Tensor | None]] = []
        self._kept: torch.Tensor | None = None  # the tokens that the output projection reads; None for all

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def load(self, name: str, folder: Path) -> None:
        """Put the adapter in `folder` beside the base.

        Raises:
            ModelError: It does not fit the base; nothing has changed then.
        """
        pairs = self._read(folder)
        for path, pair in pairs.items():
            self._layers.setdefault(path, {})[name] = pair
            self.bytes += pair.bytes
            if path not in self._hooks:
                self._hooks[path] = self._hook(path)
        self._names.add(name)

    def drop(self, name: str) -> None:
        """Free an adapter. No step may be under way."""
        self._names.discard(name)
        for path, layer in list(self._layers.items()):
            pair = layer.pop(name, None)
            self.bytes -= pair.bytes if pair is not None else 0
            if not layer:
                del self._layers[path]
                for hook in self._hooks.pop(path):
                    hook.remove()

    @contextmanager
    def routed(self, owners: Sequence[tuple[str | None, int]]) -> Iterator[None]:
        """The forward pass inside belongs to these adapters: (name, None being the bare base; so many tokens) in order."""
        names = {name for name, _ in owners}
        if names == {None}:
            yield
            return
        if len(names) == 1:
            self._routes = [(name, None) for name in names if name is not None]
        else:
            places: dict[str | None, list[int]] = {}
            at = 0
            for name, count in owners:
                places.setdefault(name, []).extend(range(at, at + count))
                at += count
            device = self._model.device
            self._routes = [(name, torch.tensor(at, device=device)) for name, at in places.items() if name is not None]
        try:
            yield
        finally:
            self._routes = []

    def _hook(self, path: str) -> list[Any]:
        layer = self._model.get_submodule(path)
        is_output = layer is self._model.get_output_embeddings()

        def add(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            for name, tokens in self._routes:
                pair = self._layers[path].get(name)
                if pair is None:
                    continue
                if tokens is None:
                    output = output + _added(pair, args[0], output.dtype)
                    continue
                if is_output and self._kept is not None:
                    tokens = torch.isin(self._kept, tokens).nonzero()[:, 0]
                # Some layers read (tokens, size), most of them (1, tokens, size).
                given, rows = args[0].flatten(0, -2)[tokens], output.flatten(0, -2)
                output = rows.index_add(0, tokens, _added(pair, given, output.dtype)).view(output.shape)
            return output

        def note(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._kept = kwargs.get("logits_to_keep")

        noting = [self._model.register_forward_pre_hook(note, with_kwargs=True)] if is_output else []
        return [layer.register_forward_hook(add), *noting]

    def _read(self, folder: Path) -> dict[str, Pair]:
        from safetensors.torch import load_file

        config = adapter_settings(folder)
        modules = dict(self._model.named_modules())
        device, dtype = self._model.device, self._model.dtype
        halves: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(folder / "adapter_model.safetensors").items():
            match = KEY.fullmatch(key)
            if match is None or match[1] not in modules:
                raise _misfit(folder, self._model, f"the base has no layer for {key}")
            halves.setdefault(match[1], {})[match[2]] = tensor.to(device, dtype)
        found = {}
        for path, half in halves.items():
            if set(half) != {"A", "B"} or half["A"].ndim != 2 or half["B"].ndim != 2:
                raise _misfit(folder, self._model, f"its factors for {path} are no two matrices")
            sizes = _sizes(modules[path])
            given = (half["A"].shape[1], half["B"].shape[0])
            if sizes != given or half["A"].shape[0] != half["B"].shape[1]:
                raise _misfit(folder, self._model, f"{path} takes {sizes} inputs and outputs, its factors {given}")
            scaling = _scaling(config, path, half["A"].shape[0])
            found[path] = Pair(half["A"].contiguous(), (half["B"] * scaling).contiguous())
        if not found:
            raise _misfit(folder, self._model, "it holds no factors")
        return found


def is_plain(folder: Path) -> bool:
    """Whether an adapter only adds two factors to linear layers, so that it can share a step with others."""
    config = adapter_settings(folder)
    if any(config.get(name) for name in _BEYOND) or config.get("bias", "none") != "none":
        return False
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        return False
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as opened:
        return all(KEY.fullmatch(key) for key in opened.keys())  # noqa: SIM118 (no mapping)


def _added(pair: Pair, given: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (given @ pair.down.T @ pair.up.T).to(dtype)


def _scaling(config: dict[str, Any], path: str, rank: int) -> float:
    alpha = float(config.get("lora_alpha") or rank)
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):  # as peft reads it
            alpha = float(other)
            break
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _sizes(module: Any) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, torch's or GPT-2's."""
    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None:
        return int(weight.shape[0]), int(weight.shape[1])
    return None


def _misfit(folder: Path, model: Any, reason: str) -> ModelError:
    return ModelError(
        f"The adapter in {folder} does not fit the model in {model.name_or_path}: {reason}.",
        hint="Its adapter_config.json names the base that it was trained on.",
    )
