"""The loop that transformers' Trainer runs: what it is told, and what happens between its steps."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from . import processes
from .batching import Steps
from .config import TrainingConfig

if TYPE_CHECKING:
    from .trainer import RowTrainer


class StepLoader(DataLoader[Any]):
    """Passes the epoch on to the sampler, which transformers does for accelerate's loaders only."""

    def set_epoch(self, epoch: int) -> None:
        cast(Steps, self.batch_sampler).set_epoch(epoch)


class Speed:
    """Tokens a second since it was last read."""

    def __init__(self) -> None:
        self._tokens, self._since = 0, time.monotonic()

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def read(self) -> float:
        now = time.monotonic()
        speed = self._tokens / max(1e-9, now - self._since)
        self._tokens, self._since = 0, now
        return round(speed, 1)


class Timing(TrainerCallback):
    """What happens between steps: the bar moves, the last step is logged, and a save waits for a due evaluation."""

    def __init__(self, trainer: "RowTrainer") -> None:
        self.trainer = trainer
        self._waiting = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.advance(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.settled()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.unsettled()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        note = "" if self.trainer.events.last_loss is None else f"loss {self.trainer.events.last_loss:.3f}"
        self.trainer.advance(1, note=note)
        if last:
            control.should_log = control.should_save = True
            control.should_evaluate = bool(self.trainer.validation)
        elif control.should_save and args.eval_strategy == "epoch" and float(state.epoch).is_integer():
            # A checkpoint stands for what happened up to it, and this epoch's evaluation is still to come.
            control.should_save, self._waiting = False, True
        elif not control.should_log:
            self.trainer.settle()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._waiting:
            control.should_save, self._waiting = True, False
        if state.global_step >= state.max_steps:  # done when the last step ended
            control.should_evaluate = control.should_save = False


def arguments_of(model: torch.nn.Module, config: TrainingConfig, folder: Path, validated: bool) -> TrainingArguments:
    """Our settings in transformers' words. Precision is ours to switch, so transformers is told nothing of it."""
    device = next(model.parameters()).device
    eval_steps, save_steps = config.eval_steps, config.save_steps
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=1,  # one of our steps
        learning_rate=config.rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused" if device.type in ("cpu", "cuda") else "adamw_torch",
        eval_strategy=("epoch" if eval_steps == "epoch" else "steps") if validated else "no",
        eval_steps=None if eval_steps == "epoch" else eval_steps,
        save_strategy="epoch" if save_steps == "epoch" else "steps",
        save_steps=500 if save_steps == "epoch" else save_steps,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        seed=config.seed,
        use_cpu=device.type == "cpu",
        report_to=list(config.report_to) or "none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one device a process; DataParallel would split our batches
    if not processes.several():  # where transformers takes the first GPU, whichever the model is on
        cast(Any, arguments.distributed_state).device = device
        arguments.__dict__["_setup_devices"] = device
    return arguments
