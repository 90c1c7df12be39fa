"""An adapter that was trained before, trained on."""

from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError


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
