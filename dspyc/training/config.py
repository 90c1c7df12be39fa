"""TrainingConfig: every setting of a training run in one immutable, serialisable object."""

import difflib
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import ConfigError

_LEARNING_RATES = {"lora": 2e-4, "full": 5e-5}
_WARMUP, _ONE_CYCLE_WARMUP = 0.03, 0.3

# Names that DSPy's LocalProvider, transformers, trl and PEFT use, and ours.
_ALIASES = {
    "num_train_epochs": "epochs",
    "n_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "lr": "learning_rate",
    "lr_scheduler_type": "scheduler",
    "label_smoothing_factor": "label_smoothing",
    "max_seq_length": "max_length",
    "r": "lora_rank",
    "lora_r": "lora_rank",
}
_ELSEWHERE = {
    "device": "Choose it where the model is named: dspyc.LocalLM(model, device='cuda').",
    "output_dir": "It is an argument of `train` and of LocalProvider, not a setting of the training.",
    "fp16": "Half precision would need loss scaling; use precision='bf16' or precision='fp32'.",
}
_IGNORED = ("packing",)  # rows are bucketed by length and never packed, so there is nothing to turn on or off
_SECRET = re.compile(
    r"(^|_)(api_?key|access_?key|key|(?<!micro_batch_)token|secret|password|credential)s?$", re.IGNORECASE
)


class TrainingConfig(BaseModel):
    """How a student is trained. `TrainingConfig(...)` and `from_kwargs` raise ConfigError naming the setting.

    A `None` of `learning_rate` and `warmup_ratio` stands for a default that depends on other settings; `rate` and
    `warmup` say what it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str | None = Field(default=None, description="a hub id, a folder or 'dspyc/tiny', or None")
    method: Literal["lora", "full"] = Field(default="lora", description="'lora' (an adapter) or 'full' (every weight)")
    epochs: float = Field(default=3.0, gt=0, description="passes over the rows, a number above 0")
    max_steps: int | None = Field(
        default=None, ge=1, description="optimizer steps, at least 1, instead of epochs; or None"
    )
    batch_size: int = Field(
        default=16, ge=1, description="rows that are computed together, a whole number of at least 1"
    )
    gradient_accumulation: int = Field(default=1, ge=1, description="batches a step, a whole number of at least 1")
    learning_rate: float | None = Field(
        default=None, gt=0, description="a number above 0, or None for the method's default"
    )
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1, description="a share of the steps in [0, 1), or None")
    weight_decay: float = Field(default=0.0, ge=0, description="a number of at least 0")
    max_grad_norm: float = Field(default=1.0, ge=0, description="a number of at least 0; 0 turns clipping off")
    scheduler: Literal["linear", "cosine", "constant", "one_cycle"] = Field(
        default="linear", description="'linear', 'cosine', 'constant' or 'one_cycle'"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="a number in [0, 1)")
    embedding_dropout: float = Field(default=0.0, ge=0, lt=1, description="a number in [0, 1)")
    prompt_loss_weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="a prompt token's weight in the loss, a reply token's being 1: a number in [0, 1]",
    )
    lora_rank: int = Field(default=16, ge=1, description="a whole number of at least 1")
    lora_alpha: float = Field(default=32.0, gt=0, description="a number above 0")
    lora_dropout: float = Field(default=0.05, ge=0, lt=1, description="a number in [0, 1)")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="'all-linear' or a list of module names such as ['q_proj', 'v_proj']"
    )
    early_stopping_patience: int | None = Field(
        default=None,
        ge=1,
        description="evaluations without an improvement after which training stops, at least 1; or None",
    )
    early_stopping_threshold: float = Field(
        default=0.0, ge=0, description="what the validation loss has to fall by to count, a number of at least 0"
    )
    eval_steps: int | Literal["epoch"] = Field(
        default="epoch", description="'epoch' or a number of steps of at least 1"
    )
    save_steps: int | Literal["epoch"] = Field(
        default="epoch", description="'epoch' or a number of steps of at least 1"
    )
    save_total_limit: int = Field(
        default=2, ge=1, description="checkpoints to keep, at least 1; the best one is kept besides"
    )
    logging_steps: int = Field(default=10, ge=1, description="a number of steps of at least 1")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="'auto', 'bf16', 'fp16' or 'fp32'"
    )
    max_length: int | None = Field(
        default=None, ge=2, description="tokens of a row, at least 2; or None for the model's limit"
    )
    gradient_checkpointing: bool = Field(default=False, description="True or False")
    micro_batch_tokens: int | None = Field(
        default=None, ge=1, description="tokens that are computed together at most, at least 1; or None"
    )
    shared_prefix: bool = Field(default=True, description="True or False")
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=(), description="a list of 'tensorboard', 'wandb' and 'mlflow'"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="a whole number in [0, 2**32)")

    if not TYPE_CHECKING:  # type checkers keep the fields' own names and types

        def __init__(self, **settings: Any) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise _explained(error) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and info.field_name not in ("gradient_checkpointing", "shared_prefix"):
            raise ValueError("a truth value")
        return value

    @field_validator("eval_steps", "save_steps")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("below 1")
        return value

    @field_validator("target_modules")
    @classmethod
    def _some_modules(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("empty")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingConfig":
        if self.method == "full":
            changed = [name for name in _LORA_ONLY if getattr(self, name) != type(self).model_fields[name].default]
            if changed:
                raise ConfigError(
                    f"{', '.join(changed)} and method='full' contradict each other.",
                    hint="Full training has no adapter: leave them out, or use method='lora'.",
                )
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ConfigError(
                f"early_stopping_threshold is {self.early_stopping_threshold:g}, and early stopping is off.",
                hint="Set early_stopping_patience too, such as 3 evaluations.",
            )
        return self

    @property
    def rows_a_step(self) -> int | None:
        """Rows that an optimizer step learns from, over all processes."""
        return self.batch_size * self.gradient_accumulation

    @property
    def tokens_a_step(self) -> int | None:
        """Tokens that an optimizer step learns from, where those are what is counted."""
        return None

    def warmup_steps_of(self, total: int) -> int:
        """The number of the first of `total` steps in which the rate rises."""
        return math.ceil(total * self.warmup)

    @property
    def rate(self) -> float:
        """The peak learning rate: the one set, or 2e-4 for LoRA and 5e-5 for full training."""
        return self.learning_rate if self.learning_rate is not None else _LEARNING_RATES[self.method]

    @property
    def warmup(self) -> float:
        """The share of the steps in which the rate rises: the one set, or 0.3 for one_cycle and 0.03 for the others."""
        if self.warmup_ratio is not None:
            return self.warmup_ratio
        return _ONE_CYCLE_WARMUP if self.scheduler == "one_cycle" else _WARMUP

    @classmethod
    def from_kwargs(cls, train_kwargs: Mapping[str, Any] | None = None) -> "TrainingConfig":
        """The config that a DSPy `train_kwargs` means: our names, or those of DSPy's LocalProvider, transformers and PEFT.

        Raises:
            ConfigError: A name that is not known, two names that contradict each other, a value that is not allowed, or
                what looks like a secret (its value is not shown).
        """
        found: dict[str, tuple[str, Any]] = {}
        for given, value in (train_kwargs or {}).items():
            if given in _IGNORED:
                continue
            name, value = _translate(str(given), value)
            if name in found and found[name][1] != value:
                raise ConfigError(
                    f"`{found[name][0]}` and `{given}` both set {name}, to {found[name][1]!r} and {value!r}.",
                    hint="Give one of them.",
                )
            found[name] = (str(given), value)
        return cls(**{name: value for name, (_, value) in found.items()})


_LORA_ONLY = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules")


def _translate(given: str, value: Any) -> tuple[str, Any]:
    """Our name and value of a setting that may bear another library's."""
    if _SECRET.search(given):
        raise ConfigError(
            f"`{given}` looks like a secret, and train_kwargs are written to disk.",
            hint="Never put secrets in train_kwargs: training on this machine needs none, and a provider reads its own "
            "from the environment.",
        )
    if given in _ELSEWHERE:
        raise ConfigError(f"`{given}` is not a training setting.", hint=_ELSEWHERE[given])
    if given == "use_peft":
        return "method", _flag(given, value, "lora", "full")
    if given == "bf16":
        return "precision", _flag(given, value, "bf16", "fp32")
    name = _ALIASES.get(given, given)
    if name not in TrainingConfig.model_fields:
        known = [*TrainingConfig.model_fields, *_ALIASES, "use_peft", "bf16"]
        close = difflib.get_close_matches(given, known, n=3)
        meant = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ConfigError(
            f"There is no training setting `{given}`.",
            hint=f"{meant}The settings are {', '.join(TrainingConfig.model_fields)}.",
        )
    if name == "scheduler":
        value = str(getattr(value, "value", value))
        value = "constant" if value == "constant_with_warmup" else value
    return name, value


def _flag(name: str, value: Any, yes: str, no: str) -> str:
    if not isinstance(value, bool):
        raise ConfigError(f"`{name}` is {value!r}.", hint="Use True or False.")
    return yes if value else no


def _explained(error: ValidationError) -> ConfigError:
    fields = TrainingConfig.model_fields
    messages: dict[str, str] = {}
    for found in error.errors():
        name = str(found["loc"][0]) if found["loc"] else ""
        if name in fields:
            messages.setdefault(name, f"`{name}` is {found['input']!r}; it takes {fields[name].description}.")
        else:
            close = difflib.get_close_matches(name, fields, n=3)
            meant = f" Did you mean {' or '.join(close)}?" if close else f" The settings are {', '.join(fields)}."
            messages.setdefault(name, f"There is no training setting `{name}`.{meant}")
    return ConfigError(" ".join(messages.values()))
