"""`train` from rows to weights: it learns, it says what it did, and it does not do it twice."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dspyc.errors import ConfigError, TrainingError
from dspyc.models import ChatTokenizer
from dspyc.training import TrainingConfig, TrainingResult, train
from dspyc.training.events import read_events

from . import small

FAST: dict[str, Any] = {"precision": "fp32", "learning_rate": 1e-2, "batch_size": 10, "logging_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("base") / "model")


def answers(model: Any, rows: list[dict[str, Any]]) -> list[str]:
    chat = ChatTokenizer(small.tokenizer())
    replies = []
    for row in rows:
        ids = torch.tensor([chat.prompt_ids(row["messages"][:-1])])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        replies.append(chat.decode(out[0, ids.shape[1] :].tolist()))
    return replies


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_toy_set_is_learned_to_exact_answers(tmp_path: Path, method: Any) -> None:
    base = small.folder(tmp_path / "model", initializer_range=0.3)  # an adapter needs something to adapt
    rows = small.rows(20)
    extra = {} if method == "full" else {"lora_rank": 16, "lora_dropout": 0.0}
    config = TrainingConfig(method=method, epochs=120, save_steps=1000, scheduler="cosine", **FAST, **extra)
    result = train(str(base), rows, config=config, output_dir=tmp_path / "out")
    assert result.steps == result.kept_step == 240
    assert result.train_loss < 0.1
    if method == "full":
        model = AutoModelForCausalLM.from_pretrained(result.path)
        assert (Path(result.path) / "tokenizer.json").exists()
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.path)
        settings = json.loads((Path(result.path) / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(base)
    assert answers(model.eval(), rows) == [row["messages"][-1]["content"] for row in rows]


def test_the_folder_tells_what_happened_and_holds_no_pickle(base: Path, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "out"
    config = TrainingConfig(method="full", epochs=3, **FAST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train(str(base), small.rows(20), config=config, output_dir=out, validation=small.rows(4, "v"))
    assert capfd.readouterr() == ("", "")
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(out.rglob(".writing-*"))
    events = read_events(out / "events.jsonl")
    assert events[0]["event"] == "started"
    assert events[0]["rows"]["rows"] == 20
    steps = [e for e in events if "loss" in e]
    assert [e["step"] for e in steps] == [2, 4, 6]
    assert all({"step", "epoch", "loss", "learning_rate", "seconds"} <= e.keys() for e in steps)
    assert steps[-1]["loss"] == result.train_loss < steps[0]["loss"]
    judged = [e for e in events if "validation_loss" in e]
    assert [(e["step"], e["epoch"]) for e in judged] == [(2, 1.0), (4, 2.0), (6, 3.0)]
    assert judged[-1]["validation_loss"] == result.validation_loss
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-6"]
    assert TrainingResult.from_dict(json.loads(json.dumps(result.to_dict()))).steps == 6


def test_the_same_call_again_makes_no_step_and_no_model(tmp_path: Path) -> None:
    base, out = small.folder(tmp_path / "model"), tmp_path / "out"
    config = TrainingConfig(method="full", max_steps=2, **FAST)
    first = train(str(base), small.rows(20), config=config, output_dir=out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert train(str(base), small.rows(20), config=config, output_dir=out) == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_damaged_weights_are_made_again_from_the_last_checkpoint(base: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "out", TrainingConfig(method="full", max_steps=2, **FAST)
    first = train(str(base), small.rows(20), config=config, output_dir=out)
    weights = Path(first.path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    train(str(base), small.rows(20), config=config, output_dir=out)
    assert weights.read_bytes() == whole
    assert [e["step"] for e in read_events(out / "events.jsonl") if "loss" in e] == [2]


def test_a_folder_of_another_run_is_refused_with_what_differs(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(str(base), small.rows(20), config=TrainingConfig(method="full", max_steps=1, **FAST), output_dir=out)
    other = TrainingConfig(method="full", max_steps=1, seed=5, **FAST)
    with pytest.raises(ConfigError, match=r"another training run: its rows, config\.seed differ"):
        train(str(base), small.rows(19), config=other, output_dir=out)


def test_a_run_that_made_no_checkpoint_leaves_its_folder_to_another(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="target_modules"):
        train(str(base), small.rows(4), config=TrainingConfig(target_modules=("foo",)), output_dir=out)
    mended = TrainingConfig(max_steps=1, **FAST)
    first = train(str(base), small.rows(4), config=mended, output_dir=out)
    assert train(str(base), small.rows(4), config=mended, output_dir=out) == first
    with pytest.raises(ConfigError, match=r"another training run: its config\.max_steps differ"):
        train(str(base), small.rows(4), config=TrainingConfig(max_steps=2, **FAST), output_dir=out)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(base: Path, tmp_path: Path) -> None:
    def weights(seed: int, name: str) -> bytes:
        config = TrainingConfig(max_steps=3, embedding_dropout=0.1, seed=seed, **FAST)
        torch.manual_seed(len(name))  # whatever the caller drew before
        result = train(str(base), small.rows(20), config=config, output_dir=tmp_path / name)
        return (Path(result.path) / "adapter_model.safetensors").read_bytes()

    assert weights(0, "a") == weights(0, "bc")
    assert weights(1, "d") != weights(0, "a")


def test_the_callers_random_numbers_are_left_alone(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(str(base), small.rows(20), config=TrainingConfig(max_steps=1, **FAST), output_dir=tmp_path / "out")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 4), (3, 5), (1, 16)])
def test_accumulation_gives_what_one_big_batch_gives(
    base: Path, tmp_path: Path, batch_size: int, accumulation: int
) -> None:
    """15 or 16 rows a step of 20: whole steps and a smaller last one."""
    size = batch_size * accumulation

    def losses_and_weights(name: str, **batches: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        settings = {**FAST, **batches, "learning_rate": 1e-3, "logging_steps": 1}
        config = TrainingConfig(method="full", epochs=2, prompt_loss_weight=0.1, **settings)
        result = train(str(base), small.rows(20), config=config, output_dir=tmp_path / name)
        events = read_events(tmp_path / name / "events.jsonl")
        return [x for e in events if "loss" in e for x in (e["loss"], e["grad_norm"])], load_file(
            Path(result.path) / "model.safetensors"
        )

    whole, whole_weights = losses_and_weights("whole", batch_size=size)
    parts, parts_weights = losses_and_weights("parts", batch_size=batch_size, gradient_accumulation=accumulation)
    assert parts == pytest.approx(whole, rel=1e-5)
    for name, tensor in whole_weights.items():
        torch.testing.assert_close(parts_weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_early_stopping_keeps_the_best_weights(base: Path, tmp_path: Path) -> None:
    """Validation answers contradict the training ones, so learning longer is learning worse."""
    rows, held_out = small.rows(20), small.rows(20)
    for i, row in enumerate(held_out):
        row["messages"] = [row["messages"][0], small.rows(20)[(i + 3) % 20]["messages"][1]]
    config = TrainingConfig(
        method="full", epochs=200, early_stopping_patience=2, eval_steps=3, save_steps=100, save_total_limit=1, **FAST
    )
    out = tmp_path / "out"
    result = train(str(base), rows, config=config, output_dir=out, validation=held_out)
    judged = {e["step"]: e["validation_loss"] for e in read_events(out / "events.jsonl") if "validation_loss" in e}
    best = min(judged, key=lambda step: judged[step])
    assert result.stopped_early
    assert (result.kept_step, result.validation_loss) == (best, judged[best])
    assert result.steps == best + 2 * 3
    kept = load_file(out / "checkpoints" / f"checkpoint-{best}" / "model.safetensors")
    written = load_file(Path(result.path) / "model.safetensors")
    for name, tensor in kept.items():
        assert torch.equal(tensor, written[name])


def test_any_improvement_is_the_best_and_only_patience_asks_for_more(base: Path, tmp_path: Path) -> None:
    """No evaluation is better by 50 nats, so the third one ends the run; no line of the log was due before."""
    rows, out = small.rows(20), tmp_path / "out"
    config = TrainingConfig(
        method="full",
        epochs=20,
        early_stopping_patience=2,
        early_stopping_threshold=50.0,
        **(FAST | {"logging_steps": 1000}),
    )
    result = train(str(base), rows, config=config, output_dir=out, validation=rows)
    events = read_events(out / "events.jsonl")
    judged = {e["step"]: e["validation_loss"] for e in events if "validation_loss" in e}
    assert list(judged) == [2, 4, 6]
    assert result.best_step == result.kept_step == min(judged, key=lambda step: judged[step]) > 2
    assert result.stopped_early
    assert [(e["step"], e["loss"]) for e in events if "loss" in e] == [(6, result.train_loss)]
    assert (result.train_loss or 0) > 1.0


def test_a_loss_that_is_no_number_stops_the_run_at_a_good_checkpoint(base: Path, tmp_path: Path) -> None:
    settings = {**FAST, "learning_rate": 1e38, "max_grad_norm": 0.0, "scheduler": "constant"}
    config = TrainingConfig(method="full", epochs=5, save_steps=1, **settings)
    with pytest.raises(TrainingError, match=r"became (nan|inf) at step \d+ of 10.*learning_rate below 1e\+38"):
        train(str(base), small.rows(20), config=config, output_dir=tmp_path / "out")
    assert not (tmp_path / "out" / "result.json").exists()


def test_a_16_bit_base_gives_16_bit_weights(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model", dtype=torch.bfloat16)
    config = TrainingConfig(method="full", max_steps=1, **FAST)
    result = train(str(base), small.rows(10), config=config, output_dir=tmp_path / "out")
    assert {t.dtype for t in load_file(Path(result.path) / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((Path(result.path) / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_other_architectures_train(tmp_path: Path, kind: str, method: Any) -> None:
    base = small.folder(tmp_path / "model", kind)
    config = TrainingConfig(method=method, epochs=3, gradient_checkpointing=True, **FAST)
    train(str(base), small.rows(20), config=config, output_dir=tmp_path / "out")
    losses = [e["loss"] for e in read_events(tmp_path / "out" / "events.jsonl") if "loss" in e]
    assert losses[-1] < losses[0]


def shared_prompt(count: int) -> list[dict[str, Any]]:
    return small.rows(count, "a prompt that all of these rows share: " * 3)


@pytest.mark.parametrize("model", ["dspyc/tiny", "gpt2"])
def test_a_models_own_dropout_and_shared_prompts_go_together(tmp_path: Path, model: str) -> None:
    """With GPT-2's default rates, and with rates that are set for a model that has none."""
    rates = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    base = str(small.folder(tmp_path / "model", model, **rates)) if model == "gpt2" else model
    own = None if model == "gpt2" else 0.1
    config = TrainingConfig(max_steps=2, dropout=own, **FAST)
    out = tmp_path / "out"
    train(base, shared_prompt(10), config=config, output_dir=out)
    events = read_events(out / "events.jsonl")
    assert events[0]["shared_prefix"] is True
    assert events[0]["forecast"]["computed_tokens"] < 0.7 * events[0]["forecast"]["tokens"]


@pytest.mark.parametrize(
    ("kind", "changes", "first", "shares"),
    [("mamba", {}, "", False), ("mistral", {"sliding_window": 100}, "a" * 20, True)],
)
def test_later_rows_that_share_more_than_the_first_are_trained_as_whole_rows_are(
    tmp_path: Path, kind: str, changes: dict[str, Any], first: str, shares: bool
) -> None:
    """The first of seed 0's steps holds short rows alone."""
    base = small.folder(tmp_path / "model", kind, **changes)
    rows = small.rows(16, first) + small.rows(16, "s" * 150)

    def losses(name: str, **settings: Any) -> list[float]:
        config = TrainingConfig(method="full", epochs=1, **(FAST | {"batch_size": 8, "logging_steps": 1} | settings))
        train(str(base), rows, config=config, output_dir=tmp_path / name)
        events = read_events(tmp_path / name / "events.jsonl")
        assert events[0]["shared_prefix"] is (shares and name == "shared")
        return [x for e in events if "loss" in e for x in (e["loss"], e["grad_norm"])]

    assert losses("shared") == pytest.approx(losses("whole", shared_prefix=False), rel=1e-4)


def test_target_modules_that_are_not_there_are_named_with_those_that_are(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`target_modules` is \('c_attn',\).*q_proj"):
        train(str(base), small.rows(4), config=TrainingConfig(target_modules=("c_attn",)), output_dir=tmp_path / "out")


def test_bfloat16_products_train_too(base: Path, tmp_path: Path) -> None:
    config = TrainingConfig(method="full", epochs=40, **{**FAST, "precision": "bf16"})
    assert train(str(base), small.rows(20), config=config, output_dir=tmp_path / "out").train_loss < 2.0
