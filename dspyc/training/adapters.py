"""An adapter that was trained before, trained on."""

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from .config import TrainingConfig

_SAME = "Use the settings that it was trained with"


def check_continues(folder: Path, config: TrainingConfig) -> None:
    """Raises ConfigError where the adapter in `folder` is not of the kind, rank and scale that `config` asks for."""
    if config.method == "full":
        raise ConfigError(
            f"The method is 'full', and the model wears the adapter in {folder}.",
            hint="Use method='lora', or merge the adapter first: PeftModel.merge_and_unload(), save_pretrained(folder).",
        )
    facts = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    if facts.get("init_lora_weights") in (False, "gaussian"):
        facts["init_lora_weights"] = True  # unlike PEFT's other names, these leave the base as it is
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
        if facts.get(name, wanted) != wanted:
            raise ConfigError(
                f"The adapter in {folder} has another shape or scale than the one to train: {name} is {facts[name]!r}, not "
                f"{wanted!r}.",
                hint=f"{_SAME}: lora_rank, lora_alpha, use_rslora, use_dora.",
            )


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
            hint=f"{_SAME}: lora_rank, target_modules, freeze_ratio, use_dora.",
        )
    set_peft_model_state_dict(model, saved)


def _shape(tensors: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
