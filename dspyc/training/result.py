"""What a finished training run says about itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import TrainingError


@dataclass(frozen=True)
class TrainingResult:
    """Where the weights are and how they came about.

    `train_loss` is the mean loss over the steps since the last but one log line, with the settings' smoothing and prompt
    weight; `validation_loss` is the plain cross entropy of reply tokens in nats, at the weights in `path`.
    """

    path: str  # an adapter folder (method "lora") or a model folder with its tokenizer ("full"): one of the next two
    final_path: str  # the weights of the last step
    best_path: str | None  # those of the lowest validation loss; None where no rows were held out
    method: str
    base: str  # the model that was trained, as it was named
    base_identity: str
    steps: int  # optimizer steps, those before a resume included
    kept_step: int  # the step of the weights in `path`: the best one with early stopping, else the last
    best_step: int | None
    seconds: float  # training time, that before a resume included
    train_loss: float | None  # None where an old run ended before it noted one
    validation_loss: float | None
    stopped_early: bool
    rows: dict[str, Any]  # the token report of the training rows
    validation_rows: dict[str, Any]

    def to_dict(self, folder: Path | None = None) -> dict[str, Any]:
        """JSON-able. Paths are relative to `folder` where it is given, so that it can be moved."""
        facts = asdict(self)
        if folder is not None:
            facts |= {name: facts[name] and Path(facts[name]).relative_to(folder).as_posix() for name in _PATHS}
        return facts

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], folder: Path | None = None) -> "TrainingResult":
        """The result that `to_dict` gave. Raises TrainingError where a field is missing."""
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in state]
        if missing:
            raise TrainingError(f"The training result lacks {', '.join(missing)}.", hint="Train again in a new folder.")
        known = {name: state[name] for name in names}
        if folder is not None:
            known |= {name: known[name] and str(folder / known[name]) for name in _PATHS}
        return cls(**known)


_PATHS = ("path", "final_path", "best_path")
