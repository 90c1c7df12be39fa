"""`train`: one training run in one folder, from rows to weights, resumable at any moment."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, set_seed
from transformers.utils import logging as transformers_logging

from ..errors import ConfigError, TrainingError
from ..models.chat import ChatTokenizer
from ..models.weights import context_length, device_of, identity, load_tokenizer, resolve
from ..progress import bar
from .checkpoint import CheckpointStore, RandomState, load_trained
from .config import TrainingConfig
from .events import EventLog
from .files import clear_unfinished, first_damaged, guarded, sums, whole_folder, write_json
from .methods import prepare, save_weights
from .result import TrainingResult
from .rows import EncodedRow, TokenReport, encode_rows
from .trainer import RowTrainer, bad_evaluations, embedding_dropout, wants_autocast

log = logging.getLogger("dspyc.training")
_FORMAT = 1  # of the output folder
_one_at_a_time = threading.Lock()  # accelerate and torch's generators are the process's own
_SHOWN = 5


def train(
    model: str | Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    config: TrainingConfig | None = None,
    output_dir: str | Path,
    validation: Sequence[Mapping[str, Any]] = (),
    device: str = "auto",
    show_progress: bool = True,
) -> TrainingResult:
    """Fine-tune `model` on chat rows; their last messages are what is learned.

    The same call in the same `output_dir` goes on where it was stopped, and returns at once when it was done. Rows that do
    not fit the model are left out, and reported in `result.rows["too_long"]`, in the events and in the log.

    Raises:
        ConfigError: Settings that cannot be used, or an `output_dir` that holds another run.
        DataError: No rows, or rows that cannot be used; raised before the model is loaded.
        ModelError: The model cannot be found or read.
        TrainingError: The loss is not finite, or the folder cannot be written.
    """
    run = _Run(str(model), config or TrainingConfig(), Path(output_dir), device, show_progress)
    return run.carry_out(rows, validation)


class _Run:
    def __init__(self, model: str, config: TrainingConfig, folder: Path, device: str, show_progress: bool) -> None:
        self.model, self.config, self.folder, self.device, self.show = model, config, folder, device, show_progress
        self.base = resolve(model)
        device_of(device)
        self.store = CheckpointStore(folder / "checkpoints")

    def carry_out(self, rows: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> TrainingResult:
        if self.config.early_stopping_patience is not None and not validation:
            raise ConfigError(
                f"early_stopping_patience is {self.config.early_stopping_patience}, and there are no validation rows.",
                hint="Pass validation rows (or a validation_fraction above 0), or leave early stopping off.",
            )
        key = self._key(rows, validation)
        with guarded("start training", self.folder):
            self._claim(key)
            if (done := self._finished()) is not None:
                return done
        tokenizer = load_tokenizer(self.base)
        chat, limit = ChatTokenizer(tokenizer), self._limit(tokenizer)
        encoded, report = encode_rows(rows, chat, limit)
        held_out, held_report = encode_rows(validation, chat, limit, kind="validation")
        for kind, found in (("training", report), ("validation", held_report)):
            if found.too_long:
                shown = ", ".join(f"row {r.index} ({r.length} tokens)" for r in found.too_long[:_SHOWN])
                log.warning("%d %s rows do not fit into %s tokens: %s.", len(found.too_long), kind, limit, shown)
        with _one_at_a_time, _undisturbed():
            return self._train(tokenizer, encoded, held_out, report, held_report)

    # ---------------------------------------------------------------------------------------------- the folder

    def _key(self, rows: Sequence[Any], validation: Sequence[Any]) -> dict[str, Any]:
        """What is trained on what and how: two runs of one key give the same weights."""
        return {
            "format": _FORMAT,
            "model": identity(self.base),
            "rows": _digest(rows),
            "validation": _digest(validation),
            "config": self.config.model_dump(mode="json"),
        }

    def _claim(self, key: dict[str, Any]) -> None:
        """Make the folder this run's, or raise ConfigError where it is another's."""
        path = self.folder / "key.json"
        if not path.exists():
            if any((self.folder / name).exists() for name in ("weights", "checkpoints", "result.json")):
                raise ConfigError(
                    f"{self.folder} holds the files of something else and no key.json.", hint="Use another output_dir."
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, key)
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            held = {}
        if differing := _differences(held, key):
            raise ConfigError(
                f"{self.folder} holds another training run: its {', '.join(differing)} differ.",
                hint="Use another output_dir, or remove this one.",
            )
        self.store.folder.mkdir(exist_ok=True)
        for folder in (self.folder, self.store.folder):
            clear_unfinished(folder)

    def _finished(self) -> TrainingResult | None:
        """The result of this very run, if it ended and its weights are as they were written."""
        try:
            state = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
            result, files = TrainingResult.from_dict({**state, "path": str(self._weights)}), dict(state["files"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, TrainingError):
            return None
        if (name := first_damaged(self._weights, files)) is not None:
            log.warning("%s was cut or changed: the weights are made again.", self._weights / name)
            return None
        return result

    @property
    def _weights(self) -> Path:
        return self.folder / "weights"

    def _limit(self, tokenizer: Any) -> int | None:
        """Tokens that a row may have."""
        declared = tokenizer.model_max_length
        most = context_length(self.base) or (declared if declared < 1 << 30 else None)
        asked = self.config.max_length
        if asked is not None and most is not None and asked > most:
            raise ConfigError(
                f"`max_length` is {asked}, and {self.model} takes {most} tokens.", hint=f"Use at most {most}."
            )
        return asked or most

    # -------------------------------------------------------------------------------------------- the training

    def _train(
        self,
        tokenizer: Any,
        rows: list[EncodedRow],
        held_out: list[EncodedRow],
        report: TokenReport,
        held_report: TokenReport,
    ) -> TrainingResult:
        set_seed(self.config.seed)
        longest = max(report.max_length, held_report.max_length)
        model = prepare(self.base, self.config, self.device, longest)
        with guarded("read checkpoints", self.folder):
            checkpoint = self.store.newest_whole()
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")) if checkpoint else None
            events = EventLog(self.folder / "events.jsonl", state.global_step if state else None)
            self._note_start(events, state, report, held_report)
        trainer = RowTrainer(
            model,
            rows,
            config=self.config,
            store=self.store,
            events=events,
            validation=held_out,
            pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            autocast=wants_autocast(self.config.precision, next(model.parameters()).device),
        )
        set_seed(self.config.seed)  # dropout draws the same numbers however the model was made
        with embedding_dropout(model, self.config.embedding_dropout), torch.enable_grad():
            self._fit(trainer, checkpoint, state)
        return self._finish(trainer, tokenizer, report, held_report)

    def _note_start(self, events: EventLog, state: Any, report: TokenReport, held_report: TokenReport) -> None:
        if state is not None:
            events.write(state.global_step, state.epoch, event="resumed")
            return
        events.write(0, 0.0, event="started", rows=report.to_dict(), validation_rows=held_report.to_dict())

    def _fit(self, trainer: RowTrainer, checkpoint: Path | None, state: Any) -> None:
        if checkpoint is not None and self._had_stopped(state):
            load_trained(trainer.student, checkpoint)
            trainer.state = state
            return
        with bar(f"Training {Path(self.model).name}", trainer.total_steps(), show=self.show) as advance:
            trainer.advance = advance
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except KeyboardInterrupt:
                trainer.save_if_settled()
                raise
            except torch.OutOfMemoryError as error:
                raise TrainingError(
                    f"The device ran out of memory at step {trainer.state.global_step + 1}.",
                    hint="Halve batch_size and double gradient_accumulation (the result is the same), or set "
                    "gradient_checkpointing=True.",
                ) from error

    def _had_stopped(self, state: Any) -> bool:
        """Whether a checkpoint is the last of a run, whose weights were then not written."""
        patience = self.config.early_stopping_patience
        return state.global_step >= state.max_steps > 0 or (patience is not None and bad_evaluations(state) >= patience)

    def _finish(
        self, trainer: RowTrainer, tokenizer: Any, report: TokenReport, held_report: TokenReport
    ) -> TrainingResult:
        state, best = trainer.state, trainer.state.best_global_step
        kept = state.global_step if best is None else best
        if kept != state.global_step:
            with guarded("read the best checkpoint", self.store.folder):
                load_trained(trainer.student, self.store.path(kept))
        result = TrainingResult(
            path=str(self._weights),
            method=self.config.method,
            base=self.model,
            base_identity=identity(self.base),
            steps=state.global_step,
            kept_step=kept,
            seconds=round(trainer.events.seconds(), 3),
            train_loss=trainer.events.last_loss or 0.0,
            validation_loss=trainer.events.last_validation_loss if best is None else state.best_metric,
            stopped_early=state.global_step < state.max_steps,
            rows=report.to_dict(),
            validation_rows=held_report.to_dict(),
        )
        with guarded("write the weights", self.folder):
            with whole_folder(self._weights) as aside:
                save_weights(trainer.student, tokenizer, self.model, self.base, aside)
            files = sums(self._weights)
            write_json(self.folder / "result.json", {**result.to_dict(), "path": "weights", "files": files})
        return result


def _digest(rows: Sequence[Any]) -> str:
    """16 hex digits of what training sees of the rows."""
    digest = hashlib.sha256()
    for row in rows:
        seen = {k: row.get(k) for k in ("messages", "tools")} if isinstance(row, Mapping) else row
        digest.update(json.dumps(seen, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]


def _differences(held: Mapping[str, Any], key: Mapping[str, Any]) -> list[str]:
    names = [name for name in key if name != "config" and held.get(name) != key[name]]
    before = held.get("config") or {}
    return names + [f"config.{name}" for name, value in key["config"].items() if before.get(name) != value]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave the process as it was: its random generators, and how loud transformers is."""
    talk: Any = transformers_logging
    before, loudness, bars = RandomState.capture(), talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        before.restore()
        talk.set_verbosity(loudness)
        if bars:
            talk.enable_progress_bar()
