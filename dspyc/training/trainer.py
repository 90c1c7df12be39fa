"""RowTrainer: transformers' Trainer with our batches, our loss and checkpoints without pickles."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from ..errors import TrainingError
from ..files import read_json, write_json
from ..models.memory import peak_bytes
from ..progress import Advance
from . import precision, processes, shards
from .batching import Steps, weight_of
from .callbacks import Callback, Progress
from .checkpoint import (
    SCALER,
    SCHEDULER,
    CheckpointStore,
    OptimizerState,
    RandomState,
    load_optimizer,
    load_trained,
    save_trained,
    trained_tensors,
)
from .config import TrainingConfig
from .events import EventLog
from .files import guarded
from .forecast import Forecast, forecast, largest_batch
from .interrupts import Interrupts
from .loop import Speed, StepLoader, Timing, arguments_of
from .loss import Learner
from .out_of_memory import in_smaller_parts
from .rows import EncodedRow
from .schedule import rate_factor
from .sharing import Planner, Tree

log = logging.getLogger("dspyc.training")
_EVALUATED = 256  # validation rows that are planned together
_OVERFLOWS = 20  # in a row; a scale that began at 65,536 is then below 0.1
_Found = TypeVar("_Found")
_OURS = "dspyc"  # our entry among transformers' callback states


class RowTrainer(Trainer):
    """Trains on encoded rows; evaluates on held-out ones; keeps the best weights where there are any.

    One of its batches is all rows of an optimizer step. Each process takes its share of them, and the planner divides that
    into what is computed together.
    """

    loss_is_scaled_for_ga = True  # by the sum of weights over all rows of a step

    def __init__(
        self,
        learner: Learner,
        rows: Sequence[EncodedRow],
        *,
        config: TrainingConfig,
        store: CheckpointStore,
        events: EventLog,
        planner: Planner,
        validation: Sequence[EncodedRow] = (),
        autocast: torch.dtype | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        super().__init__(
            model=learner,
            args=arguments_of(learner, config, store.folder, bool(validation)),
            train_dataset=list(rows),
            eval_dataset=list(validation) or None,
        )
        self.learner, self.student, self.rows, self.validation = learner, learner.model, list(rows), list(validation)
        self.config, self.store, self.events, self.planner = config, store, events, planner
        self.watchers = list(callbacks)
        self.advance: Advance = lambda *_, **__: None
        self._precision = precision.autocast(autocast, self.args.device)
        self.bad_evaluations = 0
        self._evaluating: Planner | None = None  # once an evaluation ran out of memory
        self._learned_until: int | None = None  # steps up to the last one with finite gradients, or to a resume
        self._judged: int | None = None  # the step of the newest evaluation, which was finite
        self.interrupts = Interrupts(self._any_told if learner.divided else None)
        self._settled: RandomState | None = None
        self._speed = Speed()
        if autocast is torch.float16:
            self.accelerator.scaler = torch.amp.GradScaler(self.args.device.type)  # accelerate hands it on
        # No DDP: `processes.add_up` exchanges the gradients, once a step.
        cast(Any, learner)._is_accelerate_prepared = True
        self._trained = [p for p in learner.parameters() if p.requires_grad]
        if not learner.divided:  # its parts are those of what all had made alike
            processes.agree(self._trained)
        self.remove_callback(PrinterCallback)
        self.add_callback(Timing(self))

    # ------------------------------------------------------------------------------------------- batches and loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        # A generator of its own: opening an epoch must not draw from the one that dropout uses.
        return StepLoader(
            cast(Any, self.rows), batch_sampler=self._steps(), collate_fn=list, generator=torch.Generator()
        )

    def _steps(self) -> Steps:
        return Steps.of(self.rows, self.config)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None  # every process knows all rows of the step

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of the step's mean loss in nats a unit of weight, which is returned, over all processes."""
        model.train()
        self._speed.add(sum(map(len, inputs)))
        processes.draw_own(self.config.seed, self.state.global_step)
        share, accumulate = partial(self._share, inputs), partial(self._accumulate, inputs)
        loss, self.planner = self._in_smaller_parts(self.planner, share, accumulate)
        losses = processes.add_up([] if self.learner.divided else self._trained, loss)
        self._current = inputs
        for process, found in enumerate(losses):
            if not math.isfinite(found):
                raise self._diverged("The loss", found, inputs[process :: len(losses)])
        return torch.tensor(sum(losses), device=self.args.device)

    def _accumulate(self, rows: list[EncodedRow], trees: list[Tree]) -> torch.Tensor:
        """Gradients of what this process's trees add to the mean loss of a step's rows, which is returned."""
        weight = sum(weight_of(row, self.config.prompt_loss_weight) for row in rows)
        scaler = self.accelerator.scaler
        if scaler is not None:  # it has a scale also where this process has no row
            scaler.scale(torch.zeros((), device=self.args.device))
        with processes.meeting_within(self.learner.divided):
            return self.learner.learn_all(trees, weight, self._precision, scaler)

    def _share(self, rows: Sequence[EncodedRow], planner: Planner) -> list[Tree]:
        """What this process computes of a step, or of the validation rows."""
        return [self._own(tree) for tree in self._plan(rows, planner)]

    def _plan(self, rows: Sequence[EncodedRow], planner: Planner) -> list[Tree]:
        """Trees that hold this process's rows; or, where processes make the same passes, the rows of all of them."""
        place, count = self.accelerator.process_index, self.accelerator.num_processes
        if self.learner.divided:
            return replace(planner, budget=planner.budget * count)(rows)
        return planner(rows[place::count])

    def _own(self, tree: Tree) -> Tree:
        """What this process computes of a planned tree."""
        place, count = self.accelerator.process_index, self.accelerator.num_processes
        return shards.deal(tree, place, count) if self.learner.divided else tree

    def _in_smaller_parts(
        self,
        planner: Planner,
        plan: Callable[[Planner], list[Tree]],
        compute: Callable[[list[Tree]], _Found],
        where: Literal["training", "evaluations"] = "training",
    ) -> tuple[_Found, Planner]:
        """`in_smaller_parts`, with a warning and an event where memory ran out."""
        found, fits = in_smaller_parts(self.learner, planner, plan, compute, self.state.global_step + 1)
        if fits is not planner:
            log.warning(
                "Out of memory: %d tokens at once in %s from here on; a step stays as it is.", fits.budget, where
            )
            self._event("out_of_memory", micro_batch_tokens=fits.budget, computing=where)
        return found, fits

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        self._unscale()
        return self._finite(cast(Any, super())._clip_grad_norm(model))

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None:
            self._unscale()
        return self._finite(cast(Any, super())._get_grad_norm(model, grad_norm))

    def _unscale(self) -> None:
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(cast(Any, self.optimizer).optimizer)

    def _finite(self, norm: Any) -> Any:
        """The norm. In half precision a step whose scaled gradients overflow is left out, and the scale is lowered."""
        norm, step = shards.whole(norm), self.state.global_step
        if self._learned_until is None:
            self._learned_until = step
        if math.isfinite(float(norm)):
            self._learned_until = step + 1
        left_out = step + 1 - self._learned_until
        if left_out and (self.accelerator.scaler is None or left_out in (_OVERFLOWS, self.state.max_steps)):
            several = f", as in the {left_out - 1} steps before," if left_out > 1 else ""
            raise self._diverged(f"The gradient{several}", norm, self._current)
        return norm

    def _diverged(self, what: str, value: Any, rows: Sequence[EncodedRow] = ()) -> TrainingError:
        done, good = self.state.global_step, self._last_good()
        kept = f"The last good checkpoint is {self.store.path(good)}." if good else "There is no good checkpoint yet."
        if self.accelerator.is_main_process:
            for bad in (s for s in self.store.steps() if (good or 0) < s <= done):
                kept += f" The weights that gave this are in {self.store.set_aside(bad)}."
        named = f" (training rows {', '.join(str(row.index) for row in rows)}, counted from 0)" if rows else ""
        return TrainingError(
            f"{what} became {float(value)} at step {done + bool(rows)} of {self.state.max_steps}{named}. {kept}",
            hint=f"Train again in a new output_dir with a learning_rate below {self.config.rate:g}, or precision='fp32'.",
        )

    def _last_good(self) -> int | None:
        """The newest checkpoint from which a whole step, or an evaluation, came out finite: others may hold what diverges."""
        judged = (self._judged, self.state.best_global_step)
        return max((s for s in self.store.steps() if s < self.state.global_step or s in judged), default=None)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            rising = self.config.warmup_steps_of(num_training_steps)

            def factor(step: int) -> float:  # of a function, unlike other callables, its state has nothing
                return rate_factor(self.config.scheduler, step, total=num_training_steps, rising=rising)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(cast(Any, optimizer or self.optimizer), factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counting parameters at every batch costs more than a small model's layer

    def store_flos(self) -> None:
        """Nothing was counted, so processes have nothing to tell each other."""

    def shares(self, planner: Planner) -> bool:
        """Whether any step of the first epoch would have rows behind one prompt."""
        return any(tree.ids for step in self._steps() for tree in planner([self.rows[i] for i in step]))

    def forecast(self) -> Forecast:
        """What the run is expected to need on this process."""
        steps = self._steps()
        epochs = self.total_steps() / len(steps)

        def plan(planner: Planner) -> list[Tree]:
            trees = [tree for step in steps for tree in self._plan([self.rows[i] for i in step], planner)]
            return trees or planner(self.rows[:1])

        def measured(trees: list[Tree]) -> Forecast:
            sample = self._own(largest_batch(trees))
            return forecast(self.learner, [*map(self._own, trees)], sample, epochs, self._precision)

        found, self.planner = self._in_smaller_parts(self.planner, plan, measured)
        return found

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.max_steps or math.ceil(self.config.epochs * len(self._steps()))

    # ------------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean cross entropy of the reply tokens of all validation rows in nats: no smoothing, no prompt tokens."""
        self.learner.eval()
        sums = torch.zeros(2, device=self.args.device)
        planner = self._evaluating or self.planner
        for start in range(0, len(self.validation), _EVALUATED):
            rows = self.validation[start : start + _EVALUATED]
            found, fits = self._in_smaller_parts(planner, partial(self._share, rows), self._summed, "evaluations")
            sums += found
            if fits is not planner:  # training keeps its own budget
                self._evaluating = planner = fits
        shards.free_gathered(self.learner)
        total, weight = processes.total(sums).tolist()
        return float(total / weight)

    def _summed(self, trees: list[Tree]) -> torch.Tensor:
        """(sum of losses, sum of weights) of some trees."""
        sums = torch.zeros(2, device=self.args.device)
        for tree in trees:
            with self._precision(), processes.meeting_within(self.learner.divided):
                sums += torch.stack(self.learner(tree)).float()
        return sums

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, note it, and decide whether this is the best so far and whether to stop."""
        loss = self.validation_loss()
        if not math.isfinite(loss):
            raise self._diverged("The validation loss", loss)
        self._judged = self.state.global_step
        progress = self._note(validation_loss=loss)
        for watcher in self.watchers:
            watcher.on_evaluate(progress)
        metrics = {"eval_loss": loss}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        facts: dict[str, Any] = {"epoch": self.state.epoch, **metrics}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, facts)  # trackers
        best, patience = self.state.best_metric, self.config.early_stopping_patience
        if best is None or loss < best:
            self.state.best_metric, self.state.best_global_step = loss, self.state.global_step
            self.control.should_save = True  # best weights are kept as a checkpoint
        if best is None or loss < best - self.config.early_stopping_threshold:
            self.bad_evaluations = 0
        elif patience is not None:
            self.bad_evaluations += 1
            self.control.should_training_stop |= self.bad_evaluations >= patience
        return metrics

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """What is due after a step; and where an evaluation ends the run, the loss of the steps since the last line."""
        # For the logged loss transformers asks all processes, though each has that of the whole step.
        with processes.meeting_within(processes.several()):
            cast(Any, super())._maybe_log_save_evaluate(*args, **kwargs)
            if self.control.should_training_stop:
                self.control.should_log = True  # nothing else is due any more
                cast(Any, super())._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return
        known: dict[str, Any] = {
            name: float(logs[name]) for name in ("loss", "learning_rate", "grad_norm") if name in logs
        }
        # JSON has no word for the norm of a step that overflowed in half precision.
        known = {name: value if math.isfinite(value) else None for name, value in known.items()}
        memory = peak_bytes(self.args.device)
        progress = self._note(**known, tokens_per_second=self._speed.read(), memory=memory)
        self.settle()
        for watcher in self.watchers:
            watcher.on_log(progress)
        facts = {"epoch": self.state.epoch} | {name: value for name, value in known.items() if value is not None}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, facts)  # trackers

    def _note(self, **facts: Any) -> Progress:
        progress = Progress(
            self.state.global_step, self.state.max_steps, self.state.epoch or 0.0, self.events.seconds(), **facts
        )
        unknown: dict[str, Any] = {name: None for name, value in facts.items() if value is None}
        with guarded("write events", self.events.path.parent):
            self.events.write(**progress.to_dict(), **unknown)
        return progress

    def _event(self, event: str, **facts: Any) -> None:
        with guarded("write events", self.events.path.parent):
            self.events.write(step=self.state.global_step, epoch=self.state.epoch or 0.0, event=event, **facts)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.save(RandomState.capture())
        processes.wait()  # the best checkpoint is read by all

    def save(self, rng: RandomState) -> None:
        """Write a checkpoint of this step. Raises TrainingError where the disk refuses it."""
        step, best = self.state.global_step, self.state.best_global_step
        tensors, optimizer = trained_tensors(self.student), OptimizerState.of(self.optimizer)
        if self.learner.divided:
            tensors, optimizer.tensors = shards.gather(tensors), shards.gather(optimizer.tensors)

        def fill(folder: Path) -> None:
            save_trained(tensors, folder)
            optimizer.save(folder)
            write_json(folder / SCHEDULER, cast(Any, self.lr_scheduler).state_dict())
            if self.accelerator.scaler is not None:
                write_json(folder / SCALER, self.accelerator.scaler.state_dict())
            rng.save(folder)
            self.state.stateful_callbacks = cast(Any, {_OURS: self._kept()})
            self.state.save_to_json(str(folder / "trainer_state.json"))

        if self.accelerator.is_main_process:
            with guarded(f"write the checkpoint of step {step}", self.store.folder):
                written = self.store.write(step, fill, best)
                self.store.keep(self.config.save_total_limit, step, (best, self._last_good()))
            for watcher in self.watchers:
                watcher.on_save(written)

    def _kept(self) -> dict[str, Any]:
        """What a resume has to know besides: also what fitted into memory, since sums in other parts are rounded otherwise."""
        evaluating = None if self._evaluating is None else self._evaluating.budget
        budgets = {"budget": self.planner.budget, "evaluating": evaluating}
        return {"bad_evaluations": self.bad_evaluations, "share": self.planner.share, **budgets}

    def settle(self) -> None:
        """The step is done and noted: a checkpoint may be taken, unless an evaluation belongs to it."""
        if not self.control.should_evaluate and not float(self.state.epoch or 0.0).is_integer():
            self.settled()

    def settled(self) -> None:
        """A checkpoint may be taken: Ctrl-C is answered."""
        self._settled = RandomState.capture()
        self.interrupts.release()

    def unsettled(self) -> None:
        """From here on a checkpoint would hold half a step: Ctrl-C waits."""
        self.interrupts.hold()
        self._settled = None

    def save_if_settled(self) -> None:
        """On the way out: a checkpoint of this step, unless a second Ctrl-C cut its update or its evaluation short."""
        if self.learner.divided and not self.interrupts.answered:
            return  # this process is alone with it
        if self._settled is not None and self.state.global_step not in self.store.steps():
            self.save(self._settled)

    def _any_told(self, told: bool) -> bool:
        """Whether any process was told to stop."""
        return bool(processes.total(torch.tensor(float(told), device=self.args.device)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.student, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self.optimizer, Path(checkpoint))
            cast(Any, self.lr_scheduler).load_state_dict(read_json(Path(checkpoint) / SCHEDULER))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            RandomState.load(Path(checkpoint)).restore()

    def _load_callback_state(self) -> None:
        self.bad_evaluations, kept = bad_evaluations(self.state), _kept_in(self.state)
        # Where less fits by now, less it is; and another device has other measures.
        self.planner = replace(self.planner, budget=min(self.planner.budget, kept["budget"]))
        if kept["evaluating"] is not None:
            self._evaluating = replace(self.planner, budget=kept["evaluating"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(read_json(Path(checkpoint) / SCALER))


def bad_evaluations(state: Any) -> int:
    """Evaluations without an improvement, of a saved TrainerState."""
    return int(_kept_in(state)["bad_evaluations"])


def had_shared(state: Any) -> bool:
    """Whether the run of a saved TrainerState shared prompts."""
    return bool(_kept_in(state)["share"])


def _kept_in(state: Any) -> dict[str, Any]:
    return cast(dict[str, Any], state.stateful_callbacks[_OURS])
