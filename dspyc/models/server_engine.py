"""The engine behind a language model on a server: DSPy's engine contract over the chat-completions protocol.

    engine = ServerEngine("Qwen/Qwen3-0.6B", adapter="runs/triage/adapter", server="vllm")
    lm = dspy.LM(engine.model_string, engine=engine, async_engine=AsyncServerEngine(engine))

The server is a child process that starts at the first request (`engine.start()` starts it ahead) and ends with this
program, or one that runs already, at an address. The model string names the content of the weights.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
from dspy import lm15
from dspy.clients.engines.base import validate_request

from ..errors import ConfigError, DspycError, ModelError
from . import weights
from .chat_completions import StreamReader, Tokens, body_of, canonical_error, response_of
from .messages import Message, messages_of
from .remote_server import RemoteServer
from .server_client import Clients, api_key, is_loopback
from .server_commands import KINDS, Adapter, ServerKind, check_arguments, program_of
from .server_options import ServerOptions, address_of
from .servers import Endpoint, Server, ServerSettings, shared

if TYPE_CHECKING:
    from .chat import ChatTokenizer

DEFAULT_MAX_TOKENS = 1024
_FAILURES = (openai.OpenAIError, httpx.HTTPError, ValueError)


class ServerEngine:
    """A causal language model on a server of its own, or on one that runs already.

    Engines over the same base with the same settings share one child process, whatever their adapters. Any number of
    threads may call `complete`.

    Args:
        model: A folder, a Hugging Face id, or "dspyc/tiny"; with an address, also what that server calls the model.
        adapter: A folder with a PEFT LoRA adapter for that model.
        server: "vllm", "sglang", "transformers", or an address such as "http://127.0.0.1:8000".
        device: "auto", "cpu", "cuda", "cuda:1" or "mps"; "auto" is the server's own choice.
        dtype: "auto" (the server's own choice, mostly that of the weights), "bfloat16", "float16" or "float32".
        options: See `ServerOptions`.

    Raises:
        ConfigError: The server's program is not installed, or a setting cannot be used.
        ModelError: The files cannot be found or read.
    """

    modalities = frozenset({"text"})
    supports_reasoning = False

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        *,
        server: str,
        device: str = "auto",
        dtype: str = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.options = ServerOptions.of(options)
        self.address = address_of(server)
        self.server, self.device, self.dtype = server, device, dtype
        _check_settings(self)
        is_folder = str(model) != weights.TINY and Path(model).expanduser().is_dir()
        self.path = weights.resolve(model) if self.address is None or is_folder or str(model) == weights.TINY else None
        self.adapter = weights.resolve(Path(adapter)) if adapter is not None else None
        if self.path is not None:
            weights.check(self.path, self.adapter)
        self.model = str(self.path) if is_folder else str(model)
        self.max_length = weights.context_length(self.path) if self.path is not None else None
        self.identity = _identity(self)
        name = self.model.rstrip("/").rsplit("/", 1)[-1]
        worn = f"+{self.adapter.name}" if self.adapter else ""
        kind = "server" if self.address else server
        self.model_string = f"{kind}/{name}{worn}@{self.identity}{_settings_mark(self)}"
        self._worn = _worn(self.path, self.adapter) if self.adapter is not None and self.address is None else None
        self._server: Server | RemoteServer = self._remote() if self.address else self._child(name)
        self._calls = 0
        self._lock = threading.Lock()
        key_env, timeout = self.options.api_key_env, self.options.request_timeout
        self._clients = Clients(key_env, timeout, loopback=self.address is None or is_loopback(self.address))

    @property
    def calls(self) -> int:
        """Requests that the server has answered; answers from DSPy's cache are none."""
        return self._calls

    @property
    def pid(self) -> int | None:
        """The process group of the server that this program started; None while none runs."""
        return self._server.pid

    @cached_property
    def chat(self) -> "ChatTokenizer | None":
        """The tokenizer that writes this engine's prompts, where the model's folder is here."""
        if self.path is None:
            return None
        from .chat import ChatTokenizer

        return ChatTokenizer(weights.load_tokenizer(self.path))

    @property
    def supports_function_calling(self) -> bool:
        if self.path is None or self.address is not None:
            return False
        template = _template(self.path)
        has_parser = "<tool_call>" in template or any("--tool-call-parser" in a for a in self.options.args)
        return "tools" in template and (self.server != "vllm" or has_parser)

    @property
    def supports_response_schema(self) -> bool:
        kind = self._kind()
        return kind is not None and kind.takes_schemas

    @property
    def supported_params(self) -> set[str]:
        kind = self._kind()
        found = {"temperature", "max_tokens", "top_p", "top_k", "seed", "stop"}
        if kind is None or kind.takes_logprobs:
            found |= {"frequency_penalty", "presence_penalty", "logprobs"}
        if self.supports_response_schema:
            found.add("response_format")
        return found | ({"tools", "tool_choice"} if self.supports_function_calling else set())

    def start(self) -> None:
        """Start the server now, and wait until it is healthy; the first request does so otherwise.

        Raises:
            ModelError: It does not start; the message has the tail of its log.
        """
        if self._server.enter(self._worn) is None:
            self._server.prepare(self._worn)
        else:
            self._server.leave()

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request.

        Raises:
            dspy.lm15.ContextLengthError: The prompt does not fit the model.
            dspy.lm15.UnsupportedModelError: `request.model` is not this engine's.
            dspy.lm15.UnsupportedFeatureError: The request asks for what the server does not do.
            dspy.lm15.ConfigurationError: The server does not start, or the weights cannot be used.
            dspy.lm15.TransportError: The server died, or cannot be reached.
            dspy.lm15.TimeoutError: It gave no answer in time.
            dspy.lm15.ProviderError: It refused or failed; its subclasses say how.
        """
        draft = self._draft(request)
        endpoint = self._enter()
        try:
            client = self._clients.sync_to(endpoint.base_url)
            raw = client.chat.completions.create(**self._body(draft, endpoint))
            return self._counted(response_of(raw, request))
        except _FAILURES as error:
            failure = self._failure(error)
        finally:
            self._server.leave()
        raise failure  # outside of the handler, so that the SDK's error and its headers are not chained to it

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """The answer as stream events, as the server sends them. Closing the iterator cancels the request."""
        if self._is_sent_whole(request):
            yield from lm15.response_to_events(self.complete(request))
            return
        draft = self._draft(request)
        endpoint = self._enter()
        reader = StreamReader(request)
        failure: Exception | None = None
        try:
            client = self._clients.sync_to(endpoint.base_url)
            with client.chat.completions.create(**self._body(draft, endpoint), **self._streaming()) as chunks:
                for chunk in chunks:
                    yield from reader.feed(chunk)
        except _FAILURES as error:
            failure = self._failure(error)
        finally:
            self._server.leave()
        if failure is not None:
            raise failure
        yield self._ended(reader)

    def close(self) -> None:
        """End the server that this program started. Engines that share it start it again when they are next asked."""
        self._server.close()

    def serving(self, model_string: str) -> "ServerEngine":
        """This engine, where the string is its own.

        Raises:
            dspy.lm15.UnsupportedModelError: The string is another engine's.
        """
        if model_string != self.model_string:
            raise lm15.UnsupportedModelError(f"{self.model_string} does not serve {model_string!r}.")
        return self

    def dump_state(self) -> dict[str, Any]:
        """What `load_state` needs, as JSON: the weights, what they were, and the server's settings. No key."""
        return {
            "model": self.model,
            "adapter": str(self.adapter) if self.adapter else None,
            "server": self.server,
            "device": self.device,
            "dtype": self.dtype,
            "options": self.options.to_dict(),
            "identity": self.identity,
        }

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "ServerEngine":
        """The engine that `dump_state` described. Its server starts at the first request.

        Raises:
            ModelError: The weights are gone, or are not the ones that were saved.
        """
        engine = cls(
            state["model"],
            state.get("adapter"),
            server=state["server"],
            device=state["device"],
            dtype=state["dtype"],
            options=state["options"],
        )
        if engine.identity != state["identity"]:
            raise ModelError(
                f"The weights of {state['model']!r} changed since this was saved: {state['identity']} then, "
                f"{engine.identity} now.",
                hint="Restore them, or make the LM anew with dspyc.LocalLM to use what is there now.",
            )
        return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> "ServerEngine":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return ServerEngine.load_state, (self.dump_state(),)

    def __repr__(self) -> str:
        return f"ServerEngine({self.model_string!r})"

    def _remote(self) -> RemoteServer:
        assert self.address is not None
        return RemoteServer(self.address, self.model, self.adapter, self.options.api_key_env)

    def _child(self, name: str) -> Server:
        kind, options = KINDS[self.server], self.options
        if self.adapter is not None and not kind.takes_adapters:
            raise ConfigError(
                f"The {kind.name} server takes no adapters.",
                hint="Merge it into its base (dspyc train --merge) and serve that folder, or use server='vllm'.",
            )
        check_arguments(kind, self.device, options.args)
        served = name if kind.lists_served_name else str(self.path)
        settings = ServerSettings(
            kind,
            program_of(kind, options.program),
            str(self.path),
            served,
            self.device,
            self.dtype,
            options.args,
            "<tool_call>" in _template(self.path) if self.path else False,
            options.start_timeout,
            options.request_timeout,
        )
        return shared(settings)

    def _kind(self) -> ServerKind | None:
        """The kind of server; one at an address is asked, and None where it does not say."""
        if isinstance(self._server, Server):
            return self._server.settings.kind
        if self._server.enter() is None:
            try:
                self._server.prepare()
            except DspycError:
                return None  # the request itself will say what is wrong
        return self._server.kind

    @cached_property
    def _tokens(self) -> Tokens:
        if self.chat is None:
            return Tokens()
        pad: Any = self.chat.tokenizer.pad_token_id
        return Tokens(tuple(sorted(self.chat.stop_ids)), pad if isinstance(pad, int) else None)

    def _draft(self, request: lm15.Request) -> "_Draft":
        self.serving(request.model)
        with _canonical():
            validate_request(request)
            self._refuse_unsupported(request)
            messages, tools = messages_of(request)
            choice = request.config.tool_choice
            unused = choice is not None and choice.mode == "none"
            return _Draft(request, [_plain(m) for m in messages], [] if unused else tools, self._tokens)

    def _refuse_unsupported(self, request: lm15.Request) -> None:
        config, kind = request.config, self._kind()
        names = ["reasoning", "probabilities"]
        if kind is not None and not kind.takes_schemas:
            names += ["response_format", "logprobs", "frequency_penalty", "presence_penalty", "extensions"]
        asked = [name for name in names if getattr(config, name) or getattr(config, name) == 0]
        if kind is not None and not kind.takes_schemas and config.tool_choice and config.tool_choice.mode == "required":
            asked.append("tool_choice='required'")
        if asked:
            raise lm15.UnsupportedFeatureError(
                f"{self.model_string} does not take {', '.join(asked)}; leave it out.", feature=asked[0]
            )

    def _enter(self) -> Endpoint:
        """Where to send the request, once the server is there."""
        while (endpoint := self._server.enter(self._worn)) is None:
            with _canonical():
                self._server.prepare(self._worn)
        return endpoint

    async def _aenter(self) -> Endpoint:
        while (endpoint := self._server.enter(self._worn)) is None:
            with _canonical():
                await asyncio.to_thread(self._server.prepare, self._worn)
        return endpoint

    def _body(self, draft: "_Draft", endpoint: Endpoint) -> dict[str, Any]:
        body = body_of(
            draft.request,
            draft.messages,
            draft.tools,
            kind=self._kind(),
            max_tokens=self._room(draft, endpoint),
            tokens=draft.tokens,
        )
        return {**body, "model": endpoint.model, "extra_body": {**body["extra_body"], **endpoint.extra}}

    def _room(self, draft: "_Draft", endpoint: Endpoint) -> int:
        """The tokens that the reply may have: what was asked for, and no more than the context leaves.

        Only a prompt that could be too long is counted; a token has a byte at least.
        """
        asked = draft.request.config.max_tokens or DEFAULT_MAX_TOKENS
        limit = min((n for n in (self.max_length, endpoint.max_length) if n is not None), default=None)
        if limit is None or self.chat is None or draft.longest + asked <= limit:
            return asked
        with _canonical():
            prompt = len(self.chat.prompt_ids(draft.messages, draft.tools))
        if prompt >= limit:
            raise lm15.ContextLengthError(
                f"The prompt has {prompt} tokens and {self.model_string} holds {limit}, the reply included. "
                "Shorten the inputs, use fewer demos, or take a model with a longer context."
            )
        return min(asked, limit - prompt)

    def _streaming(self) -> dict[str, Any]:
        usage = {} if self.server == "transformers" else {"stream_options": {"include_usage": True}}
        return {"stream": True, **usage}

    def _is_sent_whole(self, request: lm15.Request) -> bool:
        """Whether an answer has to be read as a whole: tool calls in the text, stop strings that the server lets pass."""
        kind = self._kind()
        return bool(request.tools) or bool(request.config.stop and kind is not None and not kind.takes_stop)

    def _ended(self, reader: StreamReader) -> Any:
        if reader.broken:
            raise self._failure(openai.APIConnectionError(request=httpx.Request("POST", "http://127.0.0.1")))
        self._counted(None)
        return reader.end()

    def _counted(self, response: Any) -> Any:
        with self._lock:
            self._calls += 1
        return response

    def _failure(self, error: Exception) -> Exception:
        gone = not isinstance(error, (openai.APIStatusError, openai.APITimeoutError))
        death = self._server.death(1.0) if gone else None
        key = api_key(self.options.api_key_env)
        return canonical_error(error, timeout=self.options.request_timeout, death=death, secrets=[key] if key else [])


class AsyncServerEngine:
    """The async counterpart of a `ServerEngine`: the same server, awaited. Cancelling a task cancels its request."""

    modalities = ServerEngine.modalities

    def __init__(self, engine: ServerEngine) -> None:
        self.engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """As `ServerEngine.complete`."""
        engine = self.engine
        draft = await asyncio.to_thread(engine._draft, request)  # the first one loads the tokenizer
        endpoint = await engine._aenter()
        try:
            client = engine._clients.async_to(endpoint.base_url)
            raw = await client.chat.completions.create(**engine._body(draft, endpoint))
            return engine._counted(response_of(raw, request))
        except _FAILURES as error:
            failure = await asyncio.to_thread(engine._failure, error)
        finally:
            engine._server.leave()
        raise failure

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        """As `ServerEngine.stream`."""
        engine = self.engine
        if await asyncio.to_thread(engine._is_sent_whole, request):
            for event in lm15.response_to_events(await self.complete(request)):
                yield event
            return
        draft = await asyncio.to_thread(engine._draft, request)
        endpoint = await engine._aenter()
        reader = StreamReader(request)
        failure: Exception | None = None
        try:
            client = engine._clients.async_to(endpoint.base_url)
            body = engine._body(draft, endpoint)
            async with await client.chat.completions.create(**body, **engine._streaming()) as chunks:
                async for chunk in chunks:
                    for event in reader.feed(chunk):
                        yield event
        except _FAILURES as error:
            failure = await asyncio.to_thread(engine._failure, error)
        finally:
            engine._server.leave()
        if failure is not None:
            raise failure
        yield await asyncio.to_thread(engine._ended, reader)

    async def aclose(self) -> None:
        """As `ServerEngine.close`, and this event loop's connections with it."""
        await self.engine._clients.aclose()
        await asyncio.to_thread(self.engine.close)

    def dump_state(self) -> dict[str, Any]:
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "AsyncServerEngine":
        return cls(ServerEngine.load_state(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> "AsyncServerEngine":
        return self


@dataclass(frozen=True)
class _Draft:
    """A request that has passed all checks that need no server."""

    request: lm15.Request
    messages: list[Message]
    tools: list[dict[str, Any]]
    tokens: Tokens

    @property
    def longest(self) -> int:
        """More tokens than the prompt can have: its bytes, and what a template may write around it."""
        turns = sum(len(str(message).encode()) + 64 for message in self.messages)
        return turns + len(str(self.tools).encode()) + 1024


def _check_settings(engine: ServerEngine) -> None:
    if engine.dtype not in weights.DTYPES:
        raise ConfigError(f"There is no dtype {engine.dtype!r}.", hint=f"Use one of {', '.join(weights.DTYPES)}.")
    if engine.address is None:
        if engine.options.api_key_env is not None:
            raise ConfigError("server_options['api_key_env'] belongs to the address of a server that runs already.")
        return
    given = [name for name in ("device", "dtype") if getattr(engine, name) != "auto"]
    given += [f"server_options[{name!r}]" for name in ("args", "program") if getattr(engine.options, name)]
    if given:
        raise ConfigError(
            f"{', '.join(given)} cannot be set for a server that runs already.", hint="Start it with what it needs."
        )


def _identity(engine: ServerEngine) -> str:
    """Of the weights, where they are here; else of the address and the names, which is all that is known."""
    if engine.path is not None:
        return weights.identity(engine.path, engine.adapter)
    adapter = weights.identity(engine.adapter) if engine.adapter is not None else ""
    return sha256(f"{engine.address}\0{engine.model}\0{adapter}".encode()).hexdigest()[:12]


def _settings_mark(engine: ServerEngine) -> str:
    """What else decides an answer: a dtype or arguments (a quantization, say) that were chosen."""
    chosen = [engine.dtype, *engine.options.args]
    return "" if chosen == ["auto"] else "." + sha256("\0".join(chosen).encode()).hexdigest()[:6]


def _worn(path: Path | None, adapter: Path) -> Adapter:
    import json

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([int(config.get("r", 8)), *map(int, (config.get("rank_pattern") or {}).values())])
    return Adapter(f"{adapter.name}-{weights.identity(adapter)}", str(adapter), rank)


def _template(path: Path) -> str:
    """The chat template's text; empty where the folder has none."""
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        file = path / name
        if file.is_file() and (
            name != "tokenizer_config.json" or '"chat_template"' in file.read_text(encoding="utf-8")
        ):
            return file.read_text(encoding="utf-8")
    return ""


def _plain(message: Message) -> Message:
    """A message whose content is one text.

    Raises:
        dspy.lm15.UnsupportedFeatureError: It holds images or other media.
    """
    content = message.get("content")
    if not isinstance(content, list):
        return message
    for part in content:
        if part.get("type") != "text":
            raise lm15.UnsupportedFeatureError(
                f"A {message.get('role')} message holds {part.get('type')!r}, and a text model takes text only.",
                feature=str(part.get("type")),
            )
    return {**message, "content": "".join(part["text"] for part in content)}


@contextmanager
def _canonical() -> Iterator[None]:
    """Our own errors, as the one that DSPy asks of an engine for what a retry does not change."""
    try:
        yield
    except DspycError as error:
        raise lm15.ConfigurationError(str(error)) from error
