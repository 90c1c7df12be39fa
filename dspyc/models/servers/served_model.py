"""What a server is to serve: a model and an adapter, what they are called, and which server it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .. import weights
from .commands import KINDS, Adapter, Launch, check_arguments, program_of
from .options import ServerOptions, address_of
from .remote import RemoteServer
from .server import Server, ServerSettings, shared


@dataclass(frozen=True)
class ServedModel:
    """A model and its server, checked. Nothing runs yet.

    `path` is the model's folder; it is None where the server has an address and the folder is not here. `server` is the
    name of a kind of server or an address; `address` is its base URL in the second case.
    """

    model: str
    path: Path | None
    adapter: Path | None
    server: str
    address: str | None
    device: str
    dtype: str
    options: ServerOptions

    @classmethod
    def of(
        cls,
        model: str | Path,
        adapter: str | Path | None,
        server: str,
        device: str,
        dtype: str,
        options: Mapping[str, Any] | None,
    ) -> "ServedModel":
        """Find the files and check the settings.

        Raises:
            ConfigError: A setting cannot be used with this server, or its program is not installed.
            ModelError: The files cannot be found or read.
        """
        known, address = ServerOptions.of(options), address_of(server)
        is_folder = str(model) != weights.TINY and Path(model).expanduser().is_dir()
        is_here = address is None or is_folder or str(model) == weights.TINY
        path = weights.resolve(model) if is_here else None
        worn = weights.resolve(Path(adapter)) if adapter is not None else None
        if path is not None:
            weights.check(path, worn)
        name = str(path) if is_folder else str(model)
        found = cls(name, path, worn, server, address, device, dtype, known)
        _check(found)
        return found

    @property
    def name(self) -> str:
        """The last part of the model's name."""
        return self.model.rstrip("/").rsplit("/", 1)[-1]

    @cached_property
    def identity(self) -> str:
        """12 hex digits: of the weights, where they are here; else of the address and the names, all that is known."""
        if self.path is not None:
            return weights.identity(self.path, self.adapter)
        adapter = str(self.adapter) if self.adapter is not None else ""
        return sha256(f"{self.address}\0{self.model}\0{adapter}".encode()).hexdigest()[:12]

    @property
    def model_string(self) -> str:
        """`<server>/<model>+<adapter>@<identity>`, and a mark of settings that decide answers as well."""
        worn = f"+{self.adapter.name}" if self.adapter else ""
        chosen = [self.dtype, *self.options.args]  # a quantization, say
        mark = "" if chosen == ["auto"] else "." + sha256("\0".join(chosen).encode()).hexdigest()[:6]
        return f"{'server' if self.address else self.server}/{self.name}{worn}@{self.identity}{mark}"

    @cached_property
    def max_length(self) -> int | None:
        """Tokens that prompt and reply may have together, where the model's folder says so."""
        return weights.context_length(self.path) if self.path is not None else None

    @cached_property
    def template(self) -> str:
        """The text in which the model's chat template stands; empty where there is none, or the folder is not here."""
        for file in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
            found = self.path / file if self.path is not None else None
            text = found.read_text(encoding="utf-8") if found is not None and found.is_file() else ""
            if text and (file != "tokenizer_config.json" or '"chat_template"' in text):
                return text
        return ""

    @property
    def takes_tools(self) -> bool:
        """Whether the template writes tool definitions and the server finds calls in replies."""
        if self.address is not None or "tools" not in self.template:
            return False
        has_parser = "<tool_call>" in self.template or any("--tool-call-parser" in a for a in self.options.args)
        return self.server != "vllm" or has_parser

    @cached_property
    def worn(self) -> Adapter | None:
        """The adapter as a server that this program starts knows it: under a name that names its content."""
        if self.adapter is None or self.address is not None:
            return None
        config = weights.adapter_settings(self.adapter)
        rank = max([int(config.get("r", 8)), *map(int, (config.get("rank_pattern") or {}).values())])
        return Adapter(f"{self.adapter.name}-{weights.identity(self.adapter)}", str(self.adapter), rank)

    def backend(self) -> Server | RemoteServer:
        """The server. One that this program starts is shared by all who ask for the same base and settings.

        Raises:
            ConfigError: Its program is not installed.
        """
        if self.address is not None:
            return RemoteServer(self.address, self.model, self.adapter, self.options)
        kind = KINDS[self.server]
        return shared(
            ServerSettings(
                kind=kind,
                program=program_of(kind, self.options.program),
                launch=Launch(
                    path=str(self.path),
                    name=self.name if kind.full else str(self.path),
                    device=self.device,
                    dtype=self.dtype,
                    args=self.options.args,
                    hermes_tools="<tool_call>" in self.template,
                ),
                start_timeout=self.options.start_timeout,
                request_timeout=self.options.request_timeout,
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """What `ServerEngine.load_state` needs, as JSON. No key."""
        return {
            "model": self.model,
            "adapter": str(self.adapter) if self.adapter else None,
            "server": self.server,
            "device": self.device,
            "dtype": self.dtype,
            "options": self.options.to_dict(),
            "identity": self.identity,
        }


def _check(served: ServedModel) -> None:
    if served.dtype not in weights.DTYPES:
        raise ConfigError(f"There is no dtype {served.dtype!r}.", hint=f"Use one of {', '.join(weights.DTYPES)}.")
    if served.address is None:
        _check_child(served)
        return
    given = [name for name in ("device", "dtype") if getattr(served, name) != "auto"]
    given += [f"server_options[{name!r}]" for name in ("args", "program") if getattr(served.options, name)]
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be set for a server that runs already.", hint="Start it with what it needs."
        )


def _check_child(served: ServedModel) -> None:
    kind = KINDS[served.server]
    check_arguments(kind, served.device, served.options.args)
    if served.options.api_key_env is not None:
        raise ConfigError("server_options['api_key_env'] belongs to the address of a server that runs already.")
    if served.adapter is not None and not kind.full:
        raise ConfigError(
            f"The {kind.name} server takes no adapters.",
            hint="Merge it into its base (dspyc train --merge) and serve that folder, or use server='vllm'.",
        )
    if kind.name == "transformers" and "@" in str(served.path):
        raise ConfigError(
            f"transformers' server reads '@' in {str(served.path)!r} as the beginning of a revision.",
            hint="Move the model to a folder without '@' in its path.",
        )
