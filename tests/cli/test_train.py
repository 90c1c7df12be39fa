"""dspyc train, run as a user runs it: rows in a file, weights in a folder."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook
from typer.testing import CliRunner, Result

from dspyc.cli import app
from dspyc.training.events import read_events
from tests.providers.compiling import Elsewhere

from ..training import small
from .commands import SAID, run_apart

ROOT = Path(__file__).parent.parent.parent
QUICK = ["--max-steps", "2", "--batch-size", "4", "--precision", "fp32", "--device", "cpu"]
FSDP = (
    "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 2\n"
    "fsdp_config: {fsdp_version: 2, fsdp_offload_params: true}\n"
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and rows, made the current one."""
    monkeypatch.chdir(tmp_path)
    small.folder(tmp_path / "base")
    rows = [{"prompt": f"{i} of a kind", "response": f"thing {i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def train(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", "--data", "rows.jsonl", "--model", "base", "--out", "out", *arguments])


def facts_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.strip().split("\n")[-1])
    assert isinstance(found, dict)
    return found


def settings(work: Path) -> dict[str, Any]:
    found = json.loads((work / "out" / "key.json").read_text())["config"]
    assert isinstance(found, dict)
    return found


def test_rows_become_an_adapter_and_the_next_command_runs_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(*QUICK)
    assert result.exit_code == 0, result.stderr
    assert "2 steps in" in result.stdout
    assert "Model: out/final_model" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Next: ")]
    interpreter, option, code = shlex.split(line.removeprefix("Next: "))
    assert (interpreter, option) == ("python", "-c")
    assert '"base", adapter="out/final_model"' in code
    exec(code, {})
    assert capsys.readouterr().out  # what random weights say


def test_json_is_the_last_line_of_stdout_and_says_what_came_out(work: Path) -> None:
    facts = facts_of(train(*QUICK, "--method", "full", "--json"))
    assert facts["steps"] == 2
    assert (facts["rows"]["rows"], facts["validation_rows"]["rows"]) == (10, 2)  # a tenth, rounded up, is held out
    assert facts["path"] == facts["final_path"] == "out/final_model"
    assert facts["best_path"] == "out/best_model"
    assert facts["curves"] == "out/loss_curves.png"
    assert facts["merged"] is None
    for name in ("final_model/model.safetensors", "best_model/README.md", "checkpoints", "loss_curves.png"):
        assert (work / "out" / name).exists()


def test_flags_presets_tasks_and_set_make_one_config(work: Path) -> None:
    given = ["--preset", "quick_test", "--task", "code", "--max-steps", "1", "--lora-rank", "3", "--seed", "7"]
    given += ["--set", "scheduler=cosine", "--set", 'target_modules=["q_proj"]', "--set", "weight_decay=0.25"]
    assert facts_of(train(*given, "--device", "cpu", "--json"))["steps"] == 1
    found = settings(work)
    assert (found["max_steps"], found["lora_rank"], found["seed"]) == (1, 3, 7)
    assert (found["scheduler"], found["target_modules"], found["weight_decay"]) == ("cosine", ["q_proj"], 0.25)
    assert (found["batch_size"], found["logging_steps"]) == (4, 1)  # quick_test's
    assert found["learning_rate"] == 1e-4  # code's


def test_validation_rows_come_from_a_file_a_share_or_nowhere(work: Path) -> None:
    (work / "dev.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    for number, (given, rows, held_out) in enumerate(
        [
            (["--validation", "dev.jsonl"], 12, 1),
            (["--validation-fraction", "0.5"], 6, 6),
            (["--validation-fraction", "0"], 12, 0),
        ]
    ):
        facts = facts_of(train(*QUICK, *given, "--json", "--out", f"out-{number}"))
        assert (facts["rows"]["rows"], facts["validation_rows"]["rows"]) == (rows, held_out)
        assert (facts["best_path"] is None) == (held_out == 0)


def test_the_same_command_again_is_done_at_once(work: Path) -> None:
    first = facts_of(train(*QUICK, "--json"))
    written = {p: p.stat().st_mtime_ns for p in (work / "out").rglob("*")}
    assert facts_of(train(*QUICK, "--json")) == first
    assert {p: p.stat().st_mtime_ns for p in (work / "out").rglob("*")} == written


def test_merge_writes_a_model_that_transformers_loads(work: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = facts_of(train(*QUICK, "--learning-rate", "0.05", "--merge", "--json"))
    assert facts["merged"] == "out/merged_model"
    merged = AutoModelForCausalLM.from_pretrained("out/merged_model")
    ids = torch.tensor([AutoTokenizer.from_pretrained("out/merged_model")("3 of a kind").input_ids])
    plain = AutoModelForCausalLM.from_pretrained("base")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "out/final_model")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(merged(ids).logits, plain(ids).logits, atol=1e-4)
    # Both are there: the same command trains and merges nothing.
    written = (work / "out" / "merged_model" / "model.safetensors").stat().st_mtime_ns
    assert facts_of(train(*QUICK, "--learning-rate", "0.05", "--merge", "--json")) == facts
    assert (work / "out" / "merged_model" / "model.safetensors").stat().st_mtime_ns == written


def test_a_merge_says_nothing_where_nobody_looks(work: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "dspyc",
        "train",
        "--data",
        "rows.jsonl",
        "--model",
        "base",
        "--out",
        "out",
        *QUICK,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([*command, "--merge"], capture_output=True, text=True, env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Merged with its base: out/merged_model" in ran.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--data", "none.jsonl"], "none.jsonl cannot be read"),
        (["--data", "bad.jsonl"], "bad.jsonl, line 2 has the fields ['answer', 'question']"),
        (["--model", "./nowhere"], "does not exist"),
        (["--epochs", "0"], "`epochs` is 0"),
        (["--set", "epochs"], "--set 'epochs' is no name=value"),
        (["--set", "epoch=3"], "Did you mean"),
        (["--set", "epochs=3", "--epochs", "3"], "`epochs` is given by --epochs and --set"),
        (["--set", "seed=3", "--set", "seed=4"], "`seed` is given by --set twice"),
        (["--preset", "quick"], "quick_test"),
        (["--merge", "--method", "full"], "--merge and --method full contradict each other"),
        (["--validation", "rows.jsonl", "--validation-fraction", "0.1"], "contradict each other"),
        (["--validation-fraction", "2"], "validation_fraction is 2"),
        (["--num-processes", "2"], "Add --launcher accelerate"),
        (["--launcher", "accelerate"], "Add --num-processes 2"),
        (["--launcher", "accelerate", "--accelerate-config", "none.yaml"], "none.yaml cannot be read"),
        (["--launcher", "accelerate", "--accelerate-config", "fsdp.yaml"], "keeps what it divides on the devices"),
        (["--launcher", "accelerate", "--num-processes", "2", "--device", "tpu"], "There is no device 'tpu'"),
    ],
)
def test_a_mistake_is_explained_before_anything_is_trained(work: Path, given: list[str], said: str) -> None:
    (work / "bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"question": "a", "answer": "b"}\n')
    (work / "fsdp.yaml").write_text(FSDP)
    result = train(*given)
    assert result.exit_code == 1, result.stdout
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (work / "out").exists()


def test_early_stopping_on_few_rows_says_what_holds_rows_out_or_goes_without(work: Path) -> None:
    (work / "few.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 9)
    given = ["--data", "few.jsonl", "--preset", "high_quality", "--task", "chat", "--device", "cpu", "--json"]
    refused = train(*given, "--validation-fraction", "0.5")
    assert refused.exit_code == 1
    assert "from 10 rows on a validation_fraction above 0" in refused.stderr
    assert "--set early_stopping_patience=null" in refused.stderr
    assert facts_of(train(*given, "--set", "early_stopping_patience=null", "--max-steps", "1"))["steps"] == 1


def test_one_process_needs_no_launcher(work: Path) -> None:
    assert facts_of(train(*QUICK, "--launcher", "accelerate", "--num-processes", "1", "--json"))["steps"] == 2


def interrupted(folder: Path, *arguments: str) -> None:
    """The command, which gets Ctrl-C within its third step."""
    steps: list[int] = []

    def interrupt(*_: Any) -> None:
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    register_optimizer_step_post_hook(interrupt)
    run_apart(folder, *arguments)


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(work: Path) -> None:
    """It keeps the step that it was stopped in."""
    given = ["--max-steps", "8", "--batch-size", "1", "--precision", "fp32", "--device", "cpu", "--json"]
    given += ["--set", "save_steps=8", "--validation-fraction", "0"]
    command = ["train", "--data", "rows.jsonl", "--model", "base", "--out", "out", *given]
    stopped = Elsewhere(interrupted, work, *command).process
    stopped.join(300)
    out, err = ((work / name).read_text() for name in SAID)
    assert stopped.exitcode == 130, err
    assert "the same command goes on from out" in err
    assert "Traceback" not in err
    assert out == ""
    assert not (work / "out" / "result.json").exists()

    assert facts_of(train(*given))["steps"] == 8
    assert [e["step"] for e in read_events(work / "out" / "events.jsonl") if e.get("event") == "resumed"] == [3]
