"""What a finished training run says about itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import TrainingError


@dataclass(frozen=True)
class TrainingResult:
    """Where the weights are and how they came about.

    `train_loss` is the mean loss over the steps since the last but one log line, with the settings' smoothing and prompt
    weight; `validation_loss` is the plain cross entropy of reply tokens in nats, at the weights that were kept.
    """

    path: str  # an adapter folder (method "lora") or a model folder with its tokenizer ("full")
    method: str
    base: str  # the model that was trained, as it was named
    base_identity: str
    steps: int  # optimizer steps, those before a resume included
    kept_step: int  # the step whose weights were kept; smaller than `steps` where early stopping went back
    seconds: float  # training time, that before a resume included
    train_loss: float
    validation_loss: float | None
    stopped_early: bool
    rows: dict[str, Any]  # the token report of the training rows
    validation_rows: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "TrainingResult":
        """Raises TrainingError where a field is missing."""
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in state]
        if missing:
            raise TrainingError(f"The training result lacks {', '.join(missing)}.", hint="Train again in a new folder.")
        return cls(**{name: state[name] for name in names})
