"""`train(..., num_processes=2)`: what one process learns, in a call that may itself be killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import dspyc
from dspyc.errors import ConfigError, TrainingError
from dspyc.training import TrainingConfig, TrainingResult, train
from dspyc.training.events import read_events
from dspyc.training.launching import check_processes

from . import small
from .launched import ROOT, environment
from .test_processes import resumed

COMMON: dict[str, Any] = {"method": "full", "batch_size": 8, "precision": "fp32", "logging_steps": 1, "save_steps": 5}
SCRIPT = """
import sys; from pathlib import Path; from tests.training import test_launching as t
if __name__ == "__main__": t.run(Path(sys.argv[1]), Path(sys.argv[2]), 2)
"""


def run(base: Path, out: Path, count: int, resume_from: int | None = None, **settings: Any) -> TrainingResult:
    config = TrainingConfig(**{**COMMON, "epochs": 10, "learning_rate": 1e-3, **settings})
    rows, held_out = small.rows(17, "one \u2028 prompt: "), small.rows(3, "v")
    return train(
        str(base),
        rows,
        config=config,
        output_dir=out,
        validation=held_out,
        device="cpu",
        num_processes=count,
        resume_from=resume_from,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("base") / "model", initializer_range=0.1)


def test_a_killed_call_ends_its_processes_and_the_next_one_ends_where_one_process_does(
    base: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(base), str(tmp_path / "two")]
    caller = subprocess.Popen(command, env=environment(held=True))
    while not any(event["step"] >= 8 for event in read_events(tmp_path / "two" / "events.jsonl") if "loss" in event):
        assert caller.poll() is None
        time.sleep(0.05)
    started = psutil.Process(caller.pid).children(recursive=True)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    assert len(started) >= 3  # the command, and two that it launched
    assert not psutil.wait_procs(started, timeout=90)[1]
    assert not (tmp_path / "two" / "result.json").exists()

    two, one = run(base, tmp_path / "two", 2, resume_from=5), run(base, tmp_path / "one", 1)
    assert two.steps == one.steps == 30
    assert two.train_loss == pytest.approx(one.train_loss, rel=1e-3)
    assert two.validation_loss == pytest.approx(one.validation_loss, rel=1e-3)
    events = [event["step"] for event in read_events(tmp_path / "two" / "events.jsonl") if "loss" in event]
    assert events == list(range(1, 31))
    assert resumed(tmp_path / "two") == [5]
    assert [path.name for path in (tmp_path / "two" / "checkpoints").glob("later-*")] == ["later-6"]

    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {path.name for path in (tmp_path / "one").iterdir()}  # no copy of the rows is left
    table = (ROOT / "docs" / "training.md").read_text().partition("## The folder")[2].partition("## Settings")[0]
    assert {name for name in names if f"`{name}`" not in table and f"`{name}/`" not in table} == set()
    started_now: list[Any] = []
    sys.addaudithook(lambda event, given: started_now.append(given[1]) if event == "subprocess.Popen" else None)
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
    assert run(base, tmp_path / "two", 2, resume_from=5) == two  # a run that went back there, and is finished
    assert started_now == [[sys.executable, "-S", "-c", ""]]  # what was started here, and nothing else


def test_what_goes_wrong_in_the_processes_is_told(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"(?s)Training in 2 processes.*gradient became nan"):
        run(base, tmp_path / "wild", 2, epochs=20, learning_rate=1e38, max_grad_norm=0.0)


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2", None])
def test_a_number_of_processes_is_a_whole_one(count: Any, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_processes"):
        run(base, tmp_path, count)
    assert not list(tmp_path.iterdir())


def test_each_process_needs_a_device_of_its_own() -> None:
    check_processes(8, torch.device("cpu"))
    for kind, present in (("mps", 1), ("cuda", torch.cuda.device_count())):
        check_processes(1, torch.device(kind))
        with pytest.raises(
            ConfigError, match=f"num_processes is {present + 2}, and of the device '{kind}' there are {present} here"
        ):
            check_processes(present + 2, torch.device(kind))


def test_one_device_is_not_enough_for_two_processes() -> None:
    with pytest.raises(ConfigError, match="of the device 'cuda:1' there are 1 here"):
        check_processes(2, torch.device("cuda:1"))


def test_what_processes_could_not_be_given_is_refused(base: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"output_dir": tmp_path, "device": "cpu", "num_processes": 2}
    with pytest.raises(ConfigError, match="callbacks"):
        train(str(base), small.rows(9), callbacks=[dspyc.training.Callback()], **common)
    with pytest.raises(ConfigError, match="adapter"):
        train(str(base), small.rows(9), adapter=tmp_path, **common)
    with pytest.raises(ConfigError, match="early_stopping_patience"):  # found here, before anything is started
        train(str(base), small.rows(9), config=TrainingConfig(early_stopping_patience=2), **common)
    assert not list(tmp_path.iterdir())


def test_a_fine_tuning_by_its_lm_checks_the_number_too(base: Path, tmp_path: Path) -> None:
    settings = {"output_dir": str(tmp_path / "out"), "num_processes": 0}
    job = dspyc.LocalLM(base, device="cpu").finetune(small.rows(9), "chat", settings)
    assert isinstance(job.result(), ConfigError)
    assert "num_processes is 0" in str(job.result())
