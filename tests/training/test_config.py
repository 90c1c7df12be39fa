"""TrainingConfig: what it takes, what it refuses and how it says so."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspyc.errors import ConfigError
from dspyc.training import TrainingConfig


def test_dspys_names_and_transformers_names_map_onto_ours() -> None:
    config = TrainingConfig.from_kwargs(
        {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 3,
            "use_peft": False,
            "max_seq_length": 128,
            "bf16": True,
            "warmup_ratio": 0.1,
            "lr_scheduler_type": "constant_with_warmup",
            "packing": True,
        }
    )
    assert (config.epochs, config.batch_size, config.gradient_accumulation) == (2, 4, 3)
    assert (config.method, config.max_length, config.precision) == ("full", 128, "bf16")
    assert (config.warmup, config.scheduler) == (0.1, "constant")


def test_defaults_depend_on_the_method_and_the_scheduler() -> None:
    assert TrainingConfig().rate == 2e-4
    assert TrainingConfig(method="full").rate == 5e-5
    assert TrainingConfig(learning_rate=1e-3).rate == 1e-3
    assert TrainingConfig().warmup == 0.03
    assert TrainingConfig(scheduler="one_cycle").warmup == 0.3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"epochs": 0}, ["`epochs` is 0", "above 0"]),
        ({"epochs": float("nan")}, ["`epochs` is nan"]),
        ({"batch_size": 2.5}, ["`batch_size` is 2.5", "whole number"]),
        ({"batch_size": True}, ["`batch_size` is True"]),
        ({"method": "prefix"}, ["`method` is 'prefix'", "'lora'", "'qlora'", "'full'"]),
        ({"max_length": 1}, ["`max_length` is 1"]),
        ({"model": ""}, ["`model` is ''"]),
        ({"freeze_ratio": 1.0}, ["`freeze_ratio` is 1.0", "[0, 1)"]),
        ({"quantization": "3bit"}, ["`quantization` is '3bit'", "'4bit'", "'8bit'"]),
        ({"lora_rank": 0}, ["`lora_rank` is 0", "at least 1"]),
        ({"lora_alpha": 0}, ["`lora_alpha` is 0"]),
        ({"lora_dropout": 1}, ["`lora_dropout` is 1"]),
        ({"use_dora": 1.5}, ["`use_dora` is 1.5", "True or False"]),
        ({"use_rslora": "maybe"}, ["`use_rslora` is 'maybe'"]),
        ({"max_steps": 0}, ["`max_steps` is 0"]),
        ({"token_budget": 0}, ["`token_budget` is 0"]),
        ({"micro_batch_tokens": -1}, ["`micro_batch_tokens` is -1"]),
        ({"gradient_accumulation": 0}, ["`gradient_accumulation` is 0"]),
        ({"shared_prefix": "no way"}, ["`shared_prefix` is 'no way'"]),
        ({"learning_rate": -1e-3}, ["`learning_rate` is -0.001"]),
        ({"warmup_ratio": 1.0}, ["`warmup_ratio` is 1.0"]),
        ({"warmup_steps": -1}, ["`warmup_steps` is -1"]),
        ({"weight_decay": -0.1}, ["`weight_decay` is -0.1"]),
        ({"max_grad_norm": float("inf")}, ["`max_grad_norm` is inf"]),
        ({"dropout": 1}, ["`dropout` is 1"]),
        ({"embedding_dropout": -0.1}, ["`embedding_dropout` is -0.1"]),
        ({"prompt_loss_weight": 2}, ["`prompt_loss_weight` is 2", "[0, 1]"]),
        ({"save_steps": "often"}, ["`save_steps` is 'often'"]),
        ({"logging_steps": 0}, ["`logging_steps` is 0"]),
        ({"early_stopping_patience": 0}, ["`early_stopping_patience` is 0"]),
        ({"save_total_limit": 0}, ["`save_total_limit` is 0"]),
        ({"report_to": ["neptune"]}, ["`report_to` is", "'tensorboard'"]),
        ({"precision": "int8"}, ["`precision` is 'int8'", "'bf16'"]),
        ({"gradient_checkpointing": 3}, ["`gradient_checkpointing` is 3"]),
        ({"scheduler": "step"}, ["`scheduler` is 'step'", "'one_cycle'"]),
        ({"label_smoothing": 1}, ["`label_smoothing` is 1", "[0, 1)"]),
        ({"eval_steps": 0}, ["`eval_steps` is 0", "'epoch'"]),
        ({"target_modules": []}, ["`target_modules` is []"]),
        ({"seed": -1}, ["`seed` is -1"]),
        ({"learning_rat": 1.0}, ["`learning_rat`", "learning_rate"]),
        ({"method": "full", "lora_rank": 4}, ["lora_rank", "method='full'"]),
        ({"method": "full", "use_dora": True}, ["use_dora", "method='full'"]),
        ({"method": "full", "quantization": "4bit"}, ["`quantization` is '4bit'", "'full'", "qlora"]),
        ({"batch_size": 4, "token_budget": 100}, ["`batch_size` is 4", "`token_budget` 100"]),
        ({"warmup_steps": 4, "warmup_ratio": 0.1}, ["`warmup_ratio` is 0.1", "`warmup_steps` 4"]),
        ({"early_stopping_threshold": 0.1}, ["early_stopping_threshold", "early_stopping_patience"]),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(settings: dict[str, Any], named: list[str]) -> None:
    for make in (lambda: TrainingConfig(**settings), lambda: TrainingConfig.from_kwargs(settings)):
        with pytest.raises(ConfigError) as raised:
            make()
        for part in named:
            assert part in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_peft": True, "method": "full"}, ["use_peft", "method"]),
        ({"epochs": 1, "num_train_epochs": 2}, ["epochs", "num_train_epochs"]),
        ({"use_peft": "yes"}, ["use_peft", "True or False"]),
        ({"fp16": True, "bf16": True}, ["`fp16` and `bf16` both set precision", "'fp16'", "'bf16'"]),
        ({"preset": "quick"}, ["no preset 'quick'", "quick_test", "production"]),
        ({"task": "poetry"}, ["no task 'poetry'", "instruct", "custom"]),
        ({"load_in_4bit": True, "load_in_8bit": True}, ["load_in_4bit", "load_in_8bit", "quantization"]),
        ({"device": "cuda"}, ["device", "LocalLM"]),
        ({"num_epoch": 1}, ["num_epoch", "num_epochs"]),
        ({"bf16": False, "precision": "bf16"}, ["`bf16` and `precision` both set precision"]),
        ({"use_lora": False, "method": "qlora"}, ["use_lora", "method", "'full'", "'qlora'"]),
        ({"eval_strategy": "steps"}, ["eval_strategy", "Set eval_steps"]),
        ({"epochs": 3, "max_steps": 2}, ["`epochs` is 3 and `max_steps` 2", "give one of them"]),
        ({"load_best_model_at_end": True}, ["load_best_model_at_end", "early_stopping_patience"]),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        TrainingConfig.from_kwargs(settings)
    for part in named:
        assert part in str(raised.value)


def test_two_names_that_agree_are_no_contradiction() -> None:
    assert TrainingConfig.from_kwargs({"epochs": 2, "num_train_epochs": 2}).epochs == 2


def test_a_name_that_says_less_gives_way_to_one_that_says_more() -> None:
    for both in ({"fp16": False, "bf16": True}, {"bf16": True, "fp16": False}):
        assert TrainingConfig.from_kwargs(both).precision == "bf16"
    assert TrainingConfig.from_kwargs({"fp16": False, "precision": "auto"}).precision == "auto"
    assert TrainingConfig.from_kwargs({"fp16": False, "bf16": False}).precision == "fp32"
    for both in ({"use_peft": True, "method": "qlora"}, {"method": "qlora", "use_lora": True}):
        assert TrainingConfig.from_kwargs(both).method == "qlora"


def test_a_share_of_steps_is_a_ratio_as_in_transformers() -> None:
    config = TrainingConfig.from_kwargs({"warmup_steps": 0.1})
    assert (config.warmup_ratio, config.warmup_steps, config.warmup_steps_of(50)) == (0.1, None, 5)


def test_another_librarys_name_is_told_from_a_slip() -> None:
    with pytest.raises(ConfigError, match=r"`use_lora` is another library's name for `method`.*from_kwargs"):
        TrainingConfig(use_lora=True)
    with pytest.raises(ConfigError, match=r"`base_model` .* `model`"):
        TrainingConfig(base_model="gpt2")


def test_dspys_own_defaults_are_taken() -> None:
    theirs = {"device": None, "max_seq_length": None, "packing": True, "output_dir": None, "num_train_epochs": 5}
    assert TrainingConfig.from_kwargs(theirs) == TrainingConfig(epochs=5)
    with pytest.raises(ConfigError, match=r"`output_dir` is not a training setting.*`run_dir`"):
        TrainingConfig.from_kwargs({"output_dir": "out"})


def test_what_has_no_meaning_here_is_passed_over() -> None:
    settings = {"dataloader_num_workers": 4, "num_workers": 8, "task_type": "CAUSAL_LM", "report_to": ["none"]}
    assert TrainingConfig.from_kwargs(settings) == TrainingConfig()


@pytest.mark.parametrize("name", ["api_key", "hub_token", "OPENAI_API_KEY", "password", "aws_secret_access_key"])
def test_a_secret_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(ConfigError, match="Never put secrets") as raised:
        TrainingConfig.from_kwargs({name: "canary-4711"})
    assert name in str(raised.value)
    assert "canary-4711" not in str(raised.value)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "method": st.just("lora"),
            "epochs": st.floats(0.1, 100),
            "learning_rate": st.none() | st.floats(1e-9, 1),
            "eval_steps": st.just("epoch") | st.integers(1, 1000),
            "target_modules": st.just("all-linear") | st.lists(st.text(min_size=1), min_size=1).map(tuple),
            "early_stopping_patience": st.none() | st.integers(1, 9),
        },
    )
)
def test_a_config_survives_json(settings: dict[str, Any]) -> None:
    config = TrainingConfig(**settings)
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config
    assert TrainingConfig.from_kwargs(config.model_dump(mode="json")) == config


def test_the_names_of_other_trainers_are_understood() -> None:
    config = TrainingConfig.from_kwargs(
        {
            "base_model": "gpt2",
            "use_lora": True,
            "load_in_8bit": True,
            "gradient_accumulation_steps": 2,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 7,
            "fp16": True,
            "report_to": "none",
            "patience": 3,
        }
    )
    assert (config.model, config.method, config.quantization, config.bits) == ("gpt2", "qlora", "8bit", 8)
    assert (config.scheduler, config.warmup_steps_of(100), config.warmup_steps_of(5)) == ("cosine", 7, 5)
    assert (config.precision, config.report_to, config.early_stopping_patience) == ("fp16", (), 3)
    assert TrainingConfig.from_kwargs({"report_to": "wandb"}).report_to == ("wandb",)
    assert TrainingConfig.from_kwargs({"load_in_4bit": True}).bits == 4
    assert TrainingConfig.from_kwargs({"load_in_4bit": False}).method == "lora"


def test_a_step_counts_rows_or_tokens() -> None:
    assert (TrainingConfig().rows_a_step, TrainingConfig().tokens_a_step) == (16, None)
    config = TrainingConfig(batch_size=4, gradient_accumulation=3)
    assert (config.rows_a_step, config.tokens_a_step) == (12, None)
    config = TrainingConfig(token_budget=1000, gradient_accumulation=3)
    assert (config.rows_a_step, config.tokens_a_step) == (None, 3000)


@pytest.mark.parametrize("task", [None, "chat", "code", "instruct", "domain", "custom"])
@pytest.mark.parametrize("name", ["quick_test", "low_resource", "high_quality", "production"])
def test_every_preset_goes_with_every_task_and_gives_way_to_the_caller(name: str, task: str | None) -> None:
    config = TrainingConfig.preset(name, task=task)
    assert config != TrainingConfig()
    assert TrainingConfig(**config.model_dump(mode="json")) == config
    assert TrainingConfig.from_kwargs({"preset": name, "task": task}) == config
    changed = TrainingConfig.preset(name, task=task, epochs=7, batch_size=3, warmup_steps=5, method="full", seed=9)
    assert (changed.epochs, changed.max_steps, changed.rows_a_step) == (7, None, 3 * config.gradient_accumulation)
    assert (changed.warmup_steps_of(100), changed.method, changed.lora_rank, changed.seed) == (5, "full", 16, 9)


def test_a_task_sets_what_a_preset_leaves_open() -> None:
    assert TrainingConfig.preset("low_resource", task="code").learning_rate == 1e-4
    assert TrainingConfig.preset("high_quality", task="chat").epochs == 5
    assert TrainingConfig.preset("quick_test", task="domain").max_steps == 20


def test_what_the_caller_says_of_an_adapter_leaves_the_presets_other_words_about_it() -> None:
    wide = TrainingConfig.preset("high_quality", lora_dropout=0.1, method="lora")
    assert (wide.lora_rank, wide.lora_alpha, wide.use_rslora, wide.lora_dropout) == (64, 64.0, True, 0.1)
    assert TrainingConfig.preset("low_resource", target_modules=["q_proj"]).lora_rank == 8
    assert TrainingConfig.preset("low_resource", method="qlora", quantization="8bit").lora_rank == 8


def test_full_training_does_not_take_an_adapters_rate() -> None:
    assert TrainingConfig.preset("high_quality", task="chat", method="full").rate == TrainingConfig(method="full").rate
    assert TrainingConfig.preset("high_quality", method="full", learning_rate=3e-4).rate == 3e-4


def test_the_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainingConfig().epochs = 4


def test_the_table_in_the_docs_has_every_setting_with_its_default() -> None:
    lines = (Path(__file__).parent.parent.parent / "docs" / "training.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    table = {row[0].strip("`"): row for row in rows}
    for name, field in TrainingConfig.model_fields.items():
        assert name in table, f"docs/training.md says nothing of {name}"
        default = field.get_default()
        shown = "none" if default == () else str(default)
        assert table[name][2].strip("`") == shown, f"docs/training.md has another default of {name}"
        assert len(table[name]) == 4
        assert all(len(cell) > 3 for cell in (table[name][1], table[name][3]))
