"""Stages: each goes on from the weights of the one before."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dspyc.errors import ConfigError, ModelError
from dspyc.training import Stage, TrainingConfig, train, train_stages
from dspyc.training.adapters import continuing
from dspyc.training.events import read_events

from . import small

SETTINGS: dict[str, Any] = {
    "precision": "fp32",
    "learning_rate": 1e-2,
    "batch_size": 10,
    "logging_steps": 1,
    "epochs": 4,
}


def first_loss(folder: Path) -> float:
    return float(next(e["loss"] for e in read_events(folder / "events.jsonl") if "loss" in e))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_stage_begins_where_the_one_before_ended(tmp_path: Path, method: Any) -> None:
    base = small.folder(tmp_path / "model", initializer_range=0.3)
    settings = SETTINGS | ({"lora_dropout": 0.0} if method == "lora" else {})
    config = TrainingConfig(method=method, model=str(base), **settings)
    rows = small.rows(20)
    stages = [Stage("general", rows, config), Stage("task", rows)]
    first, second = train_stages(str(base), stages, output_dir=tmp_path / "out")
    assert (first.path, second.path) == tuple(
        str(tmp_path / "out" / name / "final_model") for name in ("1-general", "2-task")
    )
    learned = [e["loss"] for e in read_events(tmp_path / "out" / "1-general" / "events.jsonl") if "loss" in e]
    assert learned[-1] < 0.9 * learned[0]
    assert first_loss(tmp_path / "out" / "2-task") < learned[-2]
    assert second.base == (str(base) if method == "lora" else first.path)


def test_finished_stages_are_not_run_again(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model")
    stages = [Stage("a", small.rows(10), TrainingConfig(method="full", **SETTINGS)), Stage("b", small.rows(10, "q"))]
    first = train_stages(str(base), stages, output_dir=tmp_path / "out")
    events = [(tmp_path / "out" / name / "events.jsonl").read_bytes() for name in ("1-a", "2-b")]
    assert train_stages(str(base), stages, output_dir=tmp_path / "out") == first
    assert [(tmp_path / "out" / name / "events.jsonl").read_bytes() for name in ("1-a", "2-b")] == events


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"lora_rank": 8}, r"r is 4, not 8.*lora_rank"),
        ({"lora_alpha": 8.0}, r"lora_alpha is 32.0, not 8.0.*lora_alpha"),
        ({"target_modules": ("q_proj",)}, r"target_modules is \['down_proj', .*'v_proj'\], not \['q_proj'\]"),
    ],
)
def test_an_adapter_of_another_shape_or_scale_cannot_be_trained_on(
    other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    base, out = small.folder(tmp_path / "model"), tmp_path / "out"
    first = TrainingConfig(lora_rank=4, **SETTINGS)
    second = TrainingConfig(**{"lora_rank": 4, **SETTINGS, **other})
    with pytest.raises(ConfigError, match=f"another shape.*{said}"):
        train_stages(str(base), [Stage("a", small.rows(4), first), Stage("b", small.rows(4), second)], output_dir=out)


def test_an_adapter_is_trained_further_with_its_own_rank_and_scale_unless_others_are_named(tmp_path: Path) -> None:
    base, own = small.folder(tmp_path / "model"), {"lora_rank": 4, "lora_alpha": 8.0, "use_rslora": True}
    first = train(str(base), small.rows(4), config=TrainingConfig(**SETTINGS, **own), output_dir=tmp_path / "a")
    train(str(base), small.rows(4), config=TrainingConfig(**SETTINGS), output_dir=tmp_path / "b", adapter=first.path)
    kept = json.loads((tmp_path / "b" / "key.json").read_text())["config"]
    assert {name: kept[name] for name in own} == own
    again = TrainingConfig(**SETTINGS, **own)  # named or not, it is one run
    train(str(base), small.rows(4), config=again, output_dir=tmp_path / "b", adapter=first.path)
    named = TrainingConfig(**SETTINGS, use_rslora=False)
    with pytest.raises(ConfigError, match=r"use_rslora is True, not False.*Leave these settings out"):
        train(str(base), small.rows(4), config=named, output_dir=tmp_path / "c", adapter=first.path)


@pytest.mark.parametrize(
    ("own", "named", "said"),
    [
        (
            {"target_modules": ("v_proj", "q_proj")},
            {"target_modules": ("q_proj",)},
            r"target_modules is .*, not \['q_proj'\]",
        ),
        ({"freeze_ratio": 0.4}, {"freeze_ratio": 0.0}, "freeze_ratio is 0.5, not 0.0"),
        ({"freeze_ratio": 0.5, "target_modules": ("q_proj",)}, {"freeze_ratio": 0.2}, "freeze_ratio is 0.5, not 0.2"),
        ({}, {"freeze_ratio": 0.5}, "freeze_ratio is 0.0, not 0.5"),
    ],
)
def test_an_adapter_is_trained_further_on_the_modules_that_it_has(
    tmp_path: Path, own: dict[str, Any], named: dict[str, Any], said: str
) -> None:
    base = small.folder(tmp_path / "model")
    first = train(str(base), small.rows(4), config=TrainingConfig(**SETTINGS, **own), output_dir=tmp_path / "a")
    config = TrainingConfig(**SETTINGS)
    second = train(str(base), small.rows(4), config=config, output_dir=tmp_path / "b", adapter=first.path)
    begun, gone_on = (load_file(Path(path) / "adapter_model.safetensors") for path in (first.path, second.path))
    assert begun.keys() == gone_on.keys()
    assert continuing(Path(first.path), TrainingConfig(**own), base).freeze_ratio == own.get("freeze_ratio", 0.0)
    with pytest.raises(ConfigError, match=said):
        continuing(Path(first.path), TrainingConfig(**named), base)


def test_what_an_adapter_does_not_say_is_pefts_default(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    base = small.folder(tmp_path / "model")
    config = continuing(tmp_path, TrainingConfig(), base)
    assert (config.lora_rank, config.lora_alpha, config.use_rslora) == (4, 8.0, False)
    with pytest.raises(ConfigError, match="use_rslora is False, not True"):
        continuing(tmp_path, TrainingConfig(use_rslora=True), base)


def test_a_folder_without_an_adapter_is_named_and_so_is_the_one_within_an_output_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "final_model").mkdir(parents=True)
    for said in ("Pass the folder that an adapter was saved in", "It is a training's output: pass .*final_model"):
        with pytest.raises(ModelError, match=f"{re.escape(str(out))} holds no adapter.*{said}"):
            train("dspyc/tiny", small.rows(4), output_dir=tmp_path / "next", adapter=out)
        (out / "final_model" / "adapter_config.json").write_text("{}")
    (out / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="or is no JSON object"):
        train("dspyc/tiny", small.rows(4), output_dir=tmp_path / "next", adapter=out)
    assert not (tmp_path / "next").exists()


def test_an_adapter_whose_weights_are_cut_or_missing_is_named(tmp_path: Path) -> None:
    base, config = small.folder(tmp_path / "model"), TrainingConfig(**SETTINGS)
    first = train(str(base), small.rows(4), config=config, output_dir=tmp_path / "a")
    file = Path(first.path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is truncated or corrupt"):
        train(str(base), small.rows(4), config=config, output_dir=tmp_path / "b", adapter=first.path)
    file.unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        train(str(base), small.rows(4), config=config, output_dir=tmp_path / "b", adapter=first.path)
    assert not (tmp_path / "b").exists()


def test_another_adapter_is_another_run(tmp_path: Path) -> None:
    base, config = small.folder(tmp_path / "model"), TrainingConfig(**SETTINGS)
    first = train(str(base), small.rows(4), config=config, output_dir=tmp_path / "a")
    train(str(base), small.rows(4), config=config, output_dir=tmp_path / "b", adapter=first.path)
    with pytest.raises(ConfigError, match=r"holds another training run: its adapter, config\.target_modules differ"):
        train(str(base), small.rows(4), config=config, output_dir=tmp_path / "b")
    begun, gone_on = (load_file(tmp_path / n / "final_model" / "adapter_model.safetensors") for n in ("a", "b"))
    assert any(not torch.equal(begun[name], gone_on[name]) for name in begun)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([], "at least one"),
        ([Stage("a", []), Stage("a", [])], "its own name"),
        ([Stage("a/b", [])], "slashes"),
        ([Stage("a", [], TrainingConfig()), Stage("b", [], TrainingConfig(method="full"))], "all of them"),
    ],
)
def test_stages_that_cannot_be_run_are_refused_before_anything(stages: list[Stage], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train_stages("dspyc/tiny", stages, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
