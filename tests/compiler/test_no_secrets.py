"""No secret reaches an artifact, whatever holds it; and what is no secret names calls and programs as it always did."""

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import DummyLM

import dspyc
from dspyc.compiler.calls import Run, durable
from dspyc.compiler.ledger import Ledger
from dspyc.errors import ConfigError
from dspyc.signatures import adapt, fingerprint
from dspyc.signatures.fingerprints import lm_key

CANARY = "tweety-and-sylvester"  # in the shape of no provider's keys
SETTINGS: dict[str, dict[str, Any]] = {
    "a key": {"api_key": CANARY},
    "a nested key": {"extra_body": {"provider": {"order": ["a"], "api_key": CANARY}}},
    "a key in a list": {"extra_body": {"models": [{"name": "a", "apiKey": CANARY}]}},
    "headers": {"extra_headers": {"X-Mine": CANARY}},
    "a header further in": {"extra_body": {"request": {"Authorization": f"Basic {CANARY}"}}},
    "an address": {"base_url": f"https://user:{CANARY}@example.org/v1"},
    "an address without a user's name": {"base_url": f"https://{CANARY}@example.org/v1"},
    "a nested address": {"extra_body": {"callback": f"https://user:{CANARY}@example.org/v1"}},
    "a parameter of an address": {"base_url": f"https://example.org/v1?api-key={CANARY}&version=2"},
    "AWS": {"aws_access_key_id": CANARY, "aws_secret_access_key": CANARY, "aws_session_token": CANARY},
    "credentials": {"vertex_credentials": {"private_key_id": CANARY, "client_email": CANARY}},
    "Azure": {"azure_ad_token": CANARY, "client_secret": CANARY, "azure_password": CANARY},
}
ORDINARY: dict[str, Any] = {
    "temperature": 0.7, "max_tokens": 100, "min_tokens": 2, "top_p": 0.9, "top_k": 5, "stop": ["\n"], "seed": 3, "n": 2,
    "reasoning_effort": "low", "logprobs": True, "rollout_id": 4, "thinking": {"type": "enabled", "budget_tokens": 512},
    "extra_body": {
        "skip_special_tokens": False,
        "truncate_prompt_tokens": 9,
        "provider": {"order": ["a", "b"]},
        "site": "https://example.org/a?b=c&d=e",
    },
    "logit_bias": {"50256": -100},
}  # fmt: skip
SECRETS = {
    "api_key": "K",
    "extra_headers": {"Authorization": "Bearer K"},
    "api_base": "http://h",
    "aws_session_token": "K",
}
TOOL = {
    "name": "f",
    "parameters": {"type": "object", "properties": {"key": {"type": "string"}, "password": {"type": "string"}}},
}


def written(folder: Path) -> str:
    return "\n".join(path.read_text("utf-8") for path in folder.rglob("*") if path.is_file())


def saved(lm: dspy.BaseLM, folder: Path) -> dict[str, Any]:
    program = dspy.Predict("q -> a")
    program.set_lm(lm)
    dspyc.save(program, folder)
    entry = json.loads((folder / "artifact.json").read_text("utf-8"))["lms"][0]
    return dict(entry)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_no_secret_of_an_lm_is_in_its_artifact(settings: dict[str, Any], tmp_path: Path) -> None:
    saved(dspy.LM("openai/some-model", temperature=0.5, **settings), tmp_path / "artifact")
    assert CANARY not in written(tmp_path / "artifact")
    assert dspyc.load(tmp_path / "artifact").lm.kwargs["temperature"] == 0.5


def test_what_is_no_secret_is_in_it(tmp_path: Path) -> None:
    address = {"base_url": "https://example.org/v1?version=2"}
    lm = dspy.LM("openai/some-model", tools=[TOOL], **ORDINARY, **address, api_key=CANARY)
    saved(lm, tmp_path / "artifact")
    assert dspyc.load(tmp_path / "artifact").lm.kwargs == {k: v for k, v in lm.kwargs.items() if k != "api_key"}


def test_of_an_address_only_the_secret_is_left_out(tmp_path: Path) -> None:
    address = f"https://user:{CANARY}@example.org:8000/v1?version=2&token={CANARY}"
    state = saved(dspy.LM("openai/some-model", base_url=address), tmp_path / "artifact")["state"]
    assert state["base_url"] == "https://example.org:8000/v1?version=2"


def test_no_secret_of_an_adapters_setting_is_in_an_artifact(tmp_path: Path) -> None:
    program = dspy.Predict("q -> a")
    adapt(program, Told({"language": "de", "api_key": CANARY}))
    dspyc.save(program, tmp_path / "artifact")
    assert CANARY not in written(tmp_path / "artifact")
    assert '"language": "de"' in written(tmp_path / "artifact")


class Told(dspy.ChatAdapter):
    """An adapter with a setting of its own."""

    def __init__(self, told: dict[str, str]) -> None:
        super().__init__()
        self.told = told


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_a_password_in_the_environments_address_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"https://user:{CANARY}@example.org/v1")
    with pytest.raises(ConfigError, match=f"{name} holds a secret") as caught:
        dspyc.LM("openai/some-model")
    assert CANARY not in str(caught.value)


def test_an_address_without_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://example.org/v1")
    entry = saved(dspyc.LM("openai/some-model"), tmp_path / "artifact")
    assert entry["connection"] == {"api_base": "https://example.org/v1"}


@pytest.mark.parametrize("address", [f"https://user:{CANARY}@h/v1", f"https://{CANARY}@h", f"https://h/?key={CANARY}"])
def test_a_secret_in_a_given_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="`api_base` holds a secret") as caught:
        dspyc.LM("openai/some-model", api_base=address)
    assert CANARY not in str(caught.value)


def request(settings: dict[str, Any], folder: Path, **asked: Any) -> str:
    """What the ledger calls a call with these settings."""
    calls: list[Any] = []
    with Ledger(folder) as ledger, dspy.context(dspyc_run=Run("teacher", "e", ledger, calls.append)):
        durable(DummyLM([{"a": "1"}]).copy(**settings))(messages=[{"role": "user", "content": "hi"}], **asked)
    return str(calls[0].request)


def test_calls_and_models_keep_the_names_that_ledgers_know(tmp_path: Path) -> None:
    """As they were on 2026-11-22: under another name, everything in every run folder would be paid for again."""
    settings = ORDINARY | {"max_completion_tokens": 100}
    tools = [{"type": "function", "function": {**TOOL, "parameters": {**TOOL["parameters"], "required": ["key"]}}}]
    elsewhere = {**settings, **SECRETS, "base_url": "http://here"}
    assert request(settings, tmp_path / "1") == "61ac9b1e103784a0"
    assert request(elsewhere, tmp_path / "2", tools=tools, response_format=dspy.Predict) == "c91810f96a57a6ec"
    lm = dspy.LM("openai/gpt-4.1-mini", **ORDINARY, **SECRETS, base_url="http://here")
    assert fingerprint(lm_key(lm)) == "1ffea52eed6bf2e2"


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_changed_secret_is_the_same_call_and_the_same_model(settings: dict[str, Any], tmp_path: Path) -> None:
    changed = json.loads(json.dumps(settings).replace(CANARY, "another"))
    assert request(settings, tmp_path / "1") == request(changed, tmp_path / "2")
    keys = [fingerprint(lm_key(dspy.LM("openai/some-model", **found))) for found in (settings, changed)]
    assert keys[0] == keys[1]
