"""How each server is started: its program, its command line on the loopback, and what it can do.

Option names are those of vLLM 0.10 and later, SGLang 0.5 and later, and transformers 5.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, is_secret_name

LOOPBACK = "127.0.0.1"
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM's --max-lora-rank takes
_MOST_ADAPTERS_AT_ONCE = 8
# Ours to set, or never to be set: addresses, names and keys, and code that a model's folder brings with it.
_RESERVED = (
    "--admin-api-key",
    "--api-key",
    "--config",
    "--enable-cors",
    "--enable-lora",
    "--host",
    "--lora-modules",
    "--lora-paths",
    "--model",
    "--model-path",
    "--port",
    "--served-model-name",
    "--trust-remote-code",
    "--uds",
)
_RESERVED_WHOLE = ("--model", "--config")  # `--model-impl` and their like are the user's


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as a server knows it: its name in requests, its folder, its rank."""

    name: str
    path: str
    rank: int


@dataclass(frozen=True)
class Launch:
    """What a server is started for."""

    path: str  # the model's folder
    name: str  # what the model is called in requests
    device: str = "auto"
    dtype: str = "auto"
    args: tuple[str, ...] = ()
    hermes_tools: bool = False  # the chat template writes tool calls as `<tool_call>{json}</tool_call>`
    port: int = 0  # it and the adapters are chosen when the server is started
    adapters: tuple[Adapter, ...] = ()


@dataclass(frozen=True)
class ServerKind:
    """A server program. One that is `full` takes adapters, schemas, log-probabilities, stop strings and a name of its own."""

    name: str
    install: str
    load_adapter_path: str = ""

    @property
    def full(self) -> bool:
        return bool(self.load_adapter_path)


VLLM = ServerKind(
    "vllm",
    "pip install vllm (in an environment of its own, where it needs another torch, with server_options="
    "{'program': '/that/environment/bin/vllm'})",
    load_adapter_path="/v1/load_lora_adapter",
)
SGLANG = ServerKind(
    "sglang",
    "pip install 'sglang[all]' (in an environment of its own, where it needs another torch, with server_options="
    "{'program': '/that/environment/bin/python'})",
    load_adapter_path="/load_lora_adapter",
)
TRANSFORMERS = ServerKind("transformers", "pip install 'dspyc[serving]'")
KINDS = {kind.name: kind for kind in (VLLM, SGLANG, TRANSFORMERS)}


def program_of(kind: ServerKind, program: str | None) -> str:
    """The executable that starts `kind`; `program` is the user's own, if given.

    Raises:
        ConfigError: It is not installed; the hint says what to install.
    """
    missing = ConfigError(
        f"server={kind.name!r} needs {program or _usual(kind)!r}, which is not installed here.",
        hint=f"Install it: {kind.install}. Or pass the address of a server that runs.",
    )
    if program is not None:
        found = shutil.which(str(Path(program).expanduser()))
        if found is None:
            raise missing
        return found
    if kind is SGLANG:
        if importlib.util.find_spec("sglang") is None:
            raise missing
        return sys.executable
    if kind is TRANSFORMERS and any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
        raise missing
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which(kind.name, path=beside)
    if found is None:
        raise missing
    return found


def command(kind: ServerKind, program: str, launch: Launch) -> list[str]:
    """The command line. The user's own arguments stand before ours: the last of a kind wins."""
    build = {"vllm": _vllm, "sglang": _sglang, "transformers": _transformers}[kind.name]
    return [program, *build(launch)]


def environment(kind: ServerKind, launch: Launch, inherited: Mapping[str, str]) -> dict[str, str]:
    """The server's environment variables: this program's without its secrets, which a server on loopback never needs."""
    found = {name: value for name, value in inherited.items() if not is_secret_name(name)}
    if kind is VLLM and launch.adapters:
        found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if kind is not TRANSFORMERS and launch.device.startswith("cuda:"):
        found["CUDA_VISIBLE_DEVICES"] = _visible(int(launch.device.removeprefix("cuda:")), inherited)
    return found


def check_arguments(kind: ServerKind, device: str, args: tuple[str, ...]) -> None:
    """Find what the server cannot be asked for.

    Raises:
        ConfigError: A device that it does not run on, or an argument that is not the user's to give.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError(f"There is no device {device!r}.", hint="Use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.")
    if kind is VLLM and not device.startswith(("auto", "cuda")):
        raise ConfigError(
            f"vLLM does not take device={device!r}: its build decides.", hint="Leave device='auto', or use 'cuda:1'."
        )
    for argument in args:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and any(_stands_for(name, reserved) for reserved in _RESERVED):
            raise ConfigError(
                f"The server argument {name} is not yours to give: dspyc sets addresses, names and adapters, and lets no "
                "model bring code.",
                hint="Start the server yourself and pass its address: server='http://127.0.0.1:8000'.",
            )


def highest_rank(kind: ServerKind, adapters: tuple[Adapter, ...]) -> int:
    """The rank that a server started with these adapters has room for."""
    needed = max((adapter.rank for adapter in adapters), default=0)
    if kind is VLLM:
        return next((rank for rank in _VLLM_RANKS[1:] if rank >= needed), needed)
    return max(needed, 16)


def _vllm(launch: Launch) -> list[str]:
    found = ["serve", launch.path, *launch.args, "--host", LOOPBACK, "--port", str(launch.port)]
    found += ["--served-model-name", launch.name, "--uvicorn-log-level", "warning"]
    if launch.dtype != "auto":
        found += ["--dtype", launch.dtype]
    if launch.hermes_tools and not _has(launch.args, "--tool-call-parser"):
        found += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    if launch.adapters:
        found += ["--enable-lora", "--max-lora-rank", str(highest_rank(VLLM, launch.adapters))]
        if not _has(launch.args, "--max-loras"):
            found += ["--max-loras", str(min(max(len(launch.adapters), 2), _MOST_ADAPTERS_AT_ONCE))]
        found += ["--lora-modules", *(json.dumps({"name": a.name, "path": a.path}) for a in launch.adapters)]
    return found


def _sglang(launch: Launch) -> list[str]:
    found = ["-m", "sglang.launch_server", "--model-path", launch.path, *launch.args]
    found += ["--host", LOOPBACK, "--port", str(launch.port), "--served-model-name", launch.name]
    found += ["--log-level-http", "warning"]
    if launch.dtype != "auto":
        found += ["--dtype", launch.dtype]
    if launch.device != "auto":
        found += ["--device", launch.device.partition(":")[0]]
    if launch.adapters:
        found += ["--enable-lora", "--max-lora-rank", str(highest_rank(SGLANG, launch.adapters))]
        found += ["--lora-target-modules", "all"]
        found += ["--lora-paths", *(f"{adapter.name}={adapter.path}" for adapter in launch.adapters)]
    return found


def _transformers(launch: Launch) -> list[str]:
    found = ["serve", launch.path, *launch.args, "--host", LOOPBACK, "--port", str(launch.port)]
    return [*found, "--device", launch.device, "--dtype", launch.dtype]


def _visible(index: int, inherited: Mapping[str, str]) -> str:
    """The GPU that this program calls `cuda:index`: it may see a part of the machine's only."""
    seen = [name for name in inherited.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return seen[index] if index < len(seen) else str(index)


def _usual(kind: ServerKind) -> str:
    return {"transformers": "transformers[serving]"}.get(kind.name, kind.name)


def _has(args: tuple[str, ...], name: str) -> bool:
    return any(argument.partition("=")[0].replace("_", "-") == name for argument in args)


def _stands_for(name: str, reserved: str) -> bool:
    """Whether the option parser would take `name` for `reserved`: whole, or shortened."""
    return name == reserved or (reserved not in _RESERVED_WHOLE and len(name) > 3 and reserved.startswith(name))
