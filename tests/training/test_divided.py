"""A model of which each of two processes holds a part learns what one learns, whichever words asked for it.

One launch trains everything that is compared; two more are one command that is killed and then left to finish, each under
another configuration that divides the model: what a checkpoint holds does not depend on that.
"""

import json
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import distributed
from transformers import AutoModelForCausalLM

from dspyc.errors import ConfigError, TrainingError
from dspyc.training import Callback, TrainingConfig, TrainingResult, division, shards, train
from dspyc.training.division import Division
from dspyc.training.events import read_events
from dspyc.training.loss import Learner
from dspyc.training.sharing import Planner

from . import small
from .launched import in_two
from .test_faults import SmallDevice, limit_memory, train_on, trainer
from .test_processes import COMMON, PROMPT, measured, resumed, start, wait_for, weights
from .test_resume import Signal

RUNS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "batch_size": 8, "epochs": 3},
    "lora": {"batch_size": 4, "gradient_accumulation": 2, "epochs": 2, "lora_dropout": 0.0},
    "early": {
        "method": "full",
        "batch_size": 8,
        "epochs": 60,
        "eval_steps": 3,
        "early_stopping_patience": 2,
        "learning_rate": 1e-2,
    },
    "checkpointed": {"method": "full", "batch_size": 8, "epochs": 1, "gradient_checkpointing": True},
}
# With dropout: what a process draws must be the same after a resume.
LONG: dict[str, Any] = {"batch_size": 8, "epochs": 5, "save_steps": 6, "embedding_dropout": 0.1}
KINDS = ("llama", "gpt2", "gemma2")
SCRIPT = "import sys; from pathlib import Path; import tests.training.test_divided as t; t.together(*map(Path, sys.argv[1:]))"
FSDP_2 = "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: true}\n"
ZERO = "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}\n"
COMMAND = "compute_environment: LOCAL_MACHINE\nnum_machines: 1\nmain_process_port: 0\nnum_processes: 2\n"


def run(base: Path, out: Path, name: str, *callbacks: Callback) -> TrainingResult:
    """17 rows, 8 a step: an epoch's last step has one row, and one of two processes none."""
    settings = {**COMMON, **RUNS.get(name, LONG)}
    rows, held_out = small.rows(17, PROMPT), small.rows(5, "v")
    if name == "early":
        held_out = [{"messages": [row["messages"][0], rows[i - 3]["messages"][1]]} for i, row in enumerate(rows)]
    config = TrainingConfig(**settings)
    how: dict[str, Any] = {"output_dir": out / name, "callbacks": callbacks, "device": "cpu"}
    return train(str(base), rows, config=config, validation=held_out, **how)


def learned(learner: Learner, dealt: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradients) of 17 rows behind one trunk and of the same rows whole, added up over the processes."""
    total, rows = torch.zeros(1), small.encoded(17, PROMPT)
    for tree in [*Planner(120, worth=8)(rows), *Planner(120, share=False)(rows)]:
        mine = shards.deal(tree, distributed.get_rank(), 2) if dealt else tree
        total += learner.learn(mine, lambda loss: loss / 100, nullcontext)
    found = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    if dealt:
        distributed.all_reduce(total)
        found = shards.gather(found)
    return float(total), found


def compared(kind: str, reshard: bool) -> dict[str, float]:
    """How a divided model's loss and gradients differ from a whole one's, relatively; and what this process holds of it."""
    whole, parts = Learner(small.model(kind), [5, 6, 7]), Learner(small.model(kind), [5, 6, 7])
    numbers = sum(p.numel() for p in whole.parameters())
    shards.divide(parts, Division(reshard), torch.device("cpu"))
    (loss, gradients), (divided_loss, divided) = learned(whole, False), learned(parts, True)
    with torch.no_grad():
        parts(shards.deal(Planner(120)(small.encoded(4))[0], distributed.get_rank(), 2))
    shards.free_gathered(parts)
    off = [
        float((divided[name] - gradient).norm() / gradient.norm()) for name, gradient in gradients.items() if divided
    ]
    held = sum(shards.local(p).numel() for p in parts.parameters())
    found = {"loss": divided_loss / loss - 1, "gradients": max(off, default=0.0), "held": held / numbers}
    return {**found, "compared": len(off), "parameters": sum(1 for _ in whole.parameters())}


def together(base: Path, out: Path) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    results = {name: run(base, out, name).to_dict() for name in [*RUNS, "long"]}
    rank = int(os.environ["RANK"])
    (out / f"results-{rank}.json").write_text(json.dumps(results))
    try:
        run(base, out, "interrupted", Signal(7, signal.SIGINT))
    except KeyboardInterrupt:
        (out / f"kept-{rank}").write_text(str((out / "interrupted" / "checkpoints" / "checkpoint-7").is_dir()))
    distributed.barrier()
    run(base, out, "interrupted")
    found = {f"{kind} {reshard}": compared(kind, reshard) for kind in KINDS for reshard in (True, False)}
    (out / f"compared-{rank}.json").write_text(json.dumps(found))
    try:
        train_on(SmallDevice(evaluation=70), base, out / "compared", "a long question: " * 6)
    except TrainingError as error:
        (out / f"probe-{rank}.txt").write_text(str(error))
    distributed.barrier()
    made = small.model()
    limit_memory(made, 60 if rank == 1 else 10_000)
    sys.setswitchinterval(10)  # gloo's threads let go of tensors late: none may do so after Python's end
    try:
        trainer(made, out / f"memory-{rank}", divided=Division(True)).train()
    except TrainingError as error:
        (out / f"error-{rank}.txt").write_text(str(error))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("base") / "model", initializer_range=0.1)


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes filled."""
    return in_two(SCRIPT, base, tmp_path_factory.mktemp("two"), "--use_fsdp", "--fsdp_version", "2")


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_with_half_a_model_each_give_what_one_gives(
    base: Path, two: Path, tmp_path: Path, name: str
) -> None:
    alone = run(base, tmp_path, name)
    found = [TrainingResult(**json.loads((two / f"results-{rank}.json").read_text())[name]) for rank in (0, 1)]
    for result in found:
        assert (result.steps, result.kept_step, result.best_step) == (alone.steps, alone.kept_step, alone.best_step)
        assert result.train_loss == pytest.approx(alone.train_loss, rel=1e-4)
    assert measured(two / name) == pytest.approx(measured(tmp_path / name), rel=1e-4)
    for key, tensor in weights(alone).items():
        torch.testing.assert_close(weights(found[0])[key], tensor, rtol=1e-4, atol=1e-5)
    (begun,) = (e for e in read_events(two / name / "events.jsonl") if e.get("event") == "started")
    assert begun["shared_prefix"] == (name != "checkpointed")
    assert alone.stopped_early == (name == "early")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reshard", [True, False])
def test_each_process_holds_half_and_the_gradients_are_those_of_the_whole(two: Path, kind: str, reshard: bool) -> None:
    for rank in (0, 1):
        found = json.loads((two / f"compared-{rank}.json").read_text())[f"{kind} {reshard}"]
        assert found["held"] == pytest.approx(0.5, abs=0.01)
        assert abs(found["loss"]) < 1e-6
        assert found["gradients"] < 1e-5
        assert found["compared"] == (0 if rank else found["parameters"])  # the main process gathers them


def test_final_weights_are_whole_and_load_in_plain_transformers(two: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(two / "full" / "final_model")
    saved = weights(TrainingResult(**json.loads((two / "results-0.json").read_text())["full"]))
    held = model.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in saved.items())


def test_a_divided_run_goes_on_in_one_process(base: Path, two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "full", tmp_path / "full")
    for last in ("result.json", "final_model", "best_model", "checkpoints/checkpoint-9"):
        path = tmp_path / "full" / last
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    alone, together = run(base, tmp_path, "full"), json.loads((two / "results-0.json").read_text())["full"]
    assert resumed(tmp_path / "full") == [6]
    for key, tensor in weights(TrainingResult(**together)).items():
        torch.testing.assert_close(weights(alone)[key], tensor, rtol=1e-4, atol=1e-5)


def test_memory_that_runs_out_ends_all_processes_and_says_what_to_set(two: Path) -> None:
    assert "Out of memory at step 1" in (two / "error-1.txt").read_text()
    assert "micro_batch_tokens" in (two / "error-1.txt").read_text()
    assert "Another process of this run has ended" in (two / "error-0.txt").read_text()
    for rank in (0, 1):
        said = (two / f"probe-{rank}.txt").read_text()
        assert "Out of memory when shared prompts were compared with whole rows" in said
        assert "micro_batch_tokens" in said


def command(base: Path, folder: Path, out: Path, config: str) -> list[str]:
    """`dspyc train` of the run that `together` made in one go, under an accelerate configuration."""
    for name, rows in (("rows", small.rows(17, PROMPT)), ("held_out", small.rows(5, "v"))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "accelerate.yaml").write_text(COMMAND + config)
    given = [sys.executable, "-m", "dspyc", "train", "--data", "rows.jsonl", "--validation", "held_out.jsonl"]
    given += ["--model", str(base), "--out", str(out), "--device", "cpu", "--json"]
    for name, value in {**COMMON, **LONG}.items():
        given += ["--set", f"{name}={value}"]
    return [*given, "--launcher", "accelerate", "--accelerate-config", "accelerate.yaml"]


def test_ctrl_c_in_one_process_stops_all_and_keeps_the_step(two: Path) -> None:
    assert (two / "kept-0").read_text() == "True"
    assert (two / "kept-1").exists()
    assert resumed(two / "interrupted") == [7]
    assert weights_in(two / "interrupted") == weights_in(two / "long")
    assert measured(two / "interrupted") == measured(two / "long")


def weights_in(folder: Path) -> bytes:
    (file,) = (folder / "final_model").glob("*.safetensors")
    return file.read_bytes()


def test_a_divided_run_that_is_killed_ends_as_one_that_was_not(base: Path, two: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    killed = start(command(base, tmp_path, out, FSDP_2), tmp_path, held=True)
    wait_for(8, out, killed)
    workers = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.communicate()
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert len(gone) == 2
    assert not alive
    assert not (out / "result.json").exists()

    finished = start(command(base, tmp_path, out, ZERO), tmp_path)
    printed, said = finished.communicate(timeout=300)
    assert finished.returncode == 0, said
    (line,) = printed.strip().splitlines()
    uninterrupted = json.loads((two / "results-0.json").read_text())["long"]
    assert json.loads(line)["steps"] == uninterrupted["steps"] == 15
    assert resumed(out) == [6]
    assert weights_in(out) == weights_in(two / "long")
    assert measured(out) == measured(two / "long")


@pytest.mark.parametrize(
    ("settings", "reshard"),
    [
        ({"version": "2"}, True),
        ({"version": 2, "reshard_after_forward": False}, False),
        ({"version": "2", "reshard_after_forward": "true", "offload_params": "false"}, True),
        ({}, True),
        ({"sharding_strategy": "SHARD_GRAD_OP"}, False),
        ({"sharding_strategy": "2", "reshard_after_forward": "true"}, False),
        ({"version": 1, "reshard_after_forward": "NO_SHARD"}, None),
        ({"sharding_strategy": "HYBRID_SHARD"}, True),
    ],
)
def test_fsdp_in_its_own_words(settings: dict[str, Any], reshard: bool | None) -> None:
    assert division.of_fsdp(settings) == (None if reshard is None else Division(reshard))


@pytest.mark.parametrize(
    ("settings", "reshard"),
    [
        ({"zero_stage": 3, "offload_param_device": "none"}, True),
        ({"zero_stage": "2"}, False),
        ({"zero_stage": 1}, False),
        ({"zero_stage": 0}, None),
    ],
)
def test_deepspeed_in_its_own_words(settings: dict[str, Any], reshard: bool | None) -> None:
    assert division.of_deepspeed(settings) == (None if reshard is None else Division(reshard))


def test_deepspeeds_own_file_is_read_and_what_of_it_is_not_used_is_named(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}, "train_batch_size": "auto"})
    )
    assert division.of_deepspeed({"deepspeed_config_file": str(path), "zero_stage": 0}) == Division(True)
    assert "bf16 are not" in caplog.text
    assert "train_batch_size" not in caplog.text
    path.write_text("no JSON")
    with pytest.raises(ConfigError, match=r"ds\.json cannot be read"):
        division.of_deepspeed({"deepspeed_config_file": str(path)})


@pytest.mark.parametrize(
    ("of", "settings", "said"),
    [
        (division.of_fsdp, {"offload_params": "true"}, "fsdp_offload_params.*keeps what it divides on the devices"),
        (division.of_fsdp, {"activation_checkpointing": True}, "gradient_checkpointing=True"),
        (division.of_fsdp, {"sharding_strategy": "HALF"}, "'HALF'.*FULL_SHARD"),
        (division.of_deepspeed, {"zero_stage": 4}, "zero_stage is 4.*0, 1, 2 or 3"),
        (division.of_deepspeed, {"zero_stage": 2, "offload_optimizer_device": "cpu"}, "offload_optimizer.*lora"),
    ],
)
def test_what_is_not_done_is_refused(of: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        of(settings)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM.*FSDP and DeepSpeed's ZeRO divide it"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "7"}, "zero_stage is '7'"),
        ({"ACCELERATE_USE_FSDP": "true"}, "'qlora'.*divided among processes do not go together"),
    ],
)
def test_a_launched_process_says_what_it_cannot_do(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for name, value in {**environment, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)  # as `accelerate launch` sets it
    config = TrainingConfig(method="qlora" if len(environment) == 1 and "FSDP" in str(environment) else "lora")
    with pytest.raises(ConfigError, match=said):
        train(str(base), small.rows(4), config=config, output_dir=tmp_path / "out", device="cpu")


def test_dividing_is_left_to_us_inside_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert division.requested() == Division(True)
    with division.carried_out_here():
        assert division.requested() is None
    assert asdict(division.requested() or Division(False)) == {"reshard": True}
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert division.requested() is None  # a process alone holds all of it


def test_the_precision_of_a_configuration_is_left_to_us_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with division.carried_out_here():
        assert not trainer(small.model(), tmp_path / "inside").accelerator.native_amp
    assert trainer(small.model(), tmp_path / "outside").accelerator.native_amp
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert not trainer(small.model(), tmp_path / "without").accelerator.native_amp
