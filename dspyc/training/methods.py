"""What a method trains, and how its weights are written: an adapter, an adapter on a quantised base, or a whole model."""

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import ConfigError, ModelError
from ..models.weights import check, device_of, identity, load_model
from .config import TrainingConfig
from .files import write_json

_FUSED_ATTENTION_PAYS = 512  # tokens; on CPUs plain attention's backward is faster for shorter rows
_bases: ContextVar[dict[tuple[Any, ...], Any] | None] = ContextVar("bases", default=None)


def check_method(config: TrainingConfig, device: torch.device) -> None:
    """Raises ConfigError where this machine cannot train by the config's method."""
    if config.method != "qlora":
        return
    instead = "Here, method='lora' trains the same adapter on whole weights."
    if device.type != "cuda":
        raise ConfigError(f"method='qlora' needs a CUDA GPU, and the device is {device}.", hint=instead)
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "method='qlora' needs bitsandbytes, which is not installed.", hint=f"pip install 'dspyc[qlora]'. {instead}"
        )


@contextmanager
def one_base() -> Iterator[None]:
    """Adapters that are trained inside share one copy of the frozen tensors of their base; it is freed on the way out."""
    token = _bases.set({})
    try:
        yield
    finally:
        _bases.reset(token)


def prepare(folder: Path, config: TrainingConfig, device: str, longest: int) -> Any:
    """The model in `folder`, ready to train on rows of at most `longest` tokens.

    Weights that are trained are float32, so that small updates are not rounded away. The frozen base under an adapter is
    bfloat16 on a GPU (unless precision is "fp32") and float32 elsewhere; under qlora it has 4 or 8 bits.

    Raises:
        ConfigError: A setting that this model has no place for.
    """
    if config.method == "full":
        model = _load(folder, config, device, longest)
        _freeze(model, config.freeze_ratio)
    else:
        model = _base(folder, config, device, longest)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable() if hasattr(
            model, "activation_checkpointing_enable"
        ) else model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model if config.method == "full" else with_adapter(model, config)


def _base(folder: Path, config: TrainingConfig, device: str, longest: int) -> Any:
    """A base to put an adapter on. Inside `one_base` its tensors are those of the last one; its modules are its own."""
    held = _bases.get()
    plain = device_of(device).type == "cpu" and longest < _FUSED_ATTENTION_PAYS
    key = (identity(folder), device, config.precision == "fp32", config.bits, config.dropout, plain)
    if held is None:
        return _load(folder, config, device, longest)
    if key not in held:
        held.clear()
        held[key] = _load(folder, config, device, longest).requires_grad_(False)
    shared = held[key]
    tensors = [*shared.parameters(), *shared.buffers()]
    return copy.deepcopy(shared, {id(tensor): tensor for tensor in tensors})


def _load(folder: Path, config: TrainingConfig, device: str, longest: int) -> Any:
    if config.bits is not None:
        return _quantised(folder, config, device)
    halves = config.method == "lora" and config.precision != "fp32" and device_of(device).type == "cuda"
    changes = _dropout_settings(folder, config.dropout) if config.dropout is not None else {}
    model: Any = load_model(folder, device, "bfloat16" if halves else "float32", changes)
    if device_of(device).type == "cpu" and longest < _FUSED_ATTENTION_PAYS:
        _use_plain_attention(model)
    return model


def _quantised(folder: Path, config: TrainingConfig, device: str) -> Any:
    """The base with 4-bit NormalFloat or 8-bit weights: Dettmers et al., 2023, arXiv 2305.14314."""
    from peft import prepare_model_for_kbit_training
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    check(folder)
    bits: Any = {"load_in_8bit": True}
    if config.bits == 4:
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        bits["bnb_4bit_compute_dtype"] = torch.float32 if config.precision == "fp32" else torch.bfloat16
    settings = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.dropout is not None:
        settings.update(_dropout_settings(folder, config.dropout))
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=settings,
        quantization_config=cast(Any, BitsAndBytesConfig)(**bits),
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _dropout_settings(folder: Path, share: float) -> dict[str, float]:
    """The model's own dropout rates, whatever its architecture calls them, all at `share`."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    names = [
        n for n, v in found.items() if n.endswith(("dropout", "_pdrop", "dropout_prob")) and isinstance(v, float | int)
    ]
    if not names:
        raise ConfigError(
            f"`dropout` is {share:g}, and a {found['model_type']} model has no dropout of its own.",
            hint="Use embedding_dropout, or lora_dropout with an adapter.",
        )
    return dict.fromkeys(names, share)


def _freeze(model: Any, ratio: float) -> None:
    """Keep the bottom layers as they are, and with them the input embeddings (the output's too, where they are tied)."""
    model.requires_grad_(True)
    _, layers = _layers(model)
    kept = _frozen_layers(len(layers), ratio)
    for module in layers[:kept]:
        module.requires_grad_(False)
    if kept:
        model.get_input_embeddings().requires_grad_(False)


def _frozen_layers(count: int, ratio: float) -> int:
    """How many of `count` layers a share of them is."""
    frozen = int(ratio * count + 0.5)
    if ratio and not 0 < frozen < count:
        raise ConfigError(
            f"`freeze_ratio` is {ratio:g}, which keeps {frozen} of {count} layers.",
            hint=f"Use a share between {1 / count:.2f} and {(count - 1) / count:.2f}, or 0.",
        )
    return frozen


def _unfrozen(model: Any, config: TrainingConfig) -> tuple[str, ...]:
    """The full names of the target modules in the layers that are not frozen."""
    from transformers.pytorch_utils import Conv1D

    name, layers = _layers(model)
    kept = _frozen_layers(len(layers), config.freeze_ratio)
    found = []
    for place, layer in enumerate(layers[kept:], start=kept):
        for inner, module in layer.named_modules():
            wanted = config.target_modules == "all-linear" or inner.rpartition(".")[2] in config.target_modules
            if wanted and isinstance(module, torch.nn.Linear | Conv1D):
                found.append(f"{name}.{place}.{inner}")
    return tuple(found) or tuple(config.target_modules)


def _layers(model: Any) -> tuple[str, torch.nn.ModuleList]:
    """The decoder's layers and their full name: `model.layers`, `transformer.h`, …"""
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise ConfigError("The model's layers cannot be told apart.", hint="Leave freeze_ratio out.")


def with_adapter(model: Any, config: TrainingConfig) -> Any:
    """A fresh LoRA adapter on `model`, drawn from torch's generator.

    Raises:
        ConfigError: The model has no such target modules.
    """
    from peft import LoraConfig, get_peft_model

    targets = _unfrozen(model, config) if config.freeze_ratio else config.target_modules
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
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
    """Write what inference loads: the adapter, or the whole model with its tokenizer. `model` stays as it is.

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
    dtype, state = stored_dtype(base_folder), model.state_dict()
    # Tied tensors stay tied, and are written once.
    rounded = {t.data_ptr(): t.to(dtype) if t.is_floating_point() else t for t in state.values()}
    state = {name: rounded[tensor.data_ptr()] for name, tensor in state.items()}
    model.save_pretrained(str(folder), state_dict=state)
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(folder / "config.json", {**settings, "dtype": str(dtype).removeprefix("torch."), "use_cache": True})
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
