"""An adapter that was trained before, trained on."""

import re
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, ModelError
from ..files import read_json
from ..models.weights import tensors_in
from .config import TrainingConfig

_ITS_OWN = "lora_rank, lora_alpha, target_modules, freeze_ratio, use_rslora, use_dora"
_FROZEN = re.compile(r".*\(([\d|]+)\)\\\.\.\*")  # the layers in what `freeze_ratio` has PEFT exclude


def continuing(folder: Path, config: TrainingConfig, base: Path) -> TrainingConfig:
    """`config` for training the adapter in `folder` further: with its rank, scale and modules, where `config` names none.

    Args:
        base: The folder of the model that the adapter is on.

    Raises:
        ConfigError: The adapter is not of the kind, rank, scale and modules that `config` names.
        ModelError: The folder holds no adapter.
    """
    if config.method == "full":
        raise ConfigError(
            f"The method is 'full', and the model wears the adapter in {folder}.",
            hint="Use method='lora', or merge the adapter first: PeftModel.merge_and_unload(), save_pretrained(folder).",
        )
    facts = _facts(folder)
    own = {"lora_rank": facts["r"], **{name: facts[name] for name in ("lora_alpha", "use_rslora", "use_dora")}}
    modules, layers = facts["target_modules"], _layers(base)
    facts["freeze_ratio"] = frozen = _frozen_share(facts["exclude_modules"], layers)
    if isinstance(modules, list):
        own["target_modules"] = _short(modules, layers, frozen)
    if isinstance(frozen, float):
        own["freeze_ratio"] = frozen
    kept = {name: value for name, value in own.items() if name not in config.model_fields_set}
    config = TrainingConfig(**(config.model_dump(exclude_unset=True) | kept))
    asked: dict[str, Any] = {
        "peft_type": "LORA",
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "alpha_pattern": {},
        "init_lora_weights": True,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "bias": "none",
        **dict.fromkeys(("rank_pattern", "layers_to_transform", "modules_to_save")),
        "freeze_ratio": frozen if _same_layers(frozen, config.freeze_ratio, layers) else config.freeze_ratio,
    }
    if isinstance(modules, str):  # a pattern; what was "all-linear" is a list in an adapter
        asked["target_modules"] = config.target_modules
    elif "target_modules" not in kept and config.target_modules != "all-linear" and (adapted := _adapted(folder)):
        asked["target_modules"] = named = list(config.target_modules)
        facts["target_modules"] = named if _are(adapted, named) else sorted({n.rpartition(".")[2] for n in adapted})
    for name, wanted in asked.items():
        if (facts[name] or None) != (wanted or None):
            raise ConfigError(
                f"The adapter in {folder} has another shape or scale than the one to train: {name} is {facts[name]!r}, not "
                f"{wanted!r}.",
                hint=f"Leave these settings out, or name its own: {_ITS_OWN}.",
            )
    return config


def _short(modules: list[str], layers: int | None, frozen: Any) -> tuple[str, ...]:
    """The names of an adapter's modules; only their ends, where these stand for the same in all layers that are not frozen."""
    ends = {name.rpartition(".")[2] for name in modules}
    trained = layers - round(frozen * layers) if layers and isinstance(frozen, float) else None
    return tuple(sorted(ends if len(modules) == len(ends) * (trained or 0) else modules))


def _adapted(folder: Path) -> set[str]:
    """The full names of the modules that the adapter's weights are for."""
    if not (file := folder / "adapter_model.safetensors").is_file():
        return set()
    return {name.partition(".lora_")[0] for name in tensors_in(file) if ".lora_" in name}


def _are(modules: set[str], named: list[str]) -> bool:
    """Whether names, which may be ends of full ones, are those of these modules."""
    return all(any(module.endswith(f".{name}") for name in named) for module in modules) and all(
        any(module.endswith(f".{name}") for module in modules) for name in named
    )


def _layers(base: Path) -> int | None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True).get_text_config()
    return getattr(config, "num_hidden_layers", None)


def _frozen_share(excluded: Any, layers: int | None) -> Any:
    """The `freeze_ratio` that excludes these modules from an adapter, or `excluded` where none does."""
    if not excluded:
        return 0.0
    found = _FROZEN.fullmatch(excluded) if isinstance(excluded, str) else None
    return len(found[1].split("|")) / layers if found and layers else excluded


def _same_layers(one: Any, other: float, layers: int | None) -> bool:
    return isinstance(one, float) and (
        one == other or (layers is not None and round(one * layers) == int(other * layers + 0.5))
    )


def _facts(folder: Path) -> dict[str, Any]:
    """What PEFT wrote of an adapter, with PEFT's defaults for what an older version did not write."""
    from peft import LoraConfig

    file, inner = folder / "adapter_config.json", folder / "final_model"
    try:
        found = read_json(file)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        output = (inner / file.name).is_file()
        raise ModelError(
            f"{folder} holds no adapter: its {file.name} is missing, or is no JSON object.",
            hint=f"It is a training's output: pass {inner}."
            if output
            else "Pass the folder that an adapter was saved in.",
        )
    facts = {**LoraConfig().to_dict(), **found}
    if facts["init_lora_weights"] in (False, "gaussian"):
        facts["init_lora_weights"] = True  # unlike PEFT's other names, these leave the base as it is
    return facts


def continue_adapter(model: Any, folder: Path) -> None:
    """Put the LoRA weights in `folder` into `model`, whose fresh adapter has the same shape.

    Raises:
        ConfigError: The adapter's rank or target modules are not those of the model's.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    saved = load_peft_weights(str(folder), device="cpu")
    own = get_peft_model_state_dict(model)
    differing = sorted(name for name in saved.keys() | own.keys() if _shape(saved, name) != _shape(own, name))
    if differing:
        raise ConfigError(
            f"The adapter in {folder} has another shape than the one to train: {differing[0]} differs.",
            hint="Use the settings that it was trained with: lora_rank, target_modules, freeze_ratio, use_dora.",
        )
    set_peft_model_state_dict(model, saved)


def _shape(tensors: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
