"""What a method trains, and how its weights are written: an adapter, an adapter on a quantised base, or a whole model."""

import copy
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.functional import dropout

from ..errors import ConfigError, ModelError
from ..files import read_json, write_json
from ..models.weights import device_of, identity, load_model, tensors_in, weight_files
from .config import TrainingConfig
from .precision import frozen_dtype

_FUSED_ATTENTION_PAYS = 512  # tokens of a row
_BITSANDBYTES = "0.48.0"  # the first whose 8-bit models transformers moves
_RATE = re.compile(r".*(dropout|_pdrop|dropout_prob)")  # what architectures call their dropout
_bases: ContextVar[dict[tuple[Any, ...], Any] | None] = ContextVar("bases", default=None)


def check_method(config: TrainingConfig, device: torch.device) -> None:
    """Raises ConfigError where this machine cannot train by the config's method."""
    if config.method != "qlora":
        return
    from transformers.utils.import_utils import is_bitsandbytes_available

    instead = "Here, method='lora' trains the same adapter on whole weights."
    # bitsandbytes 0.50 multiplies on CPUs too, but after an evaluation its 4-bit gradients are wrong where the CPU has
    # AVX512-BF16 (weights stay packed for inference), and 8 bits do not go with DoRA.
    if device.type != "cuda":
        raise ConfigError(f"method='qlora' needs a CUDA GPU, and the device is {device}.", hint=instead)
    if not is_bitsandbytes_available(_BITSANDBYTES):
        raise ConfigError(
            f"method='qlora' needs bitsandbytes, at least {_BITSANDBYTES}, which is not installed.",
            hint=f"pip install 'dspyc[qlora]'. {instead}",
        )


@contextmanager
def one_base() -> Iterator[None]:
    """Inside this context, adapters share one copy of their base's frozen tensors; it is freed at the end."""
    token = _bases.set({})
    try:
        yield
    finally:
        _bases.reset(token)


def prepare(folder: Path, config: TrainingConfig, device: str, loaded_on: str | None = None) -> Any:
    """The model in `folder`, ready to train on `device`, and loaded there unless `loaded_on` says where.

    Weights that are trained are float32, so that small updates are not rounded away. The frozen base under an adapter is in
    the precision of the products on a GPU, and float32 elsewhere; under qlora it has 4 or 8 bits.

    Raises:
        ConfigError: A setting that this model has no place for.
    """
    if config.method == "full":
        model = _load(folder, config, device, loaded_on)
        _freeze(model, config.freeze_ratio)
    else:
        model = _base(folder, config, device, loaded_on)
    if config.gradient_checkpointing:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        else:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model if config.method == "full" else with_adapter(model, config)


def _base(folder: Path, config: TrainingConfig, device: str, loaded_on: str | None) -> Any:
    """A base to put an adapter on. Inside `one_base` its tensors are those of the last one; its modules are its own."""
    held = _bases.get()
    kind = frozen_dtype(config.precision, device_of(device))
    key = (identity(folder), device, loaded_on, kind, config.bits, config.dropout)
    if held is None or config.bits == 8:  # the first module to use 8-bit weights takes their scales
        return _load(folder, config, device, loaded_on)
    if key not in held:
        held.clear()
        held[key] = _load(folder, config, device, loaded_on).requires_grad_(False)
    shared = held[key]
    tensors = [*shared.parameters(), *shared.buffers()]
    return copy.deepcopy(shared, {id(tensor): tensor for tensor in tensors})


def _load(folder: Path, config: TrainingConfig, device: str, loaded_on: str | None) -> Any:
    changes: dict[str, Any] = _dropout_settings(folder, config.dropout) if config.dropout is not None else {}
    if config.bits is not None:
        return _quantised(folder, config, device, changes)
    kind = frozen_dtype(config.precision, device_of(device)) if config.method == "lora" else torch.float32
    return load_model(folder, loaded_on or device, str(kind).removeprefix("torch."), changes)


def _quantised(folder: Path, config: TrainingConfig, device: str, changes: Mapping[str, Any]) -> Any:
    """The base with 4-bit NormalFloat or 8-bit weights: Dettmers et al., 2023, arXiv 2305.14314."""
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    bits: dict[str, Any] = {"load_in_8bit": True}
    if config.bits == 4:
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        bits["bnb_4bit_compute_dtype"] = frozen_dtype(config.precision, device_of(device))
    how = {"quantization_config": cast(Any, BitsAndBytesConfig)(**bits), "device_map": {"": device}}
    model = load_model(folder, device, "float32", {**changes, **how})
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _dropout_settings(folder: Path, share: float) -> dict[str, float]:
    """The model's own dropout rates, whatever its architecture calls them, all at `share`."""
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    names = [name for name in _rates(found) if found[name] is not None]
    if not names:
        raise ConfigError(
            f"`dropout` is {share:g}, and a {found['model_type']} model has no dropout of its own.",
            hint="Use embedding_dropout, or lora_dropout with an adapter.",
        )
    return dict.fromkeys(names, share)


def _rates(settings: Mapping[str, Any]) -> list[str]:
    """The names of the dropout rates among a model's settings."""
    return [name for name, value in settings.items() if _RATE.fullmatch(name) and not isinstance(value, bool | str)]


def _freeze(model: Any, ratio: float) -> None:
    """Keep the bottom layers as they are, and with them the embeddings of tokens and of positions (the output's too, where
    they are tied): below the first trained layer nothing is learned, so no gradient has to be computed there.
    """
    model.requires_grad_(True)
    if not ratio:
        return
    _, layers = _layers(model)
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    for module in [*layers[: _frozen_layers(len(layers), ratio)], *embeddings]:
        module.requires_grad_(False)


def _frozen_layers(count: int, ratio: float) -> int:
    """How many of `count` layers a share of them is."""
    frozen = int(ratio * count + 0.5)
    if ratio and not 0 < frozen < count:
        raise ConfigError(
            f"`freeze_ratio` is {ratio:g}, which keeps {frozen} of {count} layers.",
            hint=f"Use a share between {1 / count:.2f} and {(count - 1) / count:.2f}, or 0.",
        )
    return frozen


def _frozen_names(model: Any, ratio: float) -> str | None:
    """What PEFT's `exclude_modules` calls everything in the frozen layers."""
    if not ratio:
        return None
    name, layers = _layers(model)
    places = "|".join(map(str, range(_frozen_layers(len(layers), ratio))))
    return rf"{re.escape(name)}\.({places})\..*"


def _layers(model: Any) -> tuple[str, torch.nn.ModuleList]:
    """The decoder's layers and their full name: `model.layers`, `transformer.h`, …"""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise ConfigError("The model's layers cannot be told apart.", hint="Leave freeze_ratio out.")


def layers_of(model: Any) -> list[torch.nn.Module]:
    """The decoder's layers; none where they cannot be told apart."""
    try:
        return list(_layers(model)[1])
    except ConfigError:
        return []


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
        exclude_modules=_frozen_names(model, config.freeze_ratio),
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
        facts = read_json(settings)
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
    facts, own = (read_json(path / "config.json") for path in (folder, base_folder))
    # `dropout` was this run's; who trains on finds the rates of the model's authors.
    facts = {k: v for k, v in facts.items() if k not in _rates(facts)} | {k: own[k] for k in _rates(own)}
    write_json(folder / "config.json", {**facts, "dtype": str(dtype).removeprefix("torch."), "use_cache": True})
    tokenizer.save_pretrained(str(folder))


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most of the numbers in the safetensors files that loading reads."""
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    counts = dict.fromkeys(names, 0)
    for file in weight_files(folder):
        for tensor in tensors_in(file).values():
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    kind = max(names, key=lambda name: counts[name])
    if not counts[kind]:
        raise ModelError(f"The weights in {folder} are in none of {', '.join(names)}; they cannot be trained.")
    return names[kind]


def choose_attention(model: Any, longest: int) -> None:
    """Switch to plain attention on a CPU where it measured faster: on rows of fewer than 512 tokens."""
    if next(model.parameters()).device.type != "cpu" or longest >= _FUSED_ATTENTION_PAYS:
        return
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    try:
        base.set_attn_implementation("eager")
    except (AttributeError, ValueError):
        return  # an architecture with one implementation only


@contextmanager
def embedding_dropout(model: Any, share: float) -> Iterator[None]:
    """Drop a share of the numbers that the input embeddings give, while the model is in training mode."""
    if not share:
        yield
        return

    def drop(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        return dropout(output, share, training=module.training)

    hook = model.get_input_embeddings().register_forward_hook(drop)
    try:
        yield
    finally:
        hook.remove()
