"""The SDK's clients, one for threads and one for each event loop, that send what we say and nothing of the environment."""

import asyncio
import os
import weakref
from functools import cached_property
from typing import Any

import httpx
import openai

from ...errors import ConfigError

_CONNECT_TIMEOUT = 5.0  # seconds
_KEEPALIVE = 2.0  # seconds; servers close idle connections after five, and must not do so under a request
_HEADERS = {"accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host"}
_NOWHERE = "http://127.0.0.1:9/v1"  # a server's address is known when it runs


class Clients:
    """The `openai` SDK's clients for one engine.

    The SDK reads OPENAI_API_KEY, its organisation and further headers from the environment, and httpx reads proxies: none
    of them is meant for a server of one's own. Retries are DSPy's.

    Args:
        api_key_env: The environment variable that holds the server's key. It is read whenever a request is sent.
        timeout: Seconds that one request may take.
        loopback: The server is on this machine, and no proxy stands before it.
    """

    def __init__(self, api_key_env: str | None, timeout: float, *, loopback: bool) -> None:
        self._api_key_env, self._timeout, self._loopback = api_key_env, timeout, loopback
        self._of_loop: weakref.WeakKeyDictionary[Any, openai.AsyncOpenAI] = weakref.WeakKeyDictionary()

    def sync_to(self, base_url: str) -> openai.OpenAI:
        """The client for threads, for requests to `base_url`."""
        return self._sync.with_options(base_url=base_url)

    def async_to(self, base_url: str) -> openai.AsyncOpenAI:
        """The running event loop's client: connections cannot change loops."""
        loop = asyncio.get_running_loop()
        client = self._of_loop.get(loop)
        if client is None:
            client = self._of_loop[loop] = self._async()
        return client.with_options(base_url=base_url)

    async def aclose(self) -> None:
        """Close the running event loop's connections."""
        client = self._of_loop.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    @cached_property
    def _sync(self) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(event_hooks={"request": [self._only_ours]}, **self._transport())
        return openai.OpenAI(http_client=http, **self._settings())

    def _async(self) -> openai.AsyncOpenAI:
        async def only_ours(request: httpx.Request) -> None:
            self._only_ours(request)

        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [only_ours]}, **self._transport())
        return openai.AsyncOpenAI(http_client=http, **self._settings())

    def _transport(self) -> dict[str, Any]:
        limits = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=_KEEPALIVE)
        return {"trust_env": not self._loopback, "limits": limits, "follow_redirects": False}

    def _settings(self) -> dict[str, Any]:
        timeout = httpx.Timeout(self._timeout, connect=_CONNECT_TIMEOUT)
        return {"api_key": "none", "base_url": _NOWHERE, "timeout": timeout, "max_retries": 0}

    def _only_ours(self, request: httpx.Request) -> None:
        for name in [name for name in request.headers if name.lower() not in _HEADERS]:
            del request.headers[name]
        key = key_now(self._api_key_env)
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        else:
            request.headers.pop("Authorization", None)


def key_now(variable: str | None) -> str | None:
    """The key in an environment variable, read now; None where there is none."""
    return os.environ.get(variable) if variable is not None else None


def api_key(variable: str | None) -> str | None:
    """The key in an environment variable, read now.

    Raises:
        ConfigError: The variable is not set.
    """
    key = key_now(variable)
    if variable is not None and not key:
        raise ConfigError(f"The environment variable {variable}, which holds the server's key, is not set.")
    return key


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine, where no proxy belongs in between."""
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
