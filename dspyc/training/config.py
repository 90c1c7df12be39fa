"""TrainingConfig: every setting of a training run in one immutable, serialisable object."""

import difflib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import ConfigError
from .names import known_elsewhere, translated
from .presets import preset_settings

_ROWS = 16  # of a batch, where nothing else is said
_LEARNING_RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 5e-5}
_WARMUP, _ONE_CYCLE_WARMUP = 0.03, 0.3


def _field(default: Any, allowed: str, **limits: Any) -> Any:
    """A setting: its default, what it takes in words, and the same as limits."""
    return Field(default=default, description=allowed, **limits)


class TrainingConfig(BaseModel):
    """How a student is trained: immutable, and JSON both ways (`model_dump(mode="json")`, `TrainingConfig(**facts)`).

    docs/training.md says what each setting does and why its default is what it is. `TrainingConfig(...)`, `preset` and
    `from_kwargs` raise ConfigError naming the setting. A `None` stands for a default that depends on other settings; the
    properties say what it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str | None = _field(None, "a hub id, a folder or 'dspyc/tiny', or None", min_length=1)
    max_length: int | None = _field(None, "tokens of a row, at least 2; or None for the model's limit", ge=2)

    method: Literal["lora", "qlora", "full"] = _field(
        "lora", "'lora' (an adapter), 'qlora' (an adapter on a quantised base) or 'full' (every weight)"
    )
    quantization: Literal["4bit", "8bit"] | None = _field(None, "'4bit' or '8bit', or None for qlora's 4bit")
    freeze_ratio: float = _field(0.0, "the share of the bottom layers that stay as they are, in [0, 1)", ge=0, lt=1)
    lora_rank: int = _field(16, "a whole number of at least 1", ge=1)
    lora_alpha: float = _field(32.0, "a number above 0", gt=0)
    lora_dropout: float = _field(0.05, "a number in [0, 1)", ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = _field(
        "all-linear", "'all-linear' or a list of module names such as ['q_proj', 'v_proj']"
    )
    use_rslora: bool = _field(False, "True or False")
    use_dora: bool = _field(False, "True or False")

    epochs: float = _field(3.0, "passes over the rows, a number above 0", gt=0)
    max_steps: int | None = _field(None, "optimizer steps, at least 1, instead of epochs; or None", ge=1)
    batch_size: int | None = _field(
        None, f"a whole number of rows of at least 1, or None for {_ROWS} or a token budget", ge=1
    )
    token_budget: int | None = _field(None, "tokens of a batch, at least 1, instead of batch_size; or None", ge=1)
    gradient_accumulation: int = _field(1, "batches a step, a whole number of at least 1", ge=1)
    micro_batch_tokens: int | None = _field(
        None, "tokens that are computed together, at least 1; or None for the device's default", ge=1
    )
    shared_prefix: bool = _field(True, "True or False")

    learning_rate: float | None = _field(None, "a number above 0, or None for the method's default", gt=0)
    scheduler: Literal["linear", "cosine", "constant", "one_cycle"] = _field(
        "linear", "'linear', 'cosine', 'constant' or 'one_cycle'"
    )
    warmup_ratio: float | None = _field(None, "a share of the steps in [0, 1), or None", ge=0, lt=1)
    warmup_steps: int | None = _field(None, "steps, at least 0, instead of warmup_ratio; or None", ge=0)
    weight_decay: float = _field(0.0, "a number of at least 0", ge=0)
    max_grad_norm: float = _field(1.0, "a number of at least 0; 0 turns clipping off", ge=0)

    dropout: float | None = _field(None, "a number in [0, 1), or None for the model's own", ge=0, lt=1)
    embedding_dropout: float = _field(0.0, "a number in [0, 1)", ge=0, lt=1)
    label_smoothing: float = _field(0.0, "a number in [0, 1)", ge=0, lt=1)
    prompt_loss_weight: float = _field(
        0.0, "a prompt token's weight in the loss, a reply token's being 1: a number in [0, 1]", ge=0, le=1
    )

    eval_steps: int | Literal["epoch"] = _field("epoch", "'epoch' or a number of steps of at least 1")
    save_steps: int | Literal["epoch"] = _field("epoch", "'epoch' or a number of steps of at least 1")
    logging_steps: int = _field(10, "a number of steps of at least 1", ge=1)
    early_stopping_patience: int | None = _field(
        None, "evaluations without an improvement after which training stops, at least 1; or None", ge=1
    )
    early_stopping_threshold: float = _field(
        0.0, "what the validation loss has to fall by to count, a number of at least 0", ge=0
    )
    save_total_limit: int = _field(2, "checkpoints to keep, at least 1; the best one is kept besides", ge=1)
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = _field(
        (), "a list of 'tensorboard', 'wandb' and 'mlflow'"
    )

    precision: Literal["auto", "bf16", "fp16", "fp32"] = _field("auto", "'auto', 'bf16', 'fp16' or 'fp32'")
    gradient_checkpointing: bool = _field(False, "True or False")
    seed: int = _field(0, "a whole number in [0, 2**32)", ge=0, lt=2**32)

    if not TYPE_CHECKING:  # type checkers keep the fields' own names and types

        def __init__(self, **settings: Any) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise _explained(error) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("a truth value")
        return value

    @field_validator("eval_steps", "save_steps")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("below 1")
        return value

    @field_validator("report_to", mode="before")
    @classmethod
    def _as_a_list(cls, value: Any) -> Any:
        return () if value in (None, "none", ["none"]) else (value,) if isinstance(value, str) else value

    @field_validator("target_modules")
    @classmethod
    def _some_modules(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("empty")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingConfig":
        changed = [name for name in _LORA_ONLY if getattr(self, name) != type(self).model_fields[name].default]
        contradictions = [
            (
                self.method == "full" and changed,
                f"{', '.join(changed)} and method='full' contradict each other.",
                "Full training has no adapter: leave them out, or use method='lora'.",
            ),
            (
                self.quantization is not None and self.method != "qlora",
                f"`quantization` is {self.quantization!r}, and the method is {self.method!r}.",
                "Use method='qlora', which trains an adapter on a quantised base.",
            ),
            (
                self.batch_size is not None and self.token_budget is not None,
                f"`batch_size` is {self.batch_size} and `token_budget` {self.token_budget}.",
                "A batch is counted in rows or in tokens: give one of them.",
            ),
            (
                self.warmup_ratio is not None and self.warmup_steps is not None,
                f"`warmup_ratio` is {self.warmup_ratio} and `warmup_steps` {self.warmup_steps}.",
                "Give one of them.",
            ),
            (
                self.early_stopping_threshold and self.early_stopping_patience is None,
                f"early_stopping_threshold is {self.early_stopping_threshold:g}, and early stopping is off.",
                "Set early_stopping_patience too, such as 3 evaluations.",
            ),
        ]
        for found, message, hint in contradictions:
            if found:
                raise ConfigError(message, hint=hint)
        if self.max_steps is not None and self.epochs != type(self).model_fields["epochs"].default:
            raise _two_lengths(self.epochs, self.max_steps)
        return self

    @property
    def bits(self) -> int | None:
        """Bits of a base weight under qlora; None for the other methods."""
        return None if self.method != "qlora" else 8 if self.quantization == "8bit" else 4

    @property
    def rows_a_step(self) -> int | None:
        """Rows that an optimizer step learns from, over all processes; None where tokens are counted."""
        return None if self.token_budget is not None else (self.batch_size or _ROWS) * self.gradient_accumulation

    @property
    def tokens_a_step(self) -> int | None:
        """Tokens that an optimizer step learns from, over all processes; None where rows are counted."""
        return None if self.token_budget is None else self.token_budget * self.gradient_accumulation

    def warmup_steps_of(self, total: int) -> int:
        """The number of steps, at the start of `total`, in which the rate rises."""
        if self.warmup_steps is not None:
            return min(self.warmup_steps, total)
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

    def base(self, model: object = None) -> str:
        """The model to train: the one given, or the config's.

        Raises:
            ConfigError: Neither is set, or they are not the same.
        """
        if model is None and self.model is None:
            raise ConfigError("There is no model to train.", hint="Pass one, or set `model` in the config.")
        if model is not None and self.model is not None and str(model) != self.model:
            raise ConfigError(
                f"The model is {str(model)!r}, and the config's is {self.model!r}.", hint="Give one of them."
            )
        return str(model if model is not None else self.model)

    @classmethod
    def preset(cls, name: str, *, task: str | None = None, **overrides: Any) -> "TrainingConfig":
        """The settings of a preset and of a task, with `overrides` on top; see `presets` for what they are and why.

        Raises:
            ConfigError: There is no such preset or task, or a setting is wrong.
        """
        return cls.from_kwargs({"preset": name, "task": task, **overrides})

    @classmethod
    def from_kwargs(cls, train_kwargs: Mapping[str, Any] | None = None) -> "TrainingConfig":
        """The config that a DSPy `train_kwargs` means: our names, or those of DSPy's LocalProvider, transformers, trl and
        PEFT. `preset` and `task` name settings that the others override.

        Raises:
            ConfigError: A name that is not known, two names that contradict each other, a value that is not allowed, or
                what looks like a secret (its value is not shown).
        """
        given = dict(train_kwargs or {})
        chosen = preset_settings(given.pop("preset", None), given.pop("task", None))
        settings = translated(given, list(cls.model_fields))
        replaced = {name for group in _ALTERNATIVES if any(name in settings for name in group) for name in group}
        if settings.get("method") == "full":
            replaced |= _OF_ADAPTERS
        chosen = {name: value for name, value in chosen.items() if name not in replaced}
        if settings.get("max_steps") is not None and "epochs" in settings:
            raise _two_lengths(settings["epochs"], settings["max_steps"])
        return cls(**(chosen | settings))


_LORA_ONLY = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")
# One of each replaces what a preset says about the others.
_ALTERNATIVES = (("epochs", "max_steps"), ("batch_size", "token_budget"), ("warmup_ratio", "warmup_steps"))
_OF_ADAPTERS = {"method", "quantization", "learning_rate", *_LORA_ONLY}  # the presets' rates are an adapter's


def _two_lengths(epochs: Any, max_steps: Any) -> ConfigError:
    return ConfigError(
        f"`epochs` is {epochs} and `max_steps` {max_steps}.", hint="Either says how long to train: give one of them."
    )


def _explained(error: ValidationError) -> ConfigError:
    fields = TrainingConfig.model_fields
    messages: dict[str, str] = {}
    for found in error.errors():
        name = str(found["loc"][0]) if found["loc"] else ""
        if name in fields:
            messages.setdefault(name, f"`{name}` is {found['input']!r}; it takes {fields[name].description}.")
        elif ours := known_elsewhere(name):
            messages.setdefault(
                name, f"`{name}` is another library's name for `{ours}`; TrainingConfig.from_kwargs takes it."
            )
        else:
            close = difflib.get_close_matches(name, fields, n=3)
            meant = f" Did you mean {' or '.join(close)}?" if close else f" The settings are {', '.join(fields)}."
            messages.setdefault(name, f"There is no training setting `{name}`.{meant}")
    return ConfigError(" ".join(messages.values()))
