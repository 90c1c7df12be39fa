"""What `train_kwargs` may hold: wrong kinds of values are refused, in our words, before there are rows or a server."""

from typing import Any

import pytest

import dspyc
from dspyc.errors import ConfigError
from dspyc.providers.job import check_order
from dspyc.providers.remote import RemoteProvider

from .everyone import EVERYONE, Case

CASES = {case.name: case for case in EVERYONE}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("openai", {"hyperparameters": [1]}, "`hyperparameters` is [1]"),
    ("openai", {"method": {"type": "dpo", "dpo": [1]}}, "`dpo` is [1]"),
    ("bedrock", {"tags": ["team"]}, "`tags` is ['team']"),
    ("bedrock", {"tags": [{"key": "team", "value": "desk"}]}, "`tags` is [{'key': 'team', 'value': 'desk'}]"),
    ("bedrock", {"tags": [{"Key": "api_key", "Value": "desk"}]}, "`tags[0].api_key` in train_kwargs is a secret"),
    (
        "bedrock",
        {"tags": [{"Key": "sk-proj-abcdefghijklmnopqrstuvwx", "Value": "desk"}]},
        "`tags[0]` in train_kwargs is a",
    ),
    ("bedrock", {"tags": [{"Key": ["team"], "Value": "desk"}]}, "`tags` is [{'Key': ['team'], 'Value': 'desk'}]"),
    ("bedrock", {"hyperparameters": "epochCount=3"}, "`hyperparameters` is 'epochCount=3'"),
    ("bedrock", {"hyperparameters": {1: 3}}, "`hyperparameters` is {1: 3}"),
    ("bedrock", {"start_endpoint": 0}, "`start_endpoint` is 0"),
    ("databricks", {"training": "epochs=3"}, "`training` is 'epochs=3'"),
    ("together", {"n_epochs": "three"}, "`n_epochs` is 'three'"),
    ("together", {"n_epochs": True}, "`n_epochs` is True"),
    ("together", {"learning_rate": float("nan")}, "`learning_rate` is nan"),
    ("fireworks", {"epochs": 0}, "`epochs` is 0"),
    ("fireworks", {"epochs": 1.5}, "`epochs` is 1.5"),
    ("fireworks", {"learning_rate": "fast"}, "`learning_rate` is 'fast'"),
    ("fireworks", {"learning_rate": 0}, "`learning_rate` is 0"),
    ("fireworks", {"learning_rate": float("inf")}, "`learning_rate` is inf"),
    ("fireworks", {"lora_rank": -1}, "`lora_rank` is -1"),
    ("fireworks", {"batch_size": {}}, "`batch_size` is {}"),
    ("fireworks", {"max_context_length": True}, "`max_context_length` is True"),
    ("bedrock", {"model_units": True}, "`model_units` is True"),
    ("bedrock", {"commitment": []}, "Use one of 'OneMonth', 'SixMonths', or leave it out"),
    ("bedrock", {"s3_path": 3}, "`s3_path` is 3; rows go through S3. Pass it as 's3://your-bucket/folder/', of"),
    ("databricks", {"accelerator": "H100"}, "Use one of 'GPU_1xA10', 'GPU_1xH100'"),
    ("vertex", {"gcs_path": "bucket"}, "Pass it as 'gs://your-bucket/folder/'"),
    ("vertex", {"epochs": "three"}, "`epochs` is 'three'"),
    ("vertex", {"epochs": 0}, "`epochs` is 0"),
    ("vertex", {"learning_rate_multiplier": "fast"}, "`learning_rate_multiplier` is 'fast'"),
]


def provider(case: Case) -> tuple[RemoteProvider, dict[str, Any]]:
    settings = {name: text.format(url="http://127.0.0.1:9") for name, text in case.settings.items()}
    made = dspyc.LM(case.model, **settings).provider
    assert isinstance(made, RemoteProvider)
    return made, case.train_kwargs


@pytest.mark.parametrize(("name", "wrong", "said"), WRONG)
def test_values_of_a_wrong_kind_are_refused_and_named(name: str, wrong: dict[str, Any], said: str) -> None:
    made, known = provider(CASES[name])
    with pytest.raises(ConfigError) as caught:
        check_order(made, CASES[name].model, {**known, **wrong})
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "settings", "epochs"),
    [
        ("bedrock", {"hyperparameters": {"epochCount": None}, "tags": None, "model_units": None}, 3),
        ("together", {"n_epochs": None}, 1),
        ("fireworks", {"epochs": None, "learning_rate": None}, 1),
        ("vertex", {"epochs": None, "learning_rate_multiplier": None}, 3),
        ("vertex", {"epochs": 2, "learning_rate_multiplier": 1}, 2),
        ("fireworks", {"epochs": 2, "learning_rate": 1e-4, "lora_rank": 8}, 2),
    ],
)
def test_none_is_a_setting_that_is_left_out(name: str, settings: dict[str, Any], epochs: int) -> None:
    made, known = provider(CASES[name])
    check_order(made, CASES[name].model, {**known, **settings})
    assert made.epochs({**known, **settings}) == epochs
