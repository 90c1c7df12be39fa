"""RowTrainer: transformers' Trainer with our batches, our loss and checkpoints without pickles."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.functional import dropout
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ..errors import TrainingError
from ..progress import Advance
from .batching import Batch, Collator, LengthBuckets, in_length_order
from .checkpoint import (
    CheckpointStore,
    RandomState,
    load_optimizer,
    load_scheduler,
    load_trained,
    save_optimizer,
    save_scheduler,
    save_trained,
)
from .config import TrainingConfig
from .events import EventLog
from .files import guarded
from .loss import CausalLoss
from .rows import EncodedRow
from .schedule import rate_factor

_OURS = "dspyc"  # our entry among transformers' callback states


class RowTrainer(Trainer):
    """Trains `model` on encoded rows; evaluates on held-out ones; keeps the best weights where stopping early."""

    loss_is_scaled_for_ga = True  # by the sum of weights over all batches of a step

    def __init__(
        self,
        model: torch.nn.Module,
        rows: Sequence[EncodedRow],
        *,
        config: TrainingConfig,
        store: CheckpointStore,
        events: EventLog,
        validation: Sequence[EncodedRow] = (),
        pad_id: int = 0,
        autocast: bool = False,
        advance: Advance | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=_arguments(model, config, store.folder, bool(validation)),
            train_dataset=list(rows),
            eval_dataset=list(validation) or None,
        )
        self.student, self.rows, self.validation = model, list(rows), list(validation)
        self.config, self.store, self.events = config, store, events
        self.advance = advance or (lambda *_, **__: None)
        self.collate = Collator(pad_id, config.prompt_loss_weight)
        self.loss = CausalLoss(model, rows[0].ids[:64], config.label_smoothing)
        self.autocast = autocast
        self.bad_evaluations = 0
        self._settled: RandomState | None = None
        self.remove_callback(PrinterCallback)
        self.add_callback(_Timing(self))

    # ------------------------------------------------------------------------------------------- batches and loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        config = self.config
        lengths = [len(row) for row in self.rows]
        buckets = LengthBuckets(lengths, config.batch_size, config.gradient_accumulation, config.seed)
        # A generator of its own: opening an epoch must not draw from the one that dropout uses.
        loader: Any = DataLoader(
            cast(Any, self.rows), batch_sampler=buckets, collate_fn=self.collate, generator=torch.Generator()
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        """The sum of weights over every batch of the step, in all processes."""
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This batch's share of the step's mean loss, in nats a unit of weight."""
        with self._precision():
            total, weight = self.loss(inputs)
        loss = total / (weight if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss):
            raise self._diverged("The loss", loss.item())
        loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        return (loss, None) if return_outputs else loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        return self._finite(cast(Any, super())._clip_grad_norm(model))

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        return self._finite(cast(Any, super())._get_grad_norm(model, grad_norm))

    def _finite(self, norm: Any) -> Any:
        if not math.isfinite(float(norm)):
            raise self._diverged("The gradient", norm)
        return norm

    def _diverged(self, what: str, value: Any) -> TrainingError:
        step = self.state.global_step + 1
        good = self.store.steps()
        kept = f"The last good checkpoint is {self.store.path(good[-1])}." if good else "There is no checkpoint yet."
        return TrainingError(
            f"{what} became {float(value)} at step {step} of {self.state.max_steps}. {kept}",
            hint=f"Train again in a new output_dir with a learning_rate below {self.config.rate:g}, or precision='fp32'.",
        )

    def _precision(self) -> Any:
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.autocast)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            kind, warmup = self.config.scheduler, self.config.warmup
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                cast(Any, optimizer or self.optimizer), lambda step: rate_factor(kind, step, num_training_steps, warmup)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counting parameters at every batch costs more than a small model's layer

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        rows_a_step = self.config.batch_size * self.config.gradient_accumulation
        a_pass = math.ceil(len(self.rows) / rows_a_step)
        return self.config.max_steps or math.ceil(self.config.epochs * a_pass)

    # ------------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean cross entropy of the reply tokens of all validation rows in nats: no smoothing, no prompt tokens."""
        collate = Collator(self.collate.pad_id)
        self.student.eval()
        total = weight = 0.0
        for rows in in_length_order(self.validation, 2 * self.config.batch_size):
            batch = {name: tensor.to(self.args.device) for name, tensor in collate(rows).items()}
            with self._precision():
                losses, weights = self.loss(batch, label_smoothing=0.0)
            total, weight = total + float(losses), weight + float(weights)
        return total / weight

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, note it, and decide whether this is the best so far and whether to stop."""
        loss = self.validation_loss()
        if not math.isfinite(loss):
            raise self._diverged("The validation loss", loss)
        self._note(validation_loss=loss)
        best, patience = self.state.best_metric, self.config.early_stopping_patience
        metrics = {"eval_loss": loss}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if patience is None:
            return metrics
        if best is None or loss < best - self.config.early_stopping_threshold:
            self.state.best_metric, self.state.best_global_step = loss, self.state.global_step
            self.bad_evaluations = 0
            self.control.should_save = True  # best weights are kept as a checkpoint
        else:
            self.bad_evaluations += 1
            self.control.should_training_stop |= self.bad_evaluations >= patience
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            names = ("loss", "learning_rate", "grad_norm")
            self._note(**{name: float(logs[name]) for name in names if name in logs})

    def _note(self, **facts: float) -> None:
        with guarded("write events", self.events.path.parent):
            self.events.write(self.state.global_step, self.state.epoch or 0.0, **facts)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save(RandomState.capture())

    def save(self, rng: RandomState) -> None:
        """Write a checkpoint of this step. Raises TrainingError where the disk refuses it."""
        step, best = self.state.global_step, self.state.best_global_step

        def fill(folder: Path) -> None:
            save_trained(self.student, folder)
            save_optimizer(self.optimizer, folder)
            save_scheduler(self.lr_scheduler, folder)
            rng.save(folder)
            self.state.stateful_callbacks = cast(Any, {_OURS: {"bad_evaluations": self.bad_evaluations}})
            self.state.save_to_json(str(folder / "trainer_state.json"))

        with guarded(f"write the checkpoint of step {step}", self.store.folder):
            self.store.write(step, fill, best)
            self.store.keep(self.config.save_total_limit, step, best)

    def save_if_settled(self) -> None:
        """On the way out: a checkpoint of this step, unless an update or an evaluation was under way."""
        if self._settled is not None and self.state.global_step not in self.store.steps():
            self.save(self._settled)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.student, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self.optimizer, Path(checkpoint))
            load_scheduler(self.lr_scheduler, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            RandomState.load(Path(checkpoint)).restore()

    def _load_callback_state(self) -> None:
        self.bad_evaluations = bad_evaluations(self.state)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: bfloat16 needs no loss scaling."""


def bad_evaluations(state: Any) -> int:
    """Evaluations without an improvement, of a saved TrainerState."""
    return int((state.stateful_callbacks.get(_OURS) or {}).get("bad_evaluations", 0))


class _Timing(TrainerCallback):
    """What happens between steps: the bar moves, the last step is logged, and a save waits for a due evaluation."""

    def __init__(self, trainer: RowTrainer) -> None:
        self.trainer = trainer
        self._waiting = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.advance(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._settled = RandomState.capture()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._settled = None

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

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._waiting:
            control.should_save, self._waiting = True, False
        if state.global_step >= state.max_steps:  # done when the last step ended
            control.should_evaluate = control.should_save = False


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


def wants_autocast(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16: where asked, and under "auto" where the hardware multiplies it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _cpu_multiplies_bf16()


def _cpu_multiplies_bf16() -> bool:
    checks: Iterable[str] = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in checks if hasattr(torch.cpu, name))


def _arguments(model: torch.nn.Module, config: TrainingConfig, folder: Path, validated: bool) -> TrainingArguments:
    """Our settings in transformers' words. Precision is ours to switch, so transformers is told nothing of it."""
    device = next(model.parameters()).device
    eval_steps, save_steps = config.eval_steps, config.save_steps
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
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
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one device a process; DataParallel would split our batches
    return arguments
