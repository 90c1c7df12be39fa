"""`train`: one training run in one folder, from rows to weights, resumable at any moment."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, set_seed

from ..errors import ConfigError, TrainingError
from ..files import sha256_of, whole_folder, write_bytes, write_json
from ..models import memory
from ..models.chat import ChatTokenizer
from ..models.loaded import make_room
from ..models.longrope import short_length
from ..models.weights import check_adapter, device_of, identity, load_tokenizer, resolve
from ..progress import bar, tell
from . import division, processes, shards
from .adapters import continue_adapter, continuing
from .alone import alone
from .callbacks import Callback
from .card import base_name, describe
from .checkpoint import CheckpointStore, load_trained, put_trained, trained_tensors
from .config import TrainingConfig
from .curves import CURVES, draw_curves
from .events import EventLog, read_events
from .files import guarded, sums
from .folder import CHECKPOINTS, claimed, digest, finished
from .launching import check_processes, train_in_processes
from .loss import Learner
from .methods import check_method, choose_attention, embedding_dropout, prepare, save_weights
from .out_of_memory import others_wait
from .precision import autocast_dtype, frozen_dtype, lighter_base
from .probe import why_not_shared
from .result import TrainingResult
from .rows import EncodedRow, TokenReport, encode_rows, row_limit
from .sharing import Planner
from .trackers import check_trackers
from .trainer import RowTrainer, bad_evaluations, had_shared

log = logging.getLogger("dspyc.training")
_FORMAT = 3  # of the output folder
_SHOWN = 5


def train(
    model: str | Path | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    config: TrainingConfig | None = None,
    output_dir: str | Path,
    validation: Sequence[Mapping[str, Any]] = (),
    device: str = "auto",
    adapter: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    show_progress: bool = True,
    num_processes: int = 1,
    resume_from: int | None = None,
) -> TrainingResult:
    """Fine-tune `model` on chat rows; their last messages are what is learned.

    The same call in the same `output_dir` goes on where it was stopped, and returns at once when it was done. Rows that do
    not fit the model are left out, and reported in `result.rows["too_long"]`, in the events and in the log.

    Args:
        model: A folder, a Hugging Face id or "dspyc/tiny"; None takes `config.model`.
        adapter: The folder of a LoRA adapter on `model` to train on, with the rank, scale and modules that it has; a config
            that names others is an error.
        num_processes: How many processes train together, each on a GPU of its own or on its share of the cores; the weights
            are those that one process gives, except for the order of sums.
        resume_from: The step of the checkpoint to go on from, instead of the newest whole one. Checkpoints of later steps are
            kept as `checkpoints/later-N`; a finished run is finished anew. Repeating the same call goes on from the newest; to
            go back to that step once more, remove `checkpoints/went_back.json`.

    Raises:
        ConfigError: Settings that cannot be used, an `output_dir` that holds another run, or no checkpoint to `resume_from`.
        DataError: No rows, or rows that cannot be used; raised before the model is loaded.
        ModelError: The model cannot be found or read.
        TrainingError: The loss is not finite, or the folder cannot be written.
    """
    config = config or TrainingConfig()
    check_processes(num_processes, device_of(device), callbacks=callbacks, adapter=adapter)
    run = _Run(config.base(model), config, Path(output_dir), device, adapter, callbacks, show_progress, resume_from)
    return run.carry_out(rows, validation, num_processes)


def check_run(config: TrainingConfig, device: torch.device, *, validated: bool) -> None:
    """Find what needs no model to be found.

    Raises:
        ConfigError: This machine cannot train with the settings, or they need validation rows that there will not be.
    """
    check_method(config, device)
    check_trackers(config)
    if config.early_stopping_patience is not None and not validated:
        raise ConfigError(
            f"early_stopping_patience is {config.early_stopping_patience}, and there are no validation rows.",
            hint="Pass validation rows, or from 10 rows on a validation_fraction above 0; or turn early stopping off: "
            "early_stopping_patience=None (--set early_stopping_patience=null).",
        )


class _Run:
    def __init__(
        self,
        model: str,
        config: TrainingConfig,
        folder: Path,
        device: str,
        adapter: str | Path | None,
        callbacks: Sequence[Callback],
        show_progress: bool,
        resume_from: int | None,
    ) -> None:
        self.resume_from = resume_from
        self.base = resolve(model)
        self.adapter = resolve(adapter) if adapter is not None else None
        if self.adapter is not None:
            config = continuing(self.adapter, config, self.base)
            check_adapter(self.adapter)
        self.model, self.config, self.folder = model, config, folder
        self.device = processes.own_device(device_of(device))
        self.store = CheckpointStore(folder / CHECKPOINTS)
        self.callbacks = list(callbacks) if processes.is_main() else []
        self.show = show_progress and processes.is_main()
        self.division = division.requested()
        if self.division is not None and config.method == "qlora":
            raise ConfigError(
                "method='qlora' and a model that is divided among processes do not go together.",
                hint="Launch processes that hold whole models: 4 bits are an eighth of the memory. Or use method='lora'.",
            )

    def carry_out(
        self, rows: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], count: int
    ) -> TrainingResult:
        check_run(self.config, self.device, validated=bool(validation))
        key = self._key(rows, validation)
        if count > 1 and not processes.several():
            self._hand_over(count, key, rows, validation)
        with division.carried_out_here():
            processes.join(cpu=self.device.type == "cpu")
        with claimed(self.folder, key):
            if processes.is_main():
                self._go_back()
            processes.wait()
            done = finished(self.folder)
            processes.wait()  # all have read the same
            return done or self._encode_and_train(rows, validation)

    def _hand_over(
        self,
        count: int,
        key: dict[str, Any],
        rows: Sequence[Mapping[str, Any]],
        validation: Sequence[Mapping[str, Any]],
    ) -> None:
        """Let other processes carry it out, unless it is finished; this one then finds what they have made."""
        with claimed(self.folder, key):
            self._go_back()
            done = finished(self.folder)
        if done is None:
            make_room(self.device)
            train_in_processes(
                count, self.model, rows, validation, self.config, self.folder, self.device, self.show, self.resume_from
            )

    def _go_back(self) -> None:
        """Let the run go on from the checkpoint that is asked for; where the same call did that before, from the newest."""
        if self.resume_from is not None and not self.store.go_back(self.resume_from):
            return
        with guarded("start training", self.folder):
            if self.resume_from is not None:
                (self.folder / "result.json").unlink(missing_ok=True)  # it is finished no more
            self.store.note_return(self.resume_from)

    def _encode_and_train(
        self, rows: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
    ) -> TrainingResult:
        tokenizer = load_tokenizer(self.base)
        chat, limit = ChatTokenizer(tokenizer), row_limit(self.base, tokenizer, self.config.max_length)
        encoded, report = encode_rows(rows, chat, limit)
        held_out, held_report = encode_rows(validation, chat, limit, kind="validation")
        for kind, found in (("training", report), ("validation", held_report)):
            if found.too_long and processes.is_main():
                shown = ", ".join(f"row {r.index} ({r.length} tokens)" for r in found.too_long[:_SHOWN])
                log.warning("%d %s rows do not fit into %s tokens: %s.", len(found.too_long), kind, limit, shown)
        try:
            with alone(self.device), division.carried_out_here():
                return self._train(tokenizer, encoded, held_out, report, held_report)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            # Of weights or the optimizer: rows are computed in smaller parts.
            held = {frozen_dtype(self.config.precision, self.device)} if self.config.method == "lora" else set()
            raise TrainingError(
                f"The device ran out of memory, and not for the rows that are computed together: {error}",
                hint="Use method='lora' or 'qlora', a smaller model or a larger device, or end what else runs on this one."
                + lighter_base(held, self.device),
            ) from error

    def _key(self, rows: Sequence[Any], validation: Sequence[Any]) -> dict[str, Any]:
        """What is trained on what and how: two runs of one key give the same weights."""
        return {
            "format": _FORMAT,
            "model": identity(self.base),
            "adapter": identity(self.adapter) if self.adapter is not None else None,
            "rows": digest(rows),
            "validation": digest(validation),
            "config": self.config.model_dump(mode="json"),
        }

    def _train(
        self,
        tokenizer: Any,
        rows: list[EncodedRow],
        held_out: list[EncodedRow],
        report: TokenReport,
        held_report: TokenReport,
    ) -> TrainingResult:
        set_seed(self.config.seed)
        model = self._prepared()
        if self.adapter is not None:
            continue_adapter(model, self.adapter)
        with guarded("read checkpoints", self.folder):
            checkpoint = self.store.newest_whole()
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")) if checkpoint else None
            events = EventLog(self.folder / "events.jsonl", state.global_step if state else None, processes.is_main())
        learner = Learner.of(model, tokenizer, rows, self.config)
        if self.division is not None:
            shards.divide(learner, self.division, self.device)
        trainer = RowTrainer(
            learner,
            rows,
            config=self.config,
            store=self.store,
            events=events,
            planner=Planner.of(
                self.device.type, self.config.micro_batch_tokens, share=False, short=short_length(model.config)
            ),
            validation=held_out,
            autocast=autocast_dtype(self.config.precision, self.device),
            callbacks=self.callbacks,
        )
        if not (checkpoint is not None and self._had_stopped(state)):
            trainer.planner, why = self._planner(trainer, state)
            if not learner.in_place:
                choose_attention(model, report.max_length)
            self._announce(trainer, state, report, held_report, why)
        set_seed(self.config.seed)  # dropout draws the same numbers however the model was made
        with embedding_dropout(model, self.config.embedding_dropout), torch.enable_grad():
            self._fit(trainer, checkpoint, state)
        return self._finish(trainer, tokenizer, report, held_report)

    def _prepared(self) -> Any:
        """The model to train; in main memory, where it is yet to be divided."""
        return prepare(self.base, self.config, str(self.device), "cpu" if self.division is not None else None)

    def _planner(self, trainer: RowTrainer, state: Any) -> tuple[Planner, str | None]:
        """The planner that the run uses, and why it does not share prompts, if it does not. `state` is that of a checkpoint."""
        plain, config = trainer.planner, self.config
        if not config.shared_prefix:
            return plain, "`shared_prefix` is False"
        if config.prompt_loss_weight:
            return plain, f"`prompt_loss_weight` is {config.prompt_loss_weight:g}, so prompts are learned too"
        if config.gradient_checkpointing:
            return (
                plain,
                "`gradient_checkpointing` computes activations again, which keys and values of a prompt are not",
            )
        if state is not None and not had_shared(state):
            return plain, "the run did not share them before it was stopped"  # for one thing, memory may have run out
        shared = replace(plain, share=True)
        try:
            why = why_not_shared(trainer.learner, [*trainer.rows, *trainer.validation], shared)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            if trainer.learner.divided:
                when = "when shared prompts were compared with whole rows"
                raise others_wait(when, trainer.planner.budget) from error
            trainer.learner.attend_in_place(False)
            why = "memory ran out when it was compared with whole rows"
        if trainer.learner.in_place and not trainer.shares(shared):
            trainer.learner.attend_in_place(False)  # behind no prompt the model's own attention is faster
        if why is not None and processes.is_main():
            log.warning("Prompts are not shared in training %s: %s.", self.model, why)
        return (plain, why) if why is not None else (replace(shared, copied=not trainer.learner.in_place), None)

    def _announce(
        self, trainer: RowTrainer, state: Any, report: TokenReport, held_report: TokenReport, why: str | None
    ) -> None:
        """Say what will be trained and what it will need, before the first step."""
        events = trainer.events
        if state is not None:
            with guarded("write events", self.folder):
                events.write(state.global_step, state.epoch, event="resumed")
            return
        expected = trainer.forecast()
        facts: dict[str, Any] = {
            "rows": report.to_dict(),
            "validation_rows": held_report.to_dict(),
            "forecast": expected.to_dict(),
            "shared_prefix": why is None,
            "why_not_shared": why,
        }
        with guarded("write events", self.folder):
            events.write(0, 0.0, event="started", **facts)
        for watcher in self.callbacks:
            watcher.on_start(facts)
        if self.show:
            tell(f"{report.describe()} {expected.describe()}")

    def _fit(self, trainer: RowTrainer, checkpoint: Path | None, state: Any) -> None:
        if checkpoint is not None and self._had_stopped(state):
            load_trained(trainer.student, checkpoint)
            trainer.state = state
            return
        with bar(f"Training {Path(self.model).name}", trainer.total_steps(), show=self.show) as advance:
            trainer.advance = advance
            try:
                with trainer.interrupts, processes.left_to_main():
                    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except KeyboardInterrupt:
                trainer.save_if_settled()
                raise

    def _had_stopped(self, state: Any) -> bool:
        """Whether a checkpoint is the last of a run, whose weights were then not written."""
        patience = self.config.early_stopping_patience
        return state.global_step >= state.max_steps > 0 or (patience is not None and bad_evaluations(state) >= patience)

    def _finish(
        self, trainer: RowTrainer, tokenizer: Any, report: TokenReport, held_report: TokenReport
    ) -> TrainingResult:
        """Write `final_model`, `best_model` where rows were held out, and the result."""
        state, events = trainer.state, trainer.events
        best = state.best_global_step
        early = self.config.early_stopping_patience is not None
        result = TrainingResult(
            path=str(self.folder / ("best_model" if early else "final_model")),
            final_path=str(self.folder / "final_model"),
            best_path=None if best is None else str(self.folder / "best_model"),
            method=self.config.method,
            base=self.model,
            base_identity=identity(self.base),
            steps=state.global_step,
            kept_step=best if early and best is not None else state.global_step,
            best_step=best,
            seconds=round(events.seconds(), 3),
            train_loss=events.last_loss,
            validation_loss=state.best_metric if early else events.last_validation_loss,
            stopped_early=state.global_step < state.max_steps,
            rows=report.to_dict(),
            validation_rows=held_report.to_dict(),
        )
        student = self._whole(trainer.student) if self.division is not None else trainer.student
        if processes.is_main():
            with guarded("write the weights", self.folder):
                self._write(trainer, student, tokenizer, result)
        processes.wait()
        for watcher in self.callbacks:
            watcher.on_end(result)
        return result

    def _whole(self, student: Any) -> Any:
        """The same model in one piece, for the main process; the others help it, and get None."""
        tensors = shards.gather(trained_tensors(student))
        if not processes.is_main():
            return None
        whole = self._prepared()
        put_trained(whole, tensors)
        return whole

    def _write(self, trainer: RowTrainer, student: Any, tokenizer: Any, result: TrainingResult) -> None:
        """The weights of the last step and of the best one, the curves and the model card; last, what they hash to."""
        best, names = result.best_step, ["final_model"]
        events = read_events(trainer.events.path)
        title = f"{base_name(self.model)}, {self.config.method}: {result.rows['rows']:,} rows"
        picture = draw_curves(events, title, best)

        def write(name: str, step: int) -> None:
            with whole_folder(self.folder / name) as aside:
                save_weights(student, tokenizer, self.model, self.base, aside)
                describe(aside, result, self.config, step, events, picture)

        if best is not None:
            names.append("best_model")
            if best != result.steps:
                last = {name: tensor.cpu().clone() for name, tensor in trained_tensors(student).items()}
                load_trained(student, self.store.path(best))
                write("best_model", best)
                put_trained(student, last)
        write("final_model", result.steps)
        if best == result.steps:
            with whole_folder(self.folder / "best_model") as aside:
                shutil.copytree(self.folder / "final_model", aside, dirs_exist_ok=True)
        files = {f"{name}/{file}": digest for name in names for file, digest in sums(self.folder / name).items()}
        if picture is not None:
            write_bytes(self.folder / CURVES, picture)
            files[CURVES] = sha256_of(self.folder / CURVES)
        write_json(self.folder / "result.json", {**result.to_dict(self.folder), "files": files})
