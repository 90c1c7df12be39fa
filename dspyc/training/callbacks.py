"""What a caller can watch while a run is going on."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import TrainingResult


@dataclass(frozen=True)
class Progress:
    """One line of `events.jsonl`. Losses are in nats a token; those of steps are means since the line before."""

    step: int  # optimizer steps done
    total_steps: int
    epoch: float
    seconds: float  # training time, that before a resume included
    loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None  # before clipping
    tokens_per_second: float | None = None  # of the rows, a shared prompt counted in each of them
    memory: int | None = None  # bytes: the most that this process has used on its device so far

    def to_dict(self) -> dict[str, Any]:
        """The fields that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Callback:
    """Override what you need; every method may be called on the main process only. An exception ends the run.

    class Print(dspyc.training.Callback):
        def on_log(self, progress):
            print(progress.step, progress.loss)

    train("dspyc/tiny", rows, output_dir="run", callbacks=[Print()])
    """

    def on_start(self, report: dict[str, Any]) -> None:
        """Before the first step: the token report, with what the run is expected to need."""

    def on_log(self, progress: Progress) -> None:
        """Every `logging_steps` steps, and after the last."""

    def on_evaluate(self, progress: Progress) -> None:
        """After every evaluation; `progress.validation_loss` is set."""

    def on_save(self, checkpoint: Path) -> None:
        """After a checkpoint was written, whole."""

    def on_end(self, result: "TrainingResult") -> None:
        """After the weights were written."""
