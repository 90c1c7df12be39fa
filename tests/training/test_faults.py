"""Faults on the way: memory that runs out, losses that are no numbers, half precision that overflows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook

from dspyc.errors import ConfigError, TrainingError
from dspyc.training import Callback, Progress, TrainingConfig, TrainingResult, train
from dspyc.training.checkpoint import CheckpointStore
from dspyc.training.division import Division
from dspyc.training.events import EventLog, read_events
from dspyc.training.loss import Learner
from dspyc.training.shards import divide
from dspyc.training.sharing import Planner
from dspyc.training.trainer import RowTrainer

from . import small

SETTINGS: dict[str, Any] = {"method": "full", "precision": "fp32", "batch_size": 8, "logging_steps": 1, "epochs": 3}


def trainer(
    model: Any, folder: Path, *, budget: int = 10_000, divided: Division | None = None, **settings: Any
) -> RowTrainer:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    config = TrainingConfig(**(SETTINGS | settings))
    torch.manual_seed(0)
    learner = Learner(model, [5, 6, 7])
    if divided is not None:
        divide(learner, divided, torch.device("cpu"))
    return RowTrainer(
        learner,
        small.encoded(20, "the question is "),
        config=config,
        store=CheckpointStore(folder / "checkpoints"),
        events=EventLog(folder / "events.jsonl"),
        planner=Planner(budget, worth=8),
    )


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


def limit_memory(model: Any, most: int, error: Exception = OUT_OF_MEMORY[0]) -> list[int]:
    """A device that holds the activations of `most` tokens: what asks for more runs out of memory, as CUDA says it."""
    sizes: list[int] = []

    def hold(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(kwargs["input_ids"].numel())
        if sizes[-1] > most:
            raise error

    model.model.register_forward_pre_hook(hold, with_kwargs=True)
    return sizes


def losses(folder: Path) -> list[float]:
    return [x for e in read_events(folder / "events.jsonl") if "loss" in e for x in (e["loss"], e["grad_norm"])]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "cuBLAS"])
def test_memory_that_runs_out_divides_the_batch_and_not_the_step(tmp_path: Path, error: Exception) -> None:
    plenty, little = small.model(), small.model()
    trainer(plenty, tmp_path / "plenty").train()
    short = trainer(little, tmp_path / "little")
    sizes = limit_memory(little, 60, error)
    short.train()
    assert max(sizes) > 60
    assert max(sizes[len(sizes) // 2 :]) <= 60  # it learned the size that fits
    assert losses(tmp_path / "little") == pytest.approx(losses(tmp_path / "plenty"), rel=1e-4)
    for mine, other in zip(little.parameters(), plenty.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    said = [e for e in read_events(tmp_path / "little" / "events.jsonl") if e.get("event") == "out_of_memory"]
    assert said
    assert said[-1]["micro_batch_tokens"] == short.planner.budget < 10_000


def test_a_single_row_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    model = small.model()
    limit_memory(model, 5)
    with pytest.raises(TrainingError, match=r"at step 1, where a single row.*gradient_checkpointing"):
        trainer(model, tmp_path).train()


class SmallDevice:
    """Any model's input embeddings run out of memory on more than so many tokens, in training or in evaluation."""

    def __init__(self, *, training: int = 10_000, evaluation: int = 10_000) -> None:
        self.most = {True: training, False: evaluation}
        self.refused: list[bool] = []
        self.trained: list[int] = []  # tokens of every call in training since it last refused one

    def __call__(self, module: Any, inputs: Any, _: Any) -> None:
        if not isinstance(module, torch.nn.Embedding):
            return
        if inputs[0].numel() > self.most[module.training]:
            self.refused.append(module.training)
            self.trained.clear()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if module.training:
            self.trained.append(inputs[0].numel())


def train_on(device: SmallDevice, base: Path, out: Path, measured: str = "v") -> TrainingResult:
    hook = register_module_forward_hook(device)
    rows, held_out = small.rows(20, "the question is "), small.rows(8, measured)
    try:
        config = TrainingConfig(**SETTINGS)
        return train(str(base), rows, config=config, output_dir=out, validation=held_out, device="cpu")
    finally:
        hook.remove()


@pytest.mark.parametrize("limits", [{"training": 130}, {"evaluation": 130}])
def test_a_run_whose_largest_batch_does_not_fit_goes_on_in_smaller_parts(tmp_path: Path, limits: Any) -> None:
    base, small_device = small.folder(tmp_path / "model"), SmallDevice(**limits)
    plenty = train_on(SmallDevice(), base, tmp_path / "plenty")
    little = train_on(small_device, base, tmp_path / "little")
    assert set(small_device.refused) == {"training" in limits}
    assert little.validation_loss == pytest.approx(plenty.validation_loss, rel=1e-4)
    assert losses(tmp_path / "little") == pytest.approx(losses(tmp_path / "plenty"), rel=1e-3)
    said = [e for e in read_events(tmp_path / "little" / "events.jsonl") if e.get("event") == "out_of_memory"]
    assert said[-1]["micro_batch_tokens"] < 2_048
    assert {e["computing"] for e in said} == {"training" if "training" in limits else "evaluations"}
    if "evaluation" in limits:
        assert len(small_device.refused) < 5  # it is remembered
        assert max(small_device.trained) > 130  # and is no matter of training
    if "training" in limits:
        assert said[0]["step"] == 0  # before the first step, where the largest batch is measured


class Stop(Callback):
    """An error that ends the run behind the checkpoint of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, checkpoint: Path) -> None:
        if int(checkpoint.name.split("-")[1]) == self.step:
            raise RuntimeError("stopped here")


@pytest.mark.parametrize("limits", [{"training": 130}, {"evaluation": 44}])
def test_a_resume_computes_no_more_at_once_than_fitted_before(tmp_path: Path, limits: Any) -> None:
    """Where memory ran out of training's rows, or of those that sharing prompts is tried on, which is then not done."""
    base, rows = small.folder(tmp_path / "model"), small.rows(20, "the question is ")
    config = TrainingConfig(**(SETTINGS | {"save_steps": 1}))

    def run(device: SmallDevice, out: str, *callbacks: Callback) -> bytes:
        hook = register_module_forward_hook(device)
        try:
            train(str(base), rows, config=config, output_dir=tmp_path / out, callbacks=callbacks, device="cpu")
        finally:
            hook.remove()
        return (tmp_path / out / "final_model" / "model.safetensors").read_bytes()

    whole = SmallDevice(**limits)
    expected = run(whole, "whole")
    assert whole.refused
    with pytest.raises(RuntimeError, match="stopped here"):
        run(SmallDevice(**limits), "out", Stop(5))
    assert run(SmallDevice(), "out") == expected


@pytest.mark.parametrize("limits", [{"training": 10}, {"evaluation": 70}])
def test_a_row_that_does_not_fit_says_so_wherever_it_is_computed(tmp_path: Path, limits: Any) -> None:
    base = small.folder(tmp_path / "model")
    with pytest.raises(TrainingError, match=r"a single row, or a prompt that rows share, is computed at once \(\d+"):
        train_on(SmallDevice(**limits), base, tmp_path / "out", "a long question: " * 6)


def test_a_loss_that_is_no_number_names_its_rows_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    model = small.model()
    made = trainer(model, tmp_path, save_steps=2)
    poisoned = made.rows[7]

    def spoil(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if made.state.global_step >= 5 and (kwargs["input_ids"] == poisoned.ids[-2]).any():
            output.last_hidden_state = output.last_hidden_state * float("nan")
        return output

    model.model.register_forward_hook(spoil, with_kwargs=True)
    with pytest.raises(TrainingError) as raised:
        made.train()
    text = str(raised.value)
    assert "The loss became nan at step" in text
    assert "training rows" in text
    step = int(text.split("at step ")[1].split()[0])
    good = made.store.steps()[-1]
    assert good < step
    assert str(made.store.path(good)) in text
    assert all(torch.isfinite(t).all() for t in load_file(made.store.path(good) / "model.safetensors").values())


def test_a_checkpoint_is_good_once_a_step_from_it_was_finite(tmp_path: Path) -> None:
    made = trainer(small.model(), tmp_path, save_steps=1, save_total_limit=1)

    def spoil(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if made.state.global_step == 5:
            output.last_hidden_state = output.last_hidden_state * float("nan")
        return output

    made.student.model.register_forward_hook(spoil, with_kwargs=True)
    with pytest.raises(TrainingError) as raised:
        made.train()
    text = str(raised.value)
    assert "became nan at step 6" in text
    assert f"The last good checkpoint is {made.store.path(4)}" in text
    assert "diverged-5" in text
    assert made.store.newest_whole() == made.store.path(4)  # where the same call goes on
    assert (made.store.folder / "diverged-5" / "model.safetensors").exists()


def test_weights_that_give_no_number_are_no_good_checkpoint(tmp_path: Path) -> None:
    base, out = small.folder(tmp_path / "model"), tmp_path / "out"
    wild = {"learning_rate": 1e30, "max_grad_norm": 0.0, "scheduler": "constant", "save_steps": 1}
    for _ in range(2):  # again from the start
        with pytest.raises(TrainingError, match=r"at step 2 of 9.*There is no good checkpoint"):
            train(str(base), small.rows(20), config=TrainingConfig(**(SETTINGS | wild)), output_dir=out)
        assert [p.name for p in (out / "checkpoints").iterdir()] == ["diverged-1"]


class Overflow(Callback):
    """Gradients that are infinite at one step; and once, at another, an error that ends the run."""

    def __init__(self, step: int, stop: int | None = None) -> None:
        self.step, self.stop, self.done = step, stop, 0
        self.scales: dict[int, dict[str, Any]] = {}
        self.weights: dict[int, bytes] = {}

    def __call__(self, module: Any, _: Any, output: Any) -> None:
        if self.done == self.step - 1 and isinstance(module, torch.nn.Linear) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("inf"))

    def on_save(self, checkpoint: Path) -> None:
        self.done = int(checkpoint.name.split("-")[1])
        self.scales[self.done] = json.loads((checkpoint / "scaler.json").read_text())
        self.weights[self.done] = (checkpoint / "model.safetensors").read_bytes()
        if self.done == self.stop:
            raise RuntimeError("stopped here")


def half_precision(base: Path, out: Path, seen: Overflow, **settings: Any) -> TrainingResult:
    config = TrainingConfig(**(SETTINGS | {"precision": "fp16", "save_steps": 1, "learning_rate": 1e-2} | settings))
    hook = register_module_forward_hook(seen)
    try:
        return train(str(base), small.rows(20), config=config, output_dir=out, callbacks=[seen], device="cpu")
    finally:
        hook.remove()


def test_half_precision_skips_a_step_that_overflows_and_lowers_its_scale_which_a_resume_keeps(tmp_path: Path) -> None:
    base, whole = small.folder(tmp_path / "model"), Overflow(4)
    result = half_precision(base, tmp_path / "whole", whole)
    assert result.steps == 9
    assert (result.train_loss or 9.0) < 4.5  # from 5.6
    assert {step: whole.scales[step]["scale"] / whole.scales[1]["scale"] for step in (3, 4, 9)} == {
        3: 1,
        4: 0.5,
        9: 0.5,
    }
    assert [step for step in range(2, 10) if whole.weights[step] == whole.weights[step - 1]] == [4]
    norms = {e["step"]: e["grad_norm"] for e in read_events(tmp_path / "whole" / "events.jsonl") if "grad_norm" in e}
    assert [step for step, norm in norms.items() if norm is None] == [4]

    with pytest.raises(RuntimeError, match="stopped here"):
        half_precision(base, tmp_path / "out", Overflow(4, stop=6))
    resumed = Overflow(0)
    half_precision(base, tmp_path / "out", resumed)
    assert sorted(resumed.scales) == [7, 8, 9]
    assert (resumed.scales[9], resumed.weights[9]) == (whole.scales[9], whole.weights[9])


class AlwaysOverflow(Overflow):
    def __call__(self, module: Any, _: Any, output: Any) -> None:
        if self.done >= self.step - 1 and isinstance(module, torch.nn.Linear) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize(("first", "settings", "last"), [(1, {}, 9), (4, {"epochs": 20}, 23)])
def test_half_precision_that_never_stops_overflowing_is_an_error(
    tmp_path: Path, first: int, settings: dict[str, Any], last: int
) -> None:
    base = small.folder(tmp_path / "model")
    with pytest.raises(
        TrainingError, match=rf"The gradient, as in the \d+ steps before, became (nan|inf) at step {last} "
    ):
        half_precision(base, tmp_path / "out", AlwaysOverflow(first), **settings)


def test_the_norm_of_gradients_that_overflowed_is_null(tmp_path: Path) -> None:
    made = trainer(small.model(), tmp_path, report_to="tensorboard")
    made.log({"loss": 2.0, "grad_norm": float("nan")})
    line = json.loads((tmp_path / "events.jsonl").read_text())
    assert (line["loss"], line["grad_norm"]) == (2.0, None)


class FullDisk:
    """From the first forward pass on there is no room for another event."""

    def __init__(self, events: Path) -> None:
        self.events = events

    def __call__(self, *_: Any) -> None:
        if self.events.is_file():
            self.events.unlink()
            self.events.symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("resumed", [False, True])
def test_a_disk_that_is_full_before_the_first_step_is_an_error_that_says_so(tmp_path: Path, resumed: bool) -> None:
    base, out, rows = small.folder(tmp_path / "model"), tmp_path / "out", small.rows(20, "the question is ")
    config = TrainingConfig(**(SETTINGS | {"save_steps": 2}))
    if resumed:
        with pytest.raises(RuntimeError, match="the callback's own"):
            train(str(base), rows, config=config, output_dir=out, callbacks=[Fails(4)])
    hook = register_module_forward_hook(FullDisk(out / "events.jsonl"))
    try:
        with pytest.raises(TrainingError, match=r"Cannot write events in .*Free some space"):
            train(str(base), rows, config=config, output_dir=out)
    finally:
        hook.remove()


class Watch(Callback):
    def __init__(self) -> None:
        self.logged: list[Progress] = []
        self.evaluated: list[Progress] = []
        self.saved: list[Path] = []
        self.started: list[dict[str, Any]] = []
        self.ended: list[TrainingResult] = []

    def on_start(self, report: dict[str, Any]) -> None:
        self.started.append(report)

    def on_log(self, progress: Progress) -> None:
        self.logged.append(progress)

    def on_evaluate(self, progress: Progress) -> None:
        self.evaluated.append(progress)

    def on_save(self, checkpoint: Path) -> None:
        assert (checkpoint / "manifest.json").exists()
        self.saved.append(checkpoint)

    def on_end(self, result: TrainingResult) -> None:
        self.ended.append(result)


def test_a_callback_sees_what_the_events_say(tmp_path: Path) -> None:
    base, watch = small.folder(tmp_path / "model"), Watch()
    config = TrainingConfig(**SETTINGS)
    rows, held_out = small.rows(20, "a prompt that all of them share: " * 3), small.rows(4, "v")
    result = train(str(base), rows, config=config, output_dir=tmp_path / "out", validation=held_out, callbacks=[watch])
    assert [p.step for p in watch.logged] == list(range(1, result.steps + 1))
    assert [p.step for p in watch.evaluated] == [3, 6, 9]
    assert [p.name for p in watch.saved][-1] == f"checkpoint-{result.steps}"
    assert watch.ended == [result]
    events = read_events(tmp_path / "out" / "events.jsonl")
    assert [e["loss"] for e in events if "loss" in e] == [p.loss for p in watch.logged]
    for progress in watch.logged:
        assert progress.total_steps == result.steps
        assert progress.learning_rate is not None
        assert (progress.grad_norm or 0) > 0
        assert (progress.tokens_per_second or 0) > 0
        assert 10_000_000 < (progress.memory or 0) < 100e9
    assert len({p.seconds for p in watch.logged}) > 1
    (report,) = watch.started
    tokens, computed = report["forecast"]["tokens"], report["forecast"]["computed_tokens"]
    assert tokens == round(report["rows"]["mean_length"] * report["rows"]["rows"])
    assert computed < 0.6 * tokens  # nearly all of a row is the prompt that all share
    assert report["shared_prefix"] is True


class Fails(Callback):
    def __init__(self, step: int = 0) -> None:
        self.step = step

    def on_log(self, progress: Progress) -> None:
        if progress.step >= self.step:
            raise RuntimeError("the callback's own")


def test_an_error_in_a_callback_ends_the_run_and_the_same_call_goes_on(tmp_path: Path) -> None:
    base, config = (
        small.folder(tmp_path / "model"),
        TrainingConfig(**(SETTINGS | {"save_steps": 1, "logging_steps": 4})),
    )
    with pytest.raises(RuntimeError, match="the callback's own"):
        train(str(base), small.rows(20), config=config, output_dir=tmp_path / "out", callbacks=[Fails()])
    result = train(str(base), small.rows(20), config=config, output_dir=tmp_path / "out")
    assert result.steps == 9
    assert any(e.get("event") == "resumed" for e in read_events(tmp_path / "out" / "events.jsonl"))


def test_a_tracker_gets_the_numbers_of_the_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    base, config = small.folder(tmp_path / "model"), TrainingConfig(**(SETTINGS | {"report_to": "tensorboard"}))
    train(str(base), small.rows(20), config=config, output_dir=tmp_path / "out", validation=small.rows(4, "v"))
    (file,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    seen = EventAccumulator(str(file.parent))
    seen.Reload()
    events = read_events(tmp_path / "out" / "events.jsonl")
    for theirs, ours in (("train/loss", "loss"), ("train/grad_norm", "grad_norm"), ("eval/loss", "validation_loss")):
        tracked = [(scalar.step, scalar.value) for scalar in seen.Scalars(theirs)]
        assert tracked == [(e["step"], pytest.approx(e[ours])) for e in events if ours in e]
        assert tracked


def test_a_tracker_that_is_not_installed_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mlflow is not installed.*pip install mlflow"):
        train("dspyc/tiny", small.rows(4), config=TrainingConfig(report_to=("mlflow",)), output_dir=tmp_path / "out")


class Interrupted(EventLog):
    def write(self, step: int, epoch: float, **facts: Any) -> None:
        if step == 7:
            raise KeyboardInterrupt
        super().write(step, epoch, **facts)


def test_a_checkpoint_on_the_way_out_stands_for_no_step_that_is_not_noted(tmp_path: Path) -> None:
    made = trainer(small.model(), tmp_path, save_steps=100)
    made.events = Interrupted(tmp_path / "events.jsonl")
    with pytest.raises(KeyboardInterrupt):
        made.train()
    made.save_if_settled()
    assert made.store.steps() == []  # a resume from step 7 would leave its line out


@pytest.mark.parametrize(("kind", "most"), [("llama", 4), ("gemma2", 2)])
def test_rows_that_copy_their_prompt_are_computed_fewer_at_a_time(tmp_path: Path, kind: str, most: int) -> None:
    """Gemma 2's attention is its own, so every row behind a prompt holds a copy of its keys and values."""
    base, calls = small.folder(tmp_path / "model", kind), []

    def see(module: Any, inputs: Any, _: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and module.training:
            calls.append(len(inputs[0]))

    hook = register_module_forward_hook(see)
    try:
        config = TrainingConfig(**(SETTINGS | {"epochs": 1, "micro_batch_tokens": 150}))
        rows = small.rows(16, "a prompt that all of them share: " * 4)
        train(str(base), rows, config=config, output_dir=tmp_path / "out")
    finally:
        hook.remove()
    assert max(calls) == most
