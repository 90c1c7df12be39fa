"""What each server is started with, and what is refused before anything starts."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dspyc import LocalLM
from dspyc.errors import ConfigError, ModelError
from dspyc.models.servers.commands import SGLANG, TRANSFORMERS, VLLM, Adapter, Launch, command, environment, program_of

FIRST, SECOND = Adapter("first-1", "/adapters/first", 4), Adapter("second-2", "/adapters/second", 64)


def launch(**changes: Any) -> Launch:
    return Launch(**{"path": "/models/base", "name": "base", "port": 8123, **changes})


def test_vllm() -> None:
    assert " ".join(command(VLLM, "vllm", launch())) == (
        "vllm serve /models/base --host 127.0.0.1 --port 8123 --served-model-name base --uvicorn-log-level warning"
    )


def test_vllm_with_adapters_and_tools() -> None:
    found = command(VLLM, "vllm", launch(adapters=(FIRST, SECOND), hermes_tools=True, dtype="bfloat16"))
    assert found[-3] == "--lora-modules"
    assert [json.loads(text) for text in found[-2:]] == [
        {"name": "first-1", "path": "/adapters/first"},
        {"name": "second-2", "path": "/adapters/second"},
    ]
    rest = " ".join(found[:-3])
    assert "--enable-lora --max-lora-rank 64 --max-loras 2" in rest
    assert "--enable-auto-tool-choice --tool-call-parser hermes" in rest
    assert "--dtype bfloat16" in rest


def test_vllm_takes_certain_ranks_only() -> None:
    found = command(VLLM, "vllm", launch(adapters=(Adapter("odd", "/odd", 40),)))
    assert found[found.index("--max-lora-rank") + 1] == "64"


def test_sglang() -> None:
    found = command(SGLANG, "/env/bin/python", launch(device="cuda:1", dtype="float16", adapters=(FIRST,)))
    assert " ".join(found) == (
        "/env/bin/python -m sglang.launch_server --model-path /models/base --host 127.0.0.1 --port 8123 "
        "--served-model-name base --log-level-http warning --dtype float16 --device cuda "
        "--enable-lora --max-lora-rank 16 --lora-target-modules all --lora-paths first-1=/adapters/first"
    )


def test_transformers() -> None:
    found = command(TRANSFORMERS, "transformers", launch(device="cpu", args=("--continuous-batching",)))
    assert " ".join(found) == (
        "transformers serve /models/base --continuous-batching --host 127.0.0.1 --port 8123 --device cpu --dtype auto"
    )


@pytest.mark.parametrize("kind", [VLLM, SGLANG, TRANSFORMERS])
def test_the_users_arguments_stand_before_ours_which_win(kind: Any) -> None:
    found = command(kind, "program", launch(args=("--x", "1")))
    assert found.index("--x") < found.index("--host") < found.index("--port")


def test_a_server_gets_no_secret_of_this_program() -> None:
    given = {"PATH": "/bin", "OPENAI_API_KEY": "sk-1", "HF_TOKEN": "hf_1", "MY_SECRET": "s"}
    assert environment(TRANSFORMERS, launch(), given) == {"PATH": "/bin"}


def test_the_environment_of_adapters_and_devices() -> None:
    found = environment(VLLM, launch(device="cuda:3", adapters=(FIRST,)), {})
    assert found == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "CUDA_VISIBLE_DEVICES": "3"}
    found = environment(SGLANG, launch(device="cuda:1"), {"CUDA_VISIBLE_DEVICES": "4,6"})
    assert found == {"CUDA_VISIBLE_DEVICES": "6"}


@pytest.mark.parametrize(("server", "words"), [("vllm", "pip install vllm"), ("sglang", "sglang\\[all\\]")])
def test_a_missing_program_says_what_to_install(llama: Path, server: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"not installed here.*{words}"):
        LocalLM(llama, server=server, server_options={"program": "/nowhere/bin/program"})


def test_a_program_is_found_beside_this_python() -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("fastapi")
    found = program_of(TRANSFORMERS, None)
    assert Path(found).parent == Path(sys.executable).parent
    assert os.access(found, os.X_OK)


@pytest.mark.parametrize(
    "argument",
    [
        "--host",
        "--host=0.0.0.0",
        "--port",
        "--ho",
        "--api-key=k",
        "--trust-remote-code",
        "--trust_remote_code",
        "--lora-p",
    ],
)
def test_arguments_that_are_not_the_users(llama: Path, argument: str) -> None:
    with pytest.raises(ConfigError, match=r"not yours to give"):
        LocalLM(llama, server="vllm", server_options={"args": [argument]})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": 3}, "no timeout.*start_timeout"),
        ({"start_timeout": 0}, "start_timeout.*above 0"),
        ({"request_timeout": "long"}, "request_timeout"),
        ({"args": "--x 1"}, "list of texts"),
        ({"args": None}, "list of texts"),
        ({"args": ["--x", 1]}, "list of texts"),
        ({"api_key_env": "sk-abcdefghijklmnop"}, "never the key itself"),
        ({"api_key_env": "VLLM_API_KEY"}, "belongs to the address"),
        ("fast", "Pass a dict"),
    ],
)
def test_options_that_cannot_be_used(llama: Path, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        LocalLM(llama, server="transformers", server_options=options)
    assert "abcdefghijklmnop" not in str(caught.value)


@pytest.mark.parametrize(
    "server", ["vlm", "", "127.0.0.1:8000", "ftp://x", "http://", "http://user:hunter22@host", "http://h:port", 7]
)
def test_servers_that_are_none(llama: Path, server: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        LocalLM(llama, server=server)
    assert "hunter22" not in str(caught.value)


def test_settings_of_a_server_that_runs_already(llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"dtype, server_options\['args'\] cannot be set"):
        LocalLM(llama, server="http://127.0.0.1:1", dtype="float16", server_options={"args": ["--x"]})


def test_devices_dtypes_and_options_without_a_server(llama: Path) -> None:
    with pytest.raises(ConfigError, match="no device 'gpu'"):
        LocalLM(llama, server="transformers", device="gpu")
    with pytest.raises(ConfigError, match="device='cpu'"):
        LocalLM(llama, server="vllm", device="cpu")
    with pytest.raises(ConfigError, match="no dtype 'fp8'"):
        LocalLM(llama, server="sglang", dtype="fp8")
    with pytest.raises(ConfigError, match="server_options and no server"):
        LocalLM(llama, server_options={})


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="does not exist"):
        LocalLM("./gone", server="vllm")
