"""The engine behind a language model on a server: DSPy's engine contract over the chat-completions protocol.

    engine = ServerEngine("Qwen/Qwen3-0.6B", adapter="runs/triage/adapter", server="vllm")
    lm = dspy.LM(engine.model_string, engine=engine, async_engine=AsyncServerEngine(engine))

The server is a child process that starts at the first request (`engine.start()` starts it ahead) and ends with this
program, or one that runs already, at an address. The model string names the content of the weights.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
from dspy import lm15
from dspy.clients.engines.base import validate_request

from ...errors import DspycError
from .. import weights
from ..limits import DEFAULT_MAX_TOKENS, room
from ..messages import Message, messages_of
from ..opening import Opening
from .chat_completions import StreamReader, Tokens, body_of, canonical_error, response_of
from .client import Clients, is_loopback, key_now
from .commands import ServerKind
from .served_model import ServedModel
from .server import Endpoint, Server

if TYPE_CHECKING:
    from ..chat import ChatTokenizer

FAILURES = (openai.OpenAIError, httpx.HTTPError, ValueError)


class ServerEngine:
    """A causal language model on a server of its own, or on one that runs already.

    Engines over the same base with the same settings share one child process, whatever their adapters. Any number of
    threads may call `complete`.

    Args:
        model: A folder, a Hugging Face id, or "dspyc/tiny"; with an address, also what that server calls the model.
        adapter: A folder with a PEFT LoRA adapter for that model.
        server: "vllm", "sglang", "transformers", or an address such as "http://127.0.0.1:8000".
        device: "auto", "cpu", "cuda", "cuda:1" or "mps"; "auto" is the server's own choice.
        dtype: "auto" (the server's own choice, usually that of the weights), "bfloat16", "float16" or "float32".
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
        self.served = ServedModel.of(model, adapter, server, device, dtype, options)
        self.model, self.path, self.adapter = self.served.model, self.served.path, self.served.adapter
        self.identity, self.model_string = self.served.identity, self.served.model_string
        self.server = self.served.backend()
        known, address = self.served.options, self.served.address
        self.clients = Clients(
            known.api_key_env, known.request_timeout, loopback=address is None or is_loopback(address)
        )
        self._worn = self.served.worn
        self._calls = 0
        self._chat: ChatTokenizer | None = None
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """Requests that the server has answered; answers from DSPy's cache do not count."""
        return self._calls

    @property
    def is_here(self) -> bool:
        """Whether the server is a child of this program. At an address there may be anything, a paid provider's proxy too."""
        return self.served.address is None

    @property
    def pid(self) -> int | None:
        """The process group of the server that this program started; None while none runs."""
        return self.server.pid

    @property
    def chat(self) -> "ChatTokenizer | None":
        """The tokenizer that writes this engine's prompts, where the model's folder is here."""
        with self._lock:
            if self._chat is None and self.path is not None:
                from ..chat import ChatTokenizer

                self._chat = ChatTokenizer(weights.load_tokenizer(self.path))
            return self._chat

    @property
    def supports_function_calling(self) -> bool:
        return self.served.takes_tools

    @property
    def supports_response_schema(self) -> bool:
        kind = self._kind()
        return kind is not None and kind.full

    @property
    def supported_params(self) -> set[str]:
        kind = self._kind()
        found = {"temperature", "max_tokens", "top_p", "top_k", "seed", "stop"}
        if kind is None or kind.full:
            found |= {"frequency_penalty", "presence_penalty", "logprobs"}
        if self.supports_response_schema:
            found.add("response_format")
        return found | ({"tools", "tool_choice"} if self.supports_function_calling else set())

    def start(self) -> None:
        """Start the server now, and wait until it is healthy; otherwise the first request does so.

        Raises:
            ModelError: It does not start; the message has the tail of its log.
        """
        if self.server.enter(self._worn) is None:
            self.server.prepare(self._worn)
        else:
            self.server.leave()

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
        draft = self.draft(request)
        endpoint = self.enter()
        try:
            client = self.clients.sync_to(endpoint.base_url)
            raw = client.chat.completions.create(**self.body(draft, endpoint))
            return self.counted(response_of(raw, request, self.opening))
        except FAILURES as error:
            failure = self.failure(error)
        finally:
            self.server.leave()
        raise failure  # outside of the handler, so that the SDK's error and its headers are not chained to it

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """The answer as stream events, as the server sends them. Closing the iterator cancels the request."""
        if self.is_sent_whole(request):
            yield from lm15.response_to_events(self.complete(request))
            return
        draft = self.draft(request)
        endpoint = self.enter()
        reader = StreamReader(request, self.opening)
        failure: Exception | None = None
        try:
            client = self.clients.sync_to(endpoint.base_url)
            with client.chat.completions.create(**self.body(draft, endpoint), **self.streaming()) as chunks:
                for chunk in chunks:
                    yield from reader.feed(chunk)
        except FAILURES as error:
            failure = self.failure(error)
        finally:
            self.server.leave()
        if failure is not None:
            raise failure
        yield from self.ended(reader)

    def close(self) -> None:
        """End the server that this program started. Engines that share it start it again when they are next asked."""
        self.server.close()

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
        return self.served.to_dict()

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
        weights.refuse_changed(state["model"], saved=state["identity"], now=engine.identity)
        return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> "ServerEngine":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return ServerEngine.load_state, (self.dump_state(),)

    def __repr__(self) -> str:
        return f"ServerEngine({self.model_string!r})"

    def _kind(self) -> ServerKind | None:
        """The kind of server; one at an address is asked, and None where it does not say."""
        if isinstance(self.server, Server):
            return self.server.settings.kind
        if self.server.enter() is None:
            try:
                self.server.prepare()
            except DspycError:
                return None  # the request itself will say what is wrong
        return self.server.kind

    @property
    def opening(self) -> Opening:
        """What the template opens a reply with, where the model's folder is here; nothing elsewhere."""
        chat = self.chat
        return Opening() if chat is None else chat.opening

    @cached_property
    def _tokens(self) -> Tokens:
        chat = self.chat
        if chat is None:
            return Tokens()
        pad: Any = chat.tokenizer.pad_token_id
        return Tokens(tuple(sorted(chat.stop_ids)), pad if isinstance(pad, int) else None)

    def draft(self, request: lm15.Request) -> "Draft":
        """The request, checked as far as is possible without the server."""
        self.serving(request.model)
        with _canonical():
            validate_request(request)
            self._refuse_unsupported(request)
            messages, tools = messages_of(request)
            choice = request.config.tool_choice
            unused = choice is not None and choice.mode == "none"
            return Draft(request, [_plain(m) for m in messages], [] if unused else tools, self._tokens)

    def _refuse_unsupported(self, request: lm15.Request) -> None:
        config, kind = request.config, self._kind()
        names = ["reasoning", "probabilities"]
        if kind is not None and not kind.full:
            names += ["response_format", "logprobs", "frequency_penalty", "presence_penalty", "extensions"]
        asked = [name for name in names if getattr(config, name) or getattr(config, name) == 0]
        if kind is not None and not kind.full and config.tool_choice and config.tool_choice.mode == "required":
            asked.append("tool_choice='required'")
        if asked:
            raise lm15.UnsupportedFeatureError(
                f"{self.model_string} does not take {', '.join(asked)}; leave it out.", feature=asked[0]
            )

    def prepare(self) -> None:
        """Make sure that the server runs; errors are DSPy's."""
        with _canonical():
            self.server.prepare(self._worn)

    def enter(self) -> Endpoint:
        """Wait for the server, and return where to send a request; `server.leave()` must follow."""
        while (endpoint := self.server.enter(self._worn)) is None:
            self.prepare()
        return endpoint

    def body(self, draft: "Draft", endpoint: Endpoint) -> dict[str, Any]:
        """What the SDK is to send."""
        body = body_of(
            draft.request,
            draft.messages,
            draft.tools,
            kind=self._kind(),
            max_tokens=self._room(draft, endpoint),
            tokens=draft.tokens,
        )
        return {**body, "model": endpoint.model, "extra_body": {**body["extra_body"], **endpoint.extra}}

    def _room(self, draft: "Draft", endpoint: Endpoint) -> int:
        """The tokens that the reply may have: what was asked for, and no more than the context leaves.

        Only a prompt that could be too long is counted; a token has a byte at least.
        """
        asked = draft.request.config.max_tokens or DEFAULT_MAX_TOKENS
        limit = min((n for n in (self.served.max_length, endpoint.max_length) if n is not None), default=None)
        chat = self.chat
        if limit is None or chat is None or draft.longest + asked <= limit:
            return asked
        with _canonical():
            prompt = len(chat.prompt_ids(draft.messages, draft.tools))
        return min(asked, room(prompt, limit, self.model_string))

    def streaming(self) -> dict[str, Any]:
        """What a streamed request has in addition."""
        kind = self._kind()
        usage = {"stream_options": {"include_usage": True}} if kind is None or kind.full else {}
        return {"stream": True, **usage}

    def is_sent_whole(self, request: lm15.Request) -> bool:
        """Whether an answer is read as a whole: for tool calls, log-probabilities, stop strings that the server lets pass."""
        config, kind = request.config, self._kind()
        passing = bool(config.stop) and kind is not None and not kind.full
        return bool(request.tools) or config.logprobs is not None or passing

    def ended(self, reader: StreamReader) -> list[Any]:
        """The last events of a stream, or the error that it broke off."""
        if reader.broken:
            raise self.failure(openai.APIConnectionError(request=httpx.Request("POST", "http://127.0.0.1")))
        self.counted(None)
        return reader.end()

    def counted(self, response: Any) -> Any:
        """Count one call more, and return `response`."""
        with self._lock:
            self._calls += 1
        return response

    def failure(self, error: Exception) -> Exception:
        """What went wrong with a request, as DSPy asks of an engine."""
        gone = not isinstance(error, (openai.APIStatusError, openai.APITimeoutError))
        death = self.server.death(1.0) if gone else None
        options = self.served.options
        key = key_now(options.api_key_env)
        return canonical_error(error, timeout=options.request_timeout, death=death, secrets=[key] if key else [])


@dataclass(frozen=True)
class Draft:
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
