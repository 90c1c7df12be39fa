"""A model server that runs already, at an address: which of its models is meant, and what kind of server it is."""

import threading
import time
from copy import copy
from pathlib import Path
from typing import Any

import httpx

from ...errors import DspycError, ModelError
from .client import api_key, is_loopback
from .commands import KINDS, Adapter, ServerKind
from .options import ServerOptions
from .server import Endpoint

_LIST_TIMEOUT = 10.0  # seconds; less where a request may take less
_FAILURE_LASTS = 5.0  # seconds in which a server that did not answer is not asked again


class RemoteServer:
    """The models behind an address. It is asked what it serves once, before the first request.

    Args:
        base_url: The address, with the path that requests share (`/v1`).
        model: What the server calls the model, or the folder that it serves.
        adapter: The folder of the LoRA adapter that the server has loaded, if one is wanted.
        options: The variable of its key, and how long a request may take.
    """

    def __init__(self, base_url: str, model: str, adapter: Path | None, options: ServerOptions) -> None:
        self.base_url = base_url
        self._model, self._adapter, self._api_key_env = model, adapter, options.api_key_env
        self._timeout = min(_LIST_TIMEOUT, options.request_timeout)
        self._lock = threading.Lock()
        self._endpoint: Endpoint | None = None
        self._failure: DspycError | None = None
        self._failed_at = 0.0
        self.kind: ServerKind | None = None

    @property
    def pid(self) -> None:
        """No process of this program's."""
        return None

    def enter(self, adapter: Adapter | None = None) -> Endpoint | None:
        """Where to send a request; None before `prepare`."""
        return self._endpoint

    def leave(self) -> None:
        """Nothing: nobody waits for this server's requests."""

    def death(self, within: float = 0) -> None:
        """None: it is not this program's to watch."""
        return

    def close(self) -> None:
        """Ask anew what is served before the next request. The server itself goes on."""
        self._endpoint = self._failure = None

    def prepare(self, adapter: Adapter | None = None) -> None:
        """Ask the server what it serves.

        Raises:
            ModelError: It does not answer, or does not serve the model or the adapter.
            ConfigError: The variable of its key is not set.
        """
        with self._lock:
            if self._endpoint is not None:
                return
            if self._failure is not None and time.monotonic() - self._failed_at < _FAILURE_LASTS:
                raise copy(self._failure)
            try:
                self._endpoint = self._found(self._listed())
            except DspycError as error:
                self._failure, self._failed_at = error, time.monotonic()
                raise

    def _listed(self) -> list[dict[str, Any]]:
        key = api_key(self._api_key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with httpx.Client(trust_env=not is_loopback(self.base_url)) as client:
                answer = client.get(f"{self.base_url}/models", headers=headers, timeout=self._timeout)
        except httpx.HTTPError as error:
            reason = type(error).__name__
        else:
            if answer.status_code == 404:
                return []
            if answer.status_code == 200:
                return _entries(answer)
            reason = f"status {answer.status_code}"
        raise ModelError(
            f"The server at {self.base_url} does not say what it serves ({reason}).",
            hint="Start it, or correct the address; a server with a key needs server_options={'api_key_env': …}.",
        )

    def _found(self, listed: list[dict[str, Any]]) -> Endpoint:
        if not listed:
            return Endpoint(self.base_url, self._adapter.name if self._adapter else self._model)
        self.kind = KINDS.get(str(listed[0].get("owned_by")))
        base = _match(listed, self._model, Path(self._model).name)
        bases = [entry for entry in listed if not entry.get("parent")]
        if base is None and Path(self._model).is_dir() and len(bases) == 1:
            base = bases[0]
        if base is None:
            raise self._unknown(f"model {self._model!r}", listed)
        length = base.get("max_model_len")
        limit = length if isinstance(length, int) else None
        if self._adapter is None:
            return Endpoint(self.base_url, str(base["id"]), max_length=limit)
        worn = _match(listed, str(self._adapter), self._adapter.name)
        if worn is None:
            raise self._unknown(f"adapter {str(self._adapter)!r}", listed)
        return Endpoint(self.base_url, str(base["id"]), max_length=limit).wearing(self.kind, str(worn["id"]))

    def _unknown(self, what: str, listed: list[dict[str, Any]]) -> ModelError:
        names = ", ".join(repr(entry.get("id")) for entry in listed[:10])
        return ModelError(
            f"The server at {self.base_url} does not serve the {what}; it serves {names}.",
            hint="Pass one of these as the model, or start the server with what is missing.",
        )


def _entries(answer: httpx.Response) -> list[dict[str, Any]]:
    try:
        data = answer.json()["data"]
    except (ValueError, KeyError, TypeError):
        return []
    return [entry for entry in data if isinstance(entry, dict) and entry.get("id")]


def _match(listed: list[dict[str, Any]], *names: str) -> dict[str, Any] | None:
    """The model that is called so, or was loaded from there."""
    for name in names:
        for key in ("id", "root"):
            for entry in listed:
                if entry.get(key) == name:
                    return entry
    return None
