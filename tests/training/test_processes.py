"""Two processes learn what one learns, and what ends them is gone on from.

Starting processes is what takes time here, so one launch trains everything that is compared, and two more are one command
that is interrupted and then left to finish; test_divided.py and test_launching.py have those that are killed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from dspyc.errors import TrainingError
from dspyc.training import TrainingConfig, TrainingResult, processes, train
from dspyc.training.events import read_events

from . import small
from .launched import environment, in_two
from .test_faults import limit_memory, losses, trainer

PROMPT = "a prompt that all rows share: "
COMMON: dict[str, Any] = {"precision": "fp32", "logging_steps": 1, "learning_rate": 3e-3, "micro_batch_tokens": 120}
STILL: dict[str, Any] = {"method": "full", "batch_size": 8, "epochs": 3}
RUNS: dict[str, dict[str, Any]] = {
    "full": STILL,
    "lora": {"batch_size": 4, "gradient_accumulation": 2, "epochs": 2, "lora_dropout": 0.0},
    "early": {**STILL, "epochs": 60, "eval_steps": 3, "early_stopping_patience": 2, "learning_rate": 1e-2},
}
# With dropout: what a process draws must be the same after a resume.
LONG: dict[str, Any] = {"batch_size": 8, "epochs": 5, "save_steps": 6, "embedding_dropout": 0.1}
SCRIPT = "import sys; from pathlib import Path; import tests.training.test_processes as t; t.together(*map(Path, sys.argv[1:]))"


def run(base: Path, out: Path, name: str) -> TrainingResult:
    """17 rows, 8 a step: an epoch's last step has one row, and one of two processes none."""
    settings = {**COMMON, **(LONG if name == "long" else RUNS[name])}
    rows, held_out = small.rows(17, PROMPT), small.rows(5, "v")
    if name == "early":
        held_out = [{"messages": [row["messages"][0], rows[i - 3]["messages"][1]]} for i, row in enumerate(rows)]
    config = TrainingConfig(**settings)
    return train(str(base), rows, config=config, output_dir=out / name, validation=held_out, device="cpu")


def together(base: Path, out: Path) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    results = {name: run(base, out, name).to_dict() for name in [*RUNS, "long"]}
    rank = int(os.environ["RANK"])
    group = torch.distributed.group.WORLD
    (out / f"patience-{rank}").write_text(str(group._get_backend(torch.device("cpu")).options._timeout.total_seconds()))
    (out / f"results-{rank}.json").write_text(json.dumps(results))
    made = small.model()
    short = trainer(made, out / f"memory-{rank}")
    limit_memory(made, 60 if rank == 1 else 10_000)
    short.train()
    (out / f"budget-{rank}.json").write_text(json.dumps(short.planner.budget))
    wild = TrainingConfig(**{**COMMON, **STILL, "learning_rate": 1e38, "max_grad_norm": 0.0})
    try:
        train(str(base), small.rows(17), config=wild, output_dir=out / "wild", device="cpu")
    except TrainingError as error:
        (out / f"error-{rank}.txt").write_text(str(error))
    if rank == 1:  # gone once a step's weights are updated, when the next that processes do together is its log line
        register_optimizer_step_post_hook(lambda *_: os._exit(0))
    try:
        run(base, out / "left", "full")
    except TrainingError as error:
        (out / "left.txt").write_text(str(error))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("base") / "model", initializer_range=0.1)


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes filled."""
    return in_two(SCRIPT, base, tmp_path_factory.mktemp("two"), "--multi_gpu")


def measured(out: Path) -> list[float]:
    names = ("loss", "grad_norm", "validation_loss")
    return [e[name] for e in read_events(out / "events.jsonl") for name in names if name in e]


def weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    (file,) = Path(result.path).glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_what_one_gives(base: Path, two: Path, tmp_path: Path, name: str) -> None:
    alone = run(base, tmp_path, name)
    found = [TrainingResult(**json.loads((two / f"results-{rank}.json").read_text())[name]) for rank in (0, 1)]
    for result in found:
        assert (result.steps, result.kept_step, result.stopped_early) == (
            alone.steps,
            alone.kept_step,
            alone.stopped_early,
        )
        assert result.train_loss == pytest.approx(alone.train_loss, rel=1e-4)
    assert measured(two / name) == pytest.approx(measured(tmp_path / name), rel=1e-4)
    for key, tensor in weights(alone).items():
        torch.testing.assert_close(weights(found[0])[key], tensor, rtol=1e-4, atol=1e-5)
    assert alone.stopped_early == (name == "early")


def test_the_files_of_a_run_are_written_once(two: Path) -> None:
    steps = [e["step"] for e in read_events(two / "full" / "events.jsonl") if "loss" in e]
    assert steps == list(range(1, 10))
    assert sum("event" in e for e in read_events(two / "full" / "events.jsonl")) == 1


def test_processes_wait_for_each_other_for_a_day(two: Path) -> None:
    assert [float((two / f"patience-{rank}").read_text()) for rank in (0, 1)] == [86_400.0] * 2


def test_a_process_that_runs_out_of_memory_makes_its_own_share_smaller(two: Path, tmp_path: Path) -> None:
    trainer(small.model(), tmp_path / "memory").train()
    for rank in (0, 1):
        assert losses(two / f"memory-{rank}") == pytest.approx(losses(tmp_path / "memory"), rel=1e-4)
    budgets = [json.loads((two / f"budget-{rank}.json").read_text()) for rank in (0, 1)]
    assert budgets[0] == 10_000
    assert budgets[1] <= 60


def test_a_loss_that_is_no_number_is_the_same_error_in_all_processes(two: Path) -> None:
    said = [(two / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "at step" in said[0]
    assert "training rows" in said[0]


def test_a_process_that_ends_is_noticed_where_the_loss_is_logged(two: Path) -> None:
    assert "Another process of this run has ended" in (two / "left.txt").read_text()
    assert [e["step"] for e in read_events(two / "left" / "full" / "events.jsonl") if "loss" in e] == []


def command(base: Path, folder: Path, out: Path) -> list[str]:
    """`dspyc train` of the run that `together` made in one go."""
    for name, rows in (("rows", small.rows(17, PROMPT)), ("held_out", small.rows(5, "v"))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [sys.executable, "-m", "dspyc", "train", "--data", "rows.jsonl", "--validation", "held_out.jsonl"]
    given += ["--model", str(base), "--out", str(out), "--device", "cpu", "--json"]
    for name, value in {**COMMON, **LONG}.items():
        given += ["--set", f"{name}={value}"]
    return [*given, "--launcher", "accelerate", "--num-processes", "2"]


def start(given: list[str], folder: Path, *, held: bool = False) -> subprocess.Popen[str]:
    """`held` after eight steps, where nothing is left to how fast the machine is."""
    return subprocess.Popen(
        given, cwd=folder, env=environment(held=held), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(step: int, out: Path, process: subprocess.Popen[str]) -> None:
    while not any(e["step"] >= step and "loss" in e for e in read_events(out / "events.jsonl")):
        if process.poll() is not None:
            pytest.fail("".join(process.communicate()))
        time.sleep(0.01)


def resumed(out: Path) -> list[int]:
    """The steps from which a run went on."""
    return [e["step"] for e in read_events(out / "events.jsonl") if e.get("event") == "resumed"]


def test_a_command_that_is_interrupted_ends_as_one_that_was_not(base: Path, two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = command(base, tmp_path, out)

    stopped = start(given, tmp_path, held=True)
    wait_for(8, out, stopped)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, said
    assert f"the same command goes on from {out}" in said
    assert "Traceback" not in said, said
    assert not (out / "result.json").exists()

    finished = start(given, tmp_path)
    printed, said = finished.communicate(timeout=300)
    assert finished.returncode == 0, said
    (line,) = printed.strip().splitlines()
    uninterrupted = json.loads((two / "results-0.json").read_text())["long"]
    assert json.loads(line)["steps"] == uninterrupted["steps"] == 15
    (mine,) = (out / "final_model").glob("*.safetensors")
    (other,) = Path(uninterrupted["path"]).glob("*.safetensors")
    assert mine.read_bytes() == other.read_bytes()
    assert measured(out) == measured(two / "long")
    assert resumed(out) == [8]  # the step that Ctrl-C kept


def test_one_process_exchanges_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not processes.several()
    assert processes.add_up([parameter], torch.tensor(2.0)) == [2.0]
    assert parameter.grad is None
    assert processes.total(torch.tensor(3.0)) == 3.0
