"""Settings under other libraries' names: DSPy's LocalProvider, transformers, trl and PEFT, and ours."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError, has_secret, is_secret_name

_ALIASES = {
    "base_model": "model",
    "model_name_or_path": "model",
    "max_seq_length": "max_length",
    "num_train_epochs": "epochs",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "lr": "learning_rate",
    "lr_scheduler_type": "scheduler",
    "label_smoothing_factor": "label_smoothing",
    "r": "lora_rank",
    "lora_r": "lora_rank",
    "patience": "early_stopping_patience",
    "mixed_precision": "precision",
}
# A flag of another library: our setting and its value where it is True, and where it is False.
_FLAGS: dict[str, tuple[str, Any, Any]] = {
    "use_peft": ("method", "lora", "full"),
    "use_lora": ("method", "lora", "full"),
    "lora": ("method", "lora", "full"),
    "load_in_4bit": ("quantization", "4bit", None),
    "load_in_8bit": ("quantization", "8bit", None),
    "bf16": ("precision", "bf16", "fp32"),
    "fp16": ("precision", "fp16", "fp32"),
    "use_fp16": ("precision", "fp16", "fp32"),
}
_NOT = {"bf16": "bf16", "fp16": "fp16", "use_fp16": "fp16"}  # what a flag rules out where it is False
_VALUES = {("scheduler", "constant_with_warmup"): "constant", ("precision", "no"): "fp32"}
_ELSEWHERE = {
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy", "save_strategy", "logging_strategy"),
        "Set eval_steps or save_steps, to 'epoch' or to a number of steps; logging_steps is a number of steps.",
    ),
    "load_best_model_at_end": "Set early_stopping_patience; without it, best_model/ stands beside final_model/.",
    "resume_from_checkpoint": "The same call in the same folder goes on by itself; from another step: train(resume_from=120).",
    "device": "Choose it where the model is named: dspyc.LocalLM(model, device='cuda').",
    "output_dir": "It is an argument of `train` and of `lm.finetune`; a compile puts its weights into its `run_dir`.",
}
# Nothing to turn on or off: rows are in memory and never packed, their columns are known, evaluation is sized by tokens.
_IGNORED = (
    "packing",
    "dataloader_num_workers",
    "num_workers",
    "per_device_eval_batch_size",
    "remove_unused_columns",
    "task_type",
)


def translated(settings: Mapping[str, Any], ours: Sequence[str]) -> dict[str, Any]:
    """`settings` under our names, which are `ours`.

    Raises:
        ConfigError: A name that is not known, two names that contradict each other, or what looks like a secret.
    """
    found: dict[str, tuple[str, Any]] = {}
    for given, value in settings.items():
        if given in _IGNORED or (given in _ELSEWHERE and value is None):  # DSPy's defaults hold `device: None`
            continue
        name, value = _translate(str(given), value, ours)
        if name == "quantization" and value is None:
            continue
        found[name] = _meant(name, found[name], (str(given), value)) if name in found else (str(given), value)
    made = {name: value for name, (_, value) in found.items()}
    if made.get("quantization") and made.get("method", "lora") == "lora":
        made["method"] = "qlora"
    return made


def _meant(name: str, one: tuple[str, Any], other: tuple[str, Any]) -> tuple[str, Any]:
    """Which of two names with their values for the setting `name` says more.

    `fp16=False` rules out float16 and no more; `use_lora=True` goes with every adapter.

    Raises:
        ConfigError: They contradict each other.
    """
    if one[1] == other[1]:
        return one
    for (flag, weak), strong in ((one, other), (other, one)):
        no = flag in _NOT and weak == "fp32" and strong[1] != _NOT[flag]
        if no or (flag in _FLAGS and (weak, strong[1]) == ("lora", "qlora")):
            return strong
    raise ConfigError(
        f"`{one[0]}` and `{other[0]}` both set {name}, to {one[1]!r} and {other[1]!r}.", hint="Give one of them."
    )


def known_elsewhere(name: str) -> str | None:
    """What another library's name is called here, or None where we do not know it."""
    return _ALIASES.get(name) or (_FLAGS[name][0] if name in _FLAGS else None)


def _translate(given: str, value: Any, ours: Sequence[str]) -> tuple[str, Any]:
    """Our name and value of a setting that may bear another library's."""
    if is_secret_name(given) or has_secret(value):
        raise ConfigError(
            f"`{given}` {'looks like' if is_secret_name(given) else 'holds'} a secret, and train_kwargs are written to disk.",
            hint="Never put secrets in train_kwargs: training on this machine needs none, and a provider reads its own "
            "from the environment.",
        )
    if given in _ELSEWHERE:
        raise ConfigError(f"`{given}` is not a training setting.", hint=_ELSEWHERE[given])
    if given in _FLAGS:
        if not isinstance(value, bool):
            raise ConfigError(f"`{given}` is {value!r}.", hint="Use True or False.")
        name, yes, no = _FLAGS[given]
        return name, yes if value else no
    name = _ALIASES.get(given, given)
    if name not in ours:
        close = difflib.get_close_matches(given, [*ours, *_ALIASES, *_FLAGS], n=3)
        meant = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ConfigError(
            f"There is no training setting `{given}`.", hint=f"{meant}The settings are {', '.join(ours)}."
        )
    if name == "warmup_steps" and isinstance(value, float) and 0 < value < 1:
        name = "warmup_ratio"  # as in transformers 5
    if name == "scheduler":
        value = str(getattr(value, "value", value))
    return name, _VALUES.get((name, value), value) if isinstance(value, str) else value
