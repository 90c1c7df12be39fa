"""Model servers: one child process for one base model and all its adapters, or a server that runs already.

    server = shared(ServerSettings(VLLM, "/usr/bin/vllm", Launch("/models/Qwen3-0.6B", "Qwen3-0.6B")))
    endpoint = server.enter(adapter)                       # None until `server.prepare(adapter)` has started it
    ...                                                    # requests to endpoint.base_url
    server.leave()

A child is started when it is first needed, restarted when it died, and ended with this program.
"""

import atexit
import os
import socket
import threading
import time
import weakref
from collections import deque
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from ...child_process import ChildProcess
from ...errors import DspycError, ModelError
from ...progress import bar
from .commands import LOOPBACK, SGLANG, Adapter, Launch, ServerKind, command, environment, highest_rank

_POLL = 0.1  # seconds between two questions for health
_PORT_TRIES = 3
_MOST_DEATHS = 3  # within _DEATHS_WINDOW; then the server stays down
_DEATHS_WINDOW = 600.0  # seconds
_FAILURE_LASTS = 30.0  # seconds in which a start that failed is not tried again
_TAKEN = ("address already in use", "address in use", "errno 98", "errno 48")


@dataclass(frozen=True)
class ServerSettings:
    """What makes two servers the same one."""

    kind: ServerKind
    program: str
    launch: Launch
    start_timeout: float = 600.0  # seconds until the server has to be healthy
    request_timeout: float = field(default=600.0, compare=False)  # seconds that a restart waits for running requests


@dataclass(frozen=True)
class Endpoint:
    """Where a request goes, and what it calls the model."""

    base_url: str
    model: str
    extra: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None

    def wearing(self, kind: ServerKind | None, adapter: str) -> "Endpoint":
        """The same model with an adapter, by the server's name for it."""
        if kind is SGLANG:
            return replace(self, extra={"lora_path": adapter})
        return replace(self, model=adapter)


class Server:
    """A server in a child process. Safe to share between threads.

    Adapters join a server that runs, where it takes them; where it was started without, or with room for smaller ones
    only, it is started anew once its running requests are over.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._process: ChildProcess | None = None
        self._endpoint: Endpoint | None = None
        self._adapters: dict[str, Adapter] = {}
        self._rank = 0  # the highest that the running server has room for; 0 without adapters
        self._deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
        self._changed = threading.Condition()
        self._busy = False  # someone starts, restarts or loads; all others wait
        self._draining = False
        self._rounds = 0
        self._failure: DspycError | None = None
        self._failed_at = -_FAILURE_LASTS
        self._running = 0  # requests between `enter` and `leave`

    @property
    def pid(self) -> int | None:
        """The process group of the child; None where none runs."""
        process = self._process
        return process.pid if process is not None and process.alive else None

    def enter(self, adapter: Adapter | None = None) -> Endpoint | None:
        """Where to send a request now; None where `prepare` has to come first. Never blocks. `leave` follows."""
        with self._changed:
            if self._draining or not self._ready(adapter) or self._endpoint is None:
                return None
            self._running += 1
            endpoint = self._endpoint
            return endpoint if adapter is None else endpoint.wearing(self.settings.kind, adapter.name)

    def leave(self) -> None:
        """A request is over, however it ended."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def prepare(self, adapter: Adapter | None = None) -> None:
        """Have the server run and know the adapter. One thread does the work; others wait, and share its error.

        Raises:
            ModelError: It does not start, does not become healthy, dies again and again, or refuses the adapter.
        """
        with self._changed:
            if self._busy:
                seen = self._rounds
                self._changed.wait_for(lambda: self._rounds != seen)
                if self._failure is not None:
                    raise copy(self._failure)
                return  # the caller looks again
            if self._failure is not None and time.monotonic() - self._failed_at < _FAILURE_LASTS:
                raise copy(self._failure)
            self._busy = True
        failure: DspycError | None = None
        try:
            self._make_ready(adapter)
        except DspycError as error:
            failure = error
            raise
        finally:
            with self._changed:
                self._busy = self._draining = False
                self._failure, self._failed_at = failure, time.monotonic()
                self._rounds += 1
                self._changed.notify_all()

    def death(self, within: float = 1.0) -> str | None:
        """What the server last wrote, where it is dead or dies `within` seconds; None where it lives on."""
        process = self._process
        if process is None or not process.ended_within(within):
            return None
        return process.tail() or "(it wrote nothing)"

    def close(self) -> None:
        """End the child. The next request starts it again."""
        with self._changed:
            process, self._process, self._endpoint = self._process, None, None
            self._deaths.clear()
            self._failure = None
        if process is not None:
            process.stop()

    def _ready(self, adapter: Adapter | None) -> bool:
        known = adapter is None or adapter.name in self._adapters
        return known and self._process is not None and self._process.alive

    def _make_ready(self, adapter: Adapter | None) -> None:
        if self._ready(adapter):
            return
        process = self._process
        if process is not None and process.alive and adapter is not None:
            if 0 < adapter.rank <= self._rank:
                self._load(adapter)
                return
            self._drain()
            process.stop()
        elif process is not None:
            self._count_death(process)
        self._endpoint = None
        there = {name: known for name, known in self._adapters.items() if Path(known.path).is_dir()}
        wanted = there | ({adapter.name: adapter} if adapter is not None else {})
        self._start(tuple(wanted.values()))
        self._adapters = wanted

    def _drain(self) -> None:
        """Wait until no request runs, as long as one may take at most."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: self._running == 0, timeout=self.settings.request_timeout)

    def _count_death(self, process: ChildProcess) -> None:
        now = time.monotonic()
        if self._endpoint is not None:
            self._deaths.append(now)
            self._endpoint = None
        if len(self._deaths) == _MOST_DEATHS and now - self._deaths[0] < _DEATHS_WINDOW:
            raise ModelError(
                f"The {self.settings.kind.name} server for {self.settings.launch.name} died {_MOST_DEATHS} times within "
                f"{_DEATHS_WINDOW / 60:.0f} minutes and is not started again. It last wrote:\n{process.tail()}\n",
                hint="Find the request that ends it; lm.engine.close() lets it start again.",
            )

    def _start(self, adapters: tuple[Adapter, ...]) -> None:
        for attempt in range(1, _PORT_TRIES + 1):
            launch = replace(self.settings.launch, port=_free_port(), adapters=adapters)
            kind = self.settings.kind
            process = ChildProcess(command(kind, self.settings.program, launch), environment(kind, launch, os.environ))
            self._process = process
            try:
                listed = self._await_health(process, launch.port)
            except _PortTakenError:
                if attempt == _PORT_TRIES:
                    raise self._start_failure(process, "found its port taken, three times over") from None
                continue
            except BaseException:
                self._process = None
                process.stop()
                raise
            self._rank = highest_rank(kind, adapters) if adapters else 0
            self._endpoint = Endpoint(_url(launch.port) + "/v1", launch.name, max_length=_max_length(listed))
            return

    def _await_health(self, process: ChildProcess, port: int) -> list[dict[str, Any]]:
        """The models that the server lists once it is healthy."""
        limit = self.settings.start_timeout
        began = shown = time.monotonic()
        title = f"Starting {self.settings.kind.name} for {self.settings.launch.name} (seconds)"
        with bar(title, int(limit)) as advance, _client() as client:
            while (now := time.monotonic()) - began < limit:
                if process.ended_within(_POLL):
                    if any(sign in process.tail().lower() for sign in _TAKEN):
                        raise _PortTakenError
                    raise self._start_failure(process, f"ended after {now - began:.0f} s, before it was healthy")
                listed = self._listed(client, port)
                if listed is not None:
                    return listed
                if now - shown >= 1:
                    advance(int(now - shown), process.tail(1)[:80])
                    shown += int(now - shown)
        raise self._start_failure(process, f"was not healthy after {limit:g} s")

    def _listed(self, client: httpx.Client, port: int) -> list[dict[str, Any]] | None:
        """What a healthy server lists; None while it is not healthy, or where a stranger has the port."""
        try:
            if client.get(_url(port) + "/health", timeout=5).status_code != 200:
                return None
            if not self.settings.kind.full:
                return []
            found = client.get(_url(port) + "/v1/models", timeout=5).json()["data"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None
        return found if any(entry.get("id") == self.settings.launch.name for entry in found) else None

    def _start_failure(self, process: ChildProcess, what: str) -> ModelError:
        words = process.tail() or "(nothing)"
        process.stop()
        return ModelError(
            f"The {self.settings.kind.name} server for {self.settings.launch.name} {what}. It last wrote:\n{words}\n",
            hint="Its own words say why; server_options={'start_timeout': seconds} gives it longer, 'args' its settings.",
        )

    def _load(self, adapter: Adapter) -> None:
        """Have a running server load one more adapter."""
        assert self._endpoint is not None
        url = self._endpoint.base_url.removesuffix("/v1") + self.settings.kind.load_adapter_path
        body = {"lora_name": adapter.name, "lora_path": adapter.path}
        try:
            with _client() as client:
                answer = client.post(url, json=body, timeout=self.settings.start_timeout)
        except httpx.HTTPError as error:
            raise ModelError(
                f"The server did not load the adapter in {adapter.path}: {type(error).__name__}."
            ) from None
        if answer.status_code != 200:
            raise ModelError(
                f"The {self.settings.kind.name} server refused the adapter in {adapter.path}: {answer.text[:500]}"
            )
        self._adapters = {**self._adapters, adapter.name: adapter}


class _PortTakenError(Exception):
    """Another program took the port between the search for a free one and the server's own start."""


_servers: "weakref.WeakValueDictionary[ServerSettings, Server]" = weakref.WeakValueDictionary()
_servers_lock = threading.Lock()


def shared(settings: ServerSettings) -> Server:
    """The server of these settings: the same one for all who ask."""
    with _servers_lock:
        found = _servers.get(settings)
        if found is None:
            found = _servers[settings] = Server(settings)
        return found


@atexit.register
def _end_all() -> None:
    for server in list(_servers.values()):
        server.close()


def _max_length(listed: list[dict[str, Any]]) -> int | None:
    return next((n for entry in listed if isinstance(n := entry.get("max_model_len"), int)), None)


def _client() -> httpx.Client:
    """A client that asks the server itself, whatever proxy this environment names."""
    return httpx.Client(trust_env=False)


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
