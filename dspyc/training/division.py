"""What a launcher's configuration says about dividing a model among processes: FSDP's and DeepSpeed's words for it.

`shards` carries it out with PyTorch's `fully_shard`, whoever's words they are: DeepSpeed need not be installed.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import read_json
from ..progress import is_main
from .processes import several

log = logging.getLogger("dspyc.training")
_FSDP, _DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
_PRECISION = "ACCELERATE_MIXED_PRECISION"  # which would be a second autocast, and in fp16 a second scaling of the loss
_OTHERS = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
_STRATEGIES = (
    "FULL_SHARD",
    "SHARD_GRAD_OP",
    "NO_SHARD",
    "HYBRID_SHARD",
    "HYBRID_SHARD_ZERO2",
)  # as FSDP 1 numbers them
_WHOLE, _AS_ZERO_2 = "NO_SHARD", ("SHARD_GRAD_OP", "HYBRID_SHARD_ZERO2")
_STAGES = {0: _WHOLE, 1: "SHARD_GRAD_OP", 2: "SHARD_GRAD_OP", 3: "FULL_SHARD"}


@dataclass(frozen=True)
class Division:
    """Every process holds its part of each tensor, of its gradient and of its moments.

    Args:
        reshard: Let go of a layer's tensors, which are gathered for its forward pass, until its backward pass gathers them
            again: FSDP's FULL_SHARD, DeepSpeed's stage 3. False keeps them: SHARD_GRAD_OP, stages 1 and 2.
    """

    reshard: bool


def requested() -> Division | None:
    """What the launcher of this process was told; None where every process shall hold a whole model.

    Raises:
        ConfigError: It was told what this trainer does not do.
    """
    if not several():
        return None
    for name, what in _OTHERS.items():
        if _on(os.environ.get(name)):
            raise refusal(what)
    if _on(os.environ.get(_FSDP)):
        return of_fsdp(_named("FSDP_"))
    return of_deepspeed(_named("ACCELERATE_DEEPSPEED_")) if _on(os.environ.get(_DEEPSPEED)) else None


@contextmanager
def carried_out_here() -> Iterator[None]:
    """Let accelerate and transformers take the processes inside for ones that hold whole models in float32: dividing them
    and the precision of products are left to us.
    """
    before = {name: os.environ.pop(name) for name in (_FSDP, _DEEPSPEED, _PRECISION) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def of_fsdp(settings: Mapping[str, Any]) -> Division | None:
    """The division that the settings of an accelerate configuration's `fsdp_config` ask for.

    Args:
        settings: By their names without `fsdp_`, as they are in the file or in the environment. What says how a division is
            carried out rather than what is divided (wrapping, prefetching, kinds of state dicts) is not used.
    """
    _refuse_offload("fsdp_offload_params", settings.get("offload_params"))
    if _on(settings.get("activation_checkpointing")):
        raise ConfigError(
            "The configuration says fsdp_activation_checkpointing, which is the trainer's to set.",
            hint="Say gradient_checkpointing=True in the training's own settings instead.",
        )
    after = str(settings.get("reshard_after_forward", "true")).upper()
    if str(settings.get("version", "1")) == "2":
        return Division(reshard=after not in ("FALSE", "0", "NO"))
    named = after if after in _STRATEGIES else str(settings.get("sharding_strategy", _STRATEGIES[0])).upper()
    return _of_strategy(_STRATEGIES[int(named) - 1] if named in ("1", "2", "3", "4", "5") else named)


def of_deepspeed(settings: Mapping[str, Any]) -> Division | None:
    """The division that an accelerate configuration's `deepspeed_config` asks for by the stage of ZeRO.

    Args:
        settings: By their names in the file. `deepspeed_config_file` (`config_file` in the environment) names DeepSpeed's own
            file, which then says the stage.
    """
    path = settings.get("deepspeed_config_file") or settings.get("config_file")
    if path and str(path).lower() != "none":
        zero, unused = _of_file(Path(str(path)))
        if unused and is_main():
            log.warning("Of %s, zero_optimization.stage is used; %s are not.", path, ", ".join(unused))
        stage = zero.get("stage", 0)
        offloads = {name: (zero.get(name) or {}).get("device") for name in ("offload_optimizer", "offload_param")}
    else:
        stage = settings.get("zero_stage", 2)
        offloads = {name: settings.get(f"{name}_device") for name in ("offload_optimizer", "offload_param")}
    for name, device in offloads.items():
        _refuse_offload(name, str(device).lower() not in ("none", ""))
    if str(stage) not in map(str, _STAGES):
        raise ConfigError(f"DeepSpeed's zero_stage is {stage!r}.", hint="Use 0, 1, 2 or 3.")
    return _of_strategy(_STAGES[int(stage)])


def refusal(what: str) -> ConfigError:
    return ConfigError(
        f"The launcher was told to divide the model by {what}, which this trainer does not do.",
        hint="FSDP and DeepSpeed's ZeRO divide it; without either, every process holds a whole one.",
    )


def _of_strategy(name: str) -> Division | None:
    if name not in _STRATEGIES:
        raise ConfigError(f"fsdp_sharding_strategy is {name!r}.", hint=f"Use one of {', '.join(_STRATEGIES)}.")
    if name.startswith("HYBRID") and is_main():
        log.warning("%s is carried out as one division among all processes.", name)
    return None if name == _WHOLE else Division(reshard=name not in _AS_ZERO_2)


def _of_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What DeepSpeed's own file says of ZeRO, and the names of what else it decides rather than leaves to "auto"."""
    try:
        said = read_json(path)
        zero = dict(said.get("zero_optimization") or {})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"DeepSpeed's configuration {path} cannot be read: {error}", hint="It is JSON.") from error
    return zero, [name for name, value in said.items() if name != "zero_optimization" and value != "auto"]


def _refuse_offload(name: str, value: Any) -> None:
    if _on(value):
        raise ConfigError(
            f"The configuration says {name}, and this trainer keeps what it divides on the devices.",
            hint="Leave it out, and use more processes, method='lora', gradient_checkpointing=True or less "
            "micro_batch_tokens.",
        )


def _on(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes")


def _named(prefix: str) -> dict[str, str]:
    """The environment's settings with this prefix, without it, in small letters."""
    return {name.removeprefix(prefix).lower(): value for name, value in os.environ.items() if name.startswith(prefix)}
