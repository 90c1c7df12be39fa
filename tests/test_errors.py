"""What counts as a secret, everywhere: by name, and in addresses."""

import pytest

from dspyc.errors import ConfigError, is_secret_name, public, redact
from dspyc.signatures.fingerprints import is_secret
from dspyc.training.names import translated

SECRET = (
    "api_key", "apiKey", "X-Api-Key", "OPENAI_API_KEY", "API_KEYS", "hub_token", "HF_TOKEN", "SLACK_TOKENS", "access_tokens",
    "password", "db_passwd", "aws_access_key_id", "aws_secret_access_key", "clientSecret", "SECRETS", "vertex_credentials",
    "GOOGLE_APPLICATION_CREDENTIALS", "extra_headers", "Authorization", "Proxy-Authorization", "basic_auth",
    "azure_ad_token_provider", "private_key_id", "OTEL_EXPORTER_OTLP_HEADERS",
)  # fmt: skip
PUBLIC = (
    "max_tokens", "max_completion_tokens", "min_tokens", "budget_tokens", "micro_batch_tokens", "token_budget", "n_tokens",
    "skip_special_tokens", "stop_token_ids", "tokenizer", "MAX_TOKENS", "keywords", "top_k", "author", "model", "PATH", "LANG",
    "api_key_env", "api_base", "base_url", "", 3, None,
)  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
def test_names_of_secrets_are_secret_wherever_they_stand(name: str) -> None:
    assert is_secret_name(name)
    assert is_secret(name)
    assert public({"a": [{name: "x", "b": 1}]}) == {"a": [{"b": 1}]}
    with pytest.raises(ConfigError, match="looks like a secret"):
        translated({name: "x"}, [name])


@pytest.mark.parametrize("name", PUBLIC)
def test_other_names_are_not(name: object) -> None:
    assert not is_secret_name(name)
    assert public({name: "x"}) == {name: "x"}


def test_a_secret_inside_a_setting_of_a_training_is_refused() -> None:
    for value in ({"wandb": {"api_key": "x"}}, ["https://me:x@example.org"]):
        with pytest.raises(ConfigError, match="holds a secret"):
            translated({"target_modules": value}, ["target_modules"])
    assert translated({"target_modules": ("q", "v")}, ["target_modules"]) == {"target_modules": ("q", "v")}


def test_fields_of_a_schema_are_no_settings() -> None:
    schema = {"type": "object", "properties": {"key": {"type": "string", "default": "https://me:x@h"}, "token": True}}
    assert public(schema)["properties"] == {"key": {"type": "string", "default": "https://h"}, "token": True}
    assert public({"properties": {"key": "x", "b": 1}}) == {"properties": {"b": 1}}


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://me:pass@h:80/v1", "https://h:80/v1"),
        ("https://me:p@ss@h/v1", "https://h/v1"),
        ("https://h?key=x", "https://h"),
        ("https://h/?a=1&key=x&b=2", "https://h/?a=1&b=2"),
        ("https://medium.com/@me", "https://medium.com/@me"),
        ("me@example.org asks: who?key=x", "me@example.org asks: who?key=x"),
        ("https://h/?", "https://h/?"),
    ],
)
def test_an_address_keeps_all_but_its_secrets(address: str, kept: str) -> None:
    assert public(address) == kept


def test_messages_name_no_user_of_an_address() -> None:
    assert redact("No answer from https://me:pass@h/v1.") == "No answer from https://[secret]@h/v1."


@pytest.mark.parametrize(
    "text",
    [
        "s3://hf-training-datasets/x",
        "gs://fw-finetune-bucket/",
        "pk-classifier-model",
        "s3://hf-datasets-2026/rk-qwen3-v2-run",
        "https://dapi-gateway-internal/v1",
    ],
)
def test_words_that_begin_as_a_key_does_are_none(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcdefghijklmnopqrstuvwx",
        "sk-ant-api03-Ab3_x-Zq9f7KpLmN2oRs",
        "sk-0123456789abcdef0123456789abcdef",
        "hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
        "fw_3Zk9QpLmN2oRsTuV",
        "gsk_a1B2c3D4e5F6g7H8",
        "dapi0123456789abcdef0123456789abcdef",
        "dapi-0123456789ab-cdef",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_what_is_shaped_like_a_key_is_hidden(key: str) -> None:
    assert redact(f"The key {key}.") == "The key [secret]."
