"""A run that is killed, interrupted or robbed of its disk ends with the weights of one that was not.

Processes that are killed are forked from one that has loaded everything, which is what takes a process its time.
"""

import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from dspyc.errors import ConfigError, TrainingError
from dspyc.locks import FolderLock
from dspyc.training import Callback, Progress, TrainingConfig, train
from dspyc.training.checkpoint import CheckpointStore
from dspyc.training.events import read_events
from tests.forks import FORKS

from . import small

SETTINGS: dict[str, Any] = {
    "epochs": 7,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "save_steps": 3,
    "precision": "fp32",
    "embedding_dropout": 0.1,
    "logging_steps": 1,
    "early_stopping_patience": 50,
}
STEPS = 35


class Signal(Callback):
    """Sends its own process a real signal, once a step is done: nothing is left to how busy the machine is."""

    def __init__(self, step: int, signal_number: int) -> None:
        self.step, self.signal_number = step, signal_number

    def on_log(self, progress: Progress) -> None:
        if progress.step == self.step:
            os.kill(os.getpid(), self.signal_number)


def run(base: str, out: Path, method: Any, *callbacks: Callback, resume_from: int | None = None) -> bytes:
    config = TrainingConfig(method=method, **SETTINGS)
    rows = small.rows(20, "a prompt that all rows share: ")
    result = train(
        base,
        rows,
        config=config,
        output_dir=out,
        validation=small.rows(4, "v"),
        callbacks=callbacks,
        resume_from=resume_from,
    )
    (weights,) = Path(result.path).glob("*.safetensors")
    return weights.read_bytes()


def start(
    base: Path, out: Path, method: str, step: int = 0, signal_number: int = 0, first: Callable[[], None] | None = None
) -> tuple[int | None, str]:
    """(exit code, stderr) of a process that does `first`, then trains until a signal at `step`."""
    said = out.with_name(f"{out.name}.stderr")
    process = FORKS.Process(target=_started, args=(base, out, method, step, signal_number, first, said))
    process.start()
    process.join()
    return process.exitcode, said.read_text()


def _started(
    base: Path, out: Path, method: str, step: int, signal_number: int, first: Callable[[], None] | None, said: Path
) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if first is not None:
        first()
    torch.set_num_threads(1)
    run(str(base), out, method, Signal(step, signal_number))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {method: run(str(base), folder / method, method) for method in ("full", "lora")}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_killed_at_three_random_steps_goes_on_to_the_same_weights(
    base: Path, uninterrupted: dict[str, bytes], tmp_path: Path, method: str
) -> None:
    out, steps = tmp_path / "out", sorted(random.Random(method).sample(range(4, STEPS), 3))
    for step in steps:
        code, _ = start(base, out, method, step, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (out / "result.json").exists()
    assert run(str(base), out, method) == uninterrupted[method]
    events = read_events(out / "events.jsonl")
    resumed = [e["step"] for e in events if e.get("event") == "resumed"]
    assert 0 < resumed[-1] <= steps[-1]
    assert [e["step"] for e in events if "loss" in e] == list(range(1, STEPS + 1))


def test_ctrl_c_keeps_the_step_that_it_stopped_at(base: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = start(base, out, "lora", 7, signal.SIGINT)
    assert code != 0
    assert "KeyboardInterrupt" in said
    assert (out / "checkpoints" / "checkpoint-7").exists()
    assert run(str(base), out, "lora") == uninterrupted["lora"]


class InTheMiddle:
    """Sends this process a real Ctrl-C from within the update of one step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_in_the_middle_of_an_update_waits_for_its_end(
    base: Path, uninterrupted: dict[str, bytes], tmp_path: Path, capfd: Any
) -> None:
    hook = register_optimizer_step_post_hook(InTheMiddle(7))
    with pytest.raises(KeyboardInterrupt):
        run(str(base), tmp_path, "lora")
    hook.remove()
    assert "Stopping as soon as this step is kept" in capfd.readouterr().err
    assert (tmp_path / "checkpoints" / "checkpoint-7").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(str(base), tmp_path, "lora") == uninterrupted["lora"]


class Evaluated(Callback):
    """Sends this process Ctrl-C from within the evaluation of one step, so often."""

    def __init__(self, step: int, times: int) -> None:
        self.step, self.times = step, times

    def on_evaluate(self, progress: Progress) -> None:
        for _ in range(self.times if progress.step == self.step else 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


@pytest.mark.parametrize(("times", "kept"), [(1, 10), (2, 9)])
def test_ctrl_c_in_an_evaluation_waits_for_its_end_once(
    base: Path, uninterrupted: dict[str, bytes], tmp_path: Path, times: int, kept: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(str(base), tmp_path, "lora", Evaluated(10, times))
    assert max(int(p.name.split("-")[1]) for p in (tmp_path / "checkpoints").glob("checkpoint-*")) == kept
    assert run(str(base), tmp_path, "lora") == uninterrupted["lora"]


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        *(("edited", name) for name in ("model.safetensors", "optimizer.json", "rng.safetensors", "manifest.json")),
        *((damage, name) for damage in ("cut", "removed") for name in ("model.safetensors", "manifest.json")),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_its_file_named(
    base: Path, uninterrupted: dict[str, bytes], stopped: Path, tmp_path: Path, name: str, damage: str, caplog: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    steps = sorted(int(p.name.split("-")[1]) for p in (out / "checkpoints").iterdir())
    victim = out / "checkpoints" / f"checkpoint-{steps[-1]}" / name
    content = victim.read_bytes()
    if damage == "removed":
        victim.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        victim.write_bytes(content[:middle] if damage == "cut" else flipped)
    assert run(str(base), out, "lora") == uninterrupted["lora"]
    assert f"checkpoint-{steps[-1]}" in caplog.text
    assert name in caplog.text
    resumed = [e["step"] for e in read_events(out / "events.jsonl") if e.get("event") == "resumed"]
    assert resumed == [steps[-2]]


@pytest.fixture(scope="module")
def stopped(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed near its end."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    start(base, out, "lora", STEPS - 6, signal.SIGKILL)
    return out


def test_a_disk_that_is_full_leaves_nothing_half_written(
    base: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """The file-size limit lets the small files through and stops the weights, as a full disk would."""
    out, limit = tmp_path / "out", 60_000
    _, error = start(base, out, "full", first=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))
    assert "TrainingError: Cannot write the checkpoint of step 3" in error
    assert "Free some space" in error
    assert list((out / "checkpoints").iterdir()) == []
    assert run(str(base), out, "full") == uninterrupted["full"]


def test_a_folder_that_cannot_be_written_is_an_error_at_once(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match=r"Cannot start training in .*Choose an output_dir"):
        run(str(base), tmp_path / "file" / "out", "lora")


def give_up_root() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


def test_a_read_only_folder_is_an_error_at_once(base: Path, tmp_path: Path) -> None:
    """Permissions do not bind root, so the child gives that up before it trains."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    ours = Path(tempfile.gettempdir())
    for folder in {*closed.parents, *(base / "any").parents} - {ours, *ours.parents}:
        os.chmod(folder, 0o755)
    os.chmod(base / "model.safetensors", 0o644)
    _, said = start(base, closed, "lora", first=give_up_root)
    assert "TrainingError: Cannot start training in" in said
    assert "Permission denied" in said
    assert list(closed.iterdir()) == []


def test_two_runs_never_write_into_one_folder(base: Path, tmp_path: Path) -> None:
    def start(*callbacks: Callback) -> None:
        config = TrainingConfig(method="lora", max_steps=2)
        train(str(base), small.rows(8), config=config, output_dir=tmp_path, callbacks=callbacks, device="cpu")

    class Again(Callback):
        def on_start(self, report: dict[str, Any]) -> None:
            with pytest.raises(ConfigError, match=r"Another training is going on in .*use another output_dir"):
                start()
            seen.append(report)

    seen: list[dict[str, Any]] = []

    class Other(Again):
        def on_start(self, report: dict[str, Any]) -> None:
            with pytest.raises(ConfigError, match=r"Another training is going on"):
                train(str(base), small.rows(9), output_dir=tmp_path, device="cpu")  # not theirs to take before a step
            super().on_start(report)

    start(Other())
    assert len(seen) == 1
    start()  # the folder is free again


def test_a_new_folder_is_whose_that_locks_it_first(base: Path, tmp_path: Path) -> None:
    with FolderLock(tmp_path):  # another process got here first, and is about to write down what it trains
        (tmp_path / ".writing-key.json").write_text("{")
        with pytest.raises(ConfigError, match="Another training is going on"):
            run(str(base), tmp_path, "lora")
        assert (tmp_path / ".writing-key.json").exists()
        assert not (tmp_path / "key.json").exists()


def test_a_run_goes_on_from_the_checkpoint_that_is_asked_for(
    base: Path, uninterrupted: dict[str, bytes], stopped: Path, tmp_path: Path, caplog: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    checkpoints = out / "checkpoints"
    first, second = sorted(int(p.name.split("-")[1]) for p in checkpoints.iterdir())[-2:]
    with pytest.raises(
        ConfigError, match=rf"resume_from is 4, .* is not there.*Those of steps .*{first}, {second} are"
    ):
        run(str(base), out, "lora", resume_from=4)
    kept = (checkpoints / f"checkpoint-{second}" / "model.safetensors").read_bytes()
    assert run(str(base), out, "lora", resume_from=first) == uninterrupted["lora"]
    events = read_events(out / "events.jsonl")
    assert [e["step"] for e in events if e.get("event") == "resumed"] == [first]
    assert [e["step"] for e in events if "loss" in e] == list(range(1, STEPS + 1))
    assert (checkpoints / f"later-{second}" / "model.safetensors").read_bytes() == kept
    assert f"checkpoint-{second}" in caplog.text
    (out / "result.json").write_text("{}")
    assert run(str(base), out, "lora", resume_from=STEPS) == uninterrupted["lora"]  # a finished run is finished anew
    assert "final_model" in (out / "result.json").read_text()


def test_every_checkpoint_that_is_kept_can_be_gone_on_from(base: Path, tmp_path: Path) -> None:
    """Step 8 is kept beside 9, whose evaluation was better than that of 6: but the best that 8 knew is 6."""
    config = TrainingConfig(method="full", max_steps=9, eval_steps=3, save_steps=4, early_stopping_patience=50)
    rows, out = small.rows(20, "a prompt that all rows share: "), tmp_path / "out"
    for resume_from in (None, 8, 6):
        train(str(base), rows, config=config, output_dir=out, validation=rows[:4], resume_from=resume_from)
        assert CheckpointStore(out / "checkpoints").steps() == [6, 8, 9]
    assert {path.name for path in (out / "checkpoints").glob("later-*")} == {"later-9", "later-8", "later-9-2"}


def test_a_run_that_went_back_goes_on_from_where_it_got_to_by_the_same_call(
    base: Path, uninterrupted: dict[str, bytes], stopped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    checkpoints = out / "checkpoints"
    first, second = sorted(int(p.name.split("-")[1]) for p in checkpoints.iterdir())[-2:]
    with pytest.raises(KeyboardInterrupt):
        run(str(base), out, "lora", Signal(second + 1, signal.SIGINT), resume_from=first)
    for _ in range(2):  # the second call finds a finished run
        assert run(str(base), out, "lora", resume_from=first) == uninterrupted["lora"]
    resumed = [e["step"] for e in read_events(out / "events.jsonl") if e.get("event") == "resumed"]
    assert resumed == [first, second + 1]
    assert [p.name for p in checkpoints.glob("later-*")] == [f"later-{second}"]

    run(str(base), out, "lora")
    with pytest.raises(ConfigError, match="is not there"):  # a call without it in between: the next one goes back anew
        run(str(base), out, "lora", resume_from=first)


def test_what_an_earlier_return_set_aside_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for attempt in ("one", "two", "three"):
        for step in (3, 6):
            store.write(step, lambda folder, text=attempt: (folder / "weights").write_text(text), None)
        assert store.go_back(3)
    kept = {path.name: (path / "weights").read_text() for path in tmp_path.glob("later-*")}
    assert kept == {"later-6": "one", "later-6-2": "two", "later-6-3": "three"}
