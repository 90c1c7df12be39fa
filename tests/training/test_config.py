"""TrainingConfig: what it takes, what it refuses and how it says so."""

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
        ({"method": "qlora"}, ["`method` is 'qlora'", "'lora'", "'full'"]),
        ({"scheduler": "step"}, ["`scheduler` is 'step'", "'one_cycle'"]),
        ({"label_smoothing": 1}, ["`label_smoothing` is 1", "[0, 1)"]),
        ({"eval_steps": 0}, ["`eval_steps` is 0", "'epoch'"]),
        ({"target_modules": []}, ["`target_modules` is []"]),
        ({"seed": -1}, ["`seed` is -1"]),
        ({"learning_rat": 1.0}, ["`learning_rat`", "learning_rate"]),
        ({"method": "full", "lora_rank": 4}, ["lora_rank", "method='full'"]),
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
        ({"fp16": True}, ["fp16", "bf16"]),
        ({"device": "cuda"}, ["device", "LocalLM"]),
        ({"num_epoch": 1}, ["num_epoch", "num_epochs"]),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        TrainingConfig.from_kwargs(settings)
    for part in named:
        assert part in str(raised.value)


def test_two_names_that_agree_are_no_contradiction() -> None:
    assert TrainingConfig.from_kwargs({"epochs": 2, "num_train_epochs": 2}).epochs == 2


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
