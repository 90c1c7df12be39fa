"""What a method trains, and how its weights are written: a LoRA adapter, or a whole model."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, ModelError
from ..models.weights import device_of, load_model
from .config import TrainingConfig
from .files import write_json

_FUSED_ATTENTION_PAYS = 512  # tokens; on CPUs plain attention's backward is faster for shorter rows


def prepare(folder: Path, config: TrainingConfig, device: str, longest: int) -> Any:
    """The model in `folder`, ready to train on rows of at most `longest` tokens.

    Weights that are trained are float32, so that small updates are not rounded away. The frozen base under an adapter is
    bfloat16 on a GPU (unless precision is "fp32") and float32 elsewhere.
    """
    halves = config.method == "lora" and config.precision != "fp32" and device_of(device).type == "cuda"
    model: Any = load_model(folder, device, "bfloat16" if halves else "float32")
    if device_of(device).type == "cpu" and longest < _FUSED_ATTENTION_PAYS:
        _use_plain_attention(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable() if hasattr(
            model, "activation_checkpointing_enable"
        ) else model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()  # type: ignore[no-untyped-call, unused-ignore]
    return with_adapter(model, config) if config.method == "lora" else model.requires_grad_(True)


def check_method(config: TrainingConfig, device: torch.device) -> None:
    """Raises ConfigError where this machine cannot train by the config's method."""


def with_adapter(model: Any, config: TrainingConfig) -> Any:
    """A fresh LoRA adapter on `model`, drawn from torch's generator.

    Raises:
        ConfigError: The model has no such target modules.
    """
    from peft import LoraConfig, get_peft_model

    targets = config.target_modules
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT adapts itself to GPT-2's transposed layers, and says so
            return get_peft_model(model, lora)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ConfigError(
            f"`target_modules` is {targets!r}, which this model does not have: {error}",
            hint=f"Its linear layers are {', '.join(names)}; 'all-linear' takes them all.",
        ) from error


def save_weights(model: Any, tokenizer: Any, base: str, base_folder: Path, folder: Path) -> None:
    """Write what inference loads: the adapter, or the whole model with its tokenizer. `model` is not trained any further.

    A whole model is written in the dtype that its base was stored in, so a 16-bit base gives 16-bit weights: the float32
    ones that were trained are rounded once, here, and everything that loads them afterwards sees the same numbers.
    """
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)  # an empty model card
        settings = folder / "adapter_config.json"
        facts = json.loads(settings.read_text("utf-8"))
        # PEFT writes sets in the order of a hash that differs by process; the same run shall write the same bytes.
        facts = {
            k: sorted(v) if isinstance(v, list) and all(isinstance(i, str) for i in v) else v for k, v in facts.items()
        }
        # The base by the name that the caller gave it, rather than by a path on this machine.
        write_json(settings, {**facts, "base_model_name_or_path": base})
        return
    model.config.use_cache = True
    model.to(stored_dtype(base_folder)).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most of the numbers in a model folder's safetensors files."""
    from safetensors import safe_open

    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    counts = dict.fromkeys(names, 0)
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (an opened file is no dict)
                part = opened.get_slice(key)
                counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + _size(part.get_shape())
    kind = max(names, key=lambda name: counts[name])
    if not counts[kind]:
        raise ModelError(f"The weights in {folder} are in none of {', '.join(names)}; they cannot be trained.")
    return names[kind]


def _size(shape: list[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _use_plain_attention(model: Any) -> None:
    try:
        model.set_attn_implementation("eager")
    except (AttributeError, ValueError):
        return  # an architecture with one implementation only
