"""An adapter that was trained before, trained on."""

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, ModelError
from .config import TrainingConfig

_ITS_OWN = "lora_rank, lora_alpha, use_rslora, use_dora"


def continuing(folder: Path, config: TrainingConfig) -> TrainingConfig:
    """`config` for training the adapter in `folder` further: with its rank and scale, where `config` names none.

    Raises:
        ConfigError: The adapter is not of the kind, rank and scale that `config` names.
        ModelError: The folder holds no adapter.
    """
    if config.method == "full":
        raise ConfigError(
            f"The method is 'full', and the model wears the adapter in {folder}.",
            hint="Use method='lora', or merge the adapter first: PeftModel.merge_and_unload(), save_pretrained(folder).",
        )
    facts = _facts(folder)
    own = {"lora_rank": facts["r"], **{name: facts[name] for name in ("lora_alpha", "use_rslora", "use_dora")}}
    kept = {name: value for name, value in own.items() if name not in config.model_fields_set}
    config = TrainingConfig(**(config.model_dump(exclude_unset=True) | kept))
    asked = {
        "peft_type": "LORA",
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "alpha_pattern": {},
        "init_lora_weights": True,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
    }
    for name, wanted in asked.items():
        if facts[name] != wanted:
            raise ConfigError(
                f"The adapter in {folder} has another shape or scale than the one to train: {name} is {facts[name]!r}, not "
                f"{wanted!r}.",
                hint=f"Leave these settings out, or name its own: {_ITS_OWN}.",
            )
    return config


def _facts(folder: Path) -> dict[str, Any]:
    """What PEFT wrote of an adapter, with PEFT's defaults for what an older version did not write."""
    from peft import LoraConfig

    file, inner = folder / "adapter_config.json", folder / "final_model"
    try:
        found = json.loads(file.read_text("utf-8"))
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
