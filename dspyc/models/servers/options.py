"""The settings of `LocalLM(..., server_options={...})`."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from ...errors import ConfigError
from .commands import KINDS


@dataclass(frozen=True)
class ServerOptions:
    """How a server is started and asked.

    Args:
        args: More command-line arguments for the server, such as ["--tensor-parallel-size", "2"].
        program: The executable: `vllm`, `transformers`, or the Python that has sglang. Where it is not given, it is looked
            for beside this Python and then on the PATH. It belongs to this machine and is not saved with an LM.
        start_timeout: Seconds until the server has to be healthy.
        request_timeout: Seconds that one request may take.
        api_key_env: The environment variable that holds the key of a server that runs already. The key itself is read when
            a request is sent, and written nowhere.
    """

    args: tuple[str, ...] = ()
    program: str | None = None
    start_timeout: float = 600.0
    request_timeout: float = 600.0
    api_key_env: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> "ServerOptions":
        """The options in a mapping.

        Raises:
            ConfigError: One is unknown or has a value that cannot be used.
        """
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"server_options is a {type(given).__name__}.", hint="Pass a dict, such as {'args': []}.")
        found = dict(given or {})
        names = [f.name for f in fields(cls)]
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise ConfigError(
                f"server_options has no {', '.join(map(str, unknown))}.", hint=f"It has {', '.join(names)}."
            )
        args = found.get("args", ())
        if not isinstance(args, (list, tuple)) or not all(isinstance(argument, str) for argument in args):
            raise ConfigError(
                f"The server's args are {args!r}.", hint="Pass a list of texts: ['--max-num-seqs', '64']."
            )
        for name in ("start_timeout", "request_timeout"):
            seconds = found.get(name, 1.0)
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
                raise ConfigError(f"server_options[{name!r}] is {seconds!r}.", hint="Pass a number of seconds above 0.")
        key = found.get("api_key_env")
        if key is not None and not (isinstance(key, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key)):
            raise ConfigError(
                "server_options['api_key_env'] is not the name of an environment variable.",
                hint="Pass the variable's name, such as 'VLLM_API_KEY'; never the key itself.",
            )
        program = found.get("program")
        return cls(**{**found, "args": tuple(args), "program": None if program is None else str(program)})

    def to_dict(self) -> dict[str, Any]:
        """What is saved with an LM, as JSON: all but the program."""
        return {name: value for name, value in asdict(self).items() if name != "program"} | {"args": list(self.args)}


def address_of(server: object) -> str | None:
    """The base URL in `server`, ending in its path (`/v1` unless given); None where it names a server program.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(server, str) and server in KINDS:
        return None
    kinds = ", ".join(repr(name) for name in KINDS)
    hint = f"Use {kinds}, or the address of a server that runs, such as 'http://127.0.0.1:8000'."
    if not isinstance(server, str) or not server.startswith(("http://", "https://")):
        shown = repr(server) if isinstance(server, str) and "@" not in server else f"a {type(server).__name__}"
        raise ConfigError(f"There is no server {shown}.", hint=hint)
    try:
        parts = urlsplit(server)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError("The server's address cannot be read.", hint=hint) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "The server's address holds more than scheme, host, port and path.",
            hint="Name the environment variable of a key: server_options={'api_key_env': 'VLLM_API_KEY'}.",
        )
    if not host:
        raise ConfigError("The server's address has no host.", hint=hint)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
