"""The OpenAI chat-completions protocol, as servers of open models speak it: bodies, answers, streams and errors."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import openai
from dspy import lm15

from ...errors import redact
from ..opening import Opening
from ..replies import reply_message
from ..stops import first_stop
from .commands import ServerKind

_TOO_LONG = (
    "maximum context length",
    "context length",
    "context window",
    "context_length_exceeded",
    "longer than the model",
)
_FINISHED = {"stop": "stop", "length": "length", "tool_calls": "tool_call", "content_filter": "content_filter"}


@dataclass(frozen=True)
class Tokens:
    """What is known of the model's tokenizer: which ids end a reply, and which one pads."""

    stop_ids: tuple[int, ...] = ()
    pad_id: int | None = None


def body_of(
    request: lm15.Request,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    *,
    kind: ServerKind | None,
    max_tokens: int,
    tokens: Tokens,
) -> dict[str, Any]:
    """The body of a request, all but its model. `kind` is None for a server that was not started here.

    A temperature that is not given is 0 and other settings that are not given have no effect, whatever a model's folder
    says: the same as on the batched engine.
    """
    config = request.config
    body: dict[str, Any] = {"messages": messages, "max_tokens": max_tokens}
    extra: dict[str, Any] = dict(config.extensions or {})
    if tools:
        body["tools"] = tools
    if config.seed is not None:
        body["seed"] = config.seed
    if kind is not None and not kind.full:
        extra["generation_config"] = _generation_config(config, tokens)
        return {**body, "extra_body": extra}
    body |= {"temperature": config.temperature or 0.0, "top_p": 1.0 if config.top_p is None else config.top_p}
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(config, name) is not None:
            body[name] = getattr(config, name)
    if config.stop:
        body["stop"] = list(config.stop)
    if config.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": config.logprobs}
    if config.response_format is not None:
        body["response_format"] = _response_format(config.response_format)
    if config.tool_choice is not None and tools:
        body["tool_choice"] = _tool_choice(config.tool_choice)
    if config.top_k is not None:
        extra.setdefault("top_k", config.top_k)
    if kind is not None:
        neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": list(tokens.stop_ids)}
        extra = {**neutral, **extra}
    return {**body, "extra_body": extra}


def response_of(raw: Any, request: lm15.Request, opening: Opening) -> lm15.Response:
    """An answer as DSPy's response: tool calls that were left in the text are found, stop strings are cut.

    What the model's template opens a reply with, such as an empty thought, is no part of the text.

    Raises:
        dspy.lm15.ProviderError: The answer is no chat completion.
    """
    if not isinstance(raw, openai.types.chat.ChatCompletion) or not raw.choices:
        raise lm15.ProviderError("The server's answer is no chat completion; is its address right?")
    found = lm15.response_from_openai_chat(
        raw.model_dump(exclude_none=True), model=request.model, response_format=request.config.response_format
    )
    parts = found.message.parts
    text = parts[0].text if len(parts) == 1 and isinstance(parts[0], lm15.TextPart) else None
    message, finish = found.message, found.finish_reason
    if text is not None:
        own = opening.without(text)
        cut = own if request.tools else own[: first_stop(own, request.config.stop)]
        finish = "stop" if cut != own else finish
        if request.tools or cut != text:
            message, called = reply_message(cut, tools=bool(request.tools))
            finish = "tool_call" if called else finish
    return replace(found, message=message, finish_reason=finish, model=request.model)


class StreamReader:
    """Chunks of a streamed answer as stream events; there is no text until the `opening` of a reply is over."""

    def __init__(self, request: lm15.Request, opening: Opening) -> None:
        self._model = request.model
        self._opening = opening
        self._held = ""
        self._opened = not opening.text
        self._parts: dict[Any, int] = {}
        self._started = False
        self._finish: str | None = None
        self._usage: lm15.Usage | None = None

    def feed(self, chunk: Any) -> Iterator[Any]:
        """The events of one chunk."""
        if not self._started:
            self._started = True
            yield lm15.StreamStartEvent(id=chunk.id or None, model=self._model)
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage)
        for choice in chunk.choices[:1]:
            self._finish = choice.finish_reason or self._finish
            thought = getattr(choice.delta, "reasoning_content", None)
            if thought:
                yield lm15.StreamDeltaEvent(lm15.ThinkingDelta(thought, part_index=self._part("thinking")))
            if choice.delta.content and (text := self._own(choice.delta.content)):
                yield self._delta(text)

    @property
    def broken(self) -> bool:
        """Whether the stream broke off before the answer was whole."""
        return self._finish is None

    def end(self) -> list[Any]:
        """The last events, once no chunk is left."""
        rest = [] if self._opened or not self._held else [self._delta(self._opening.without(self._held))]
        return [*rest, lm15.StreamEndEvent(finish_reason=_FINISHED.get(self._finish or "", "stop"), usage=self._usage)]

    def _own(self, text: str) -> str:
        """What of the next piece of text belongs to the reply itself, and what was held back before it."""
        if self._opened:
            return text
        self._held += text
        own = self._opening.certain(self._held)
        self._opened = bool(own)
        return own

    def _delta(self, text: str) -> Any:
        return lm15.StreamDeltaEvent(lm15.TextDelta(text, part_index=self._part("text")))

    def _part(self, name: str) -> int:
        return self._parts.setdefault(name, len(self._parts))


def canonical_error(error: Exception, *, timeout: float, death: str | None, secrets: Sequence[str] = ()) -> Exception:
    """What went wrong, as the errors that DSPy asks of an engine.

    A server that died or cannot be reached, one that is overloaded or failed, and a timeout may be tried again; a request
    has no effect on a server, so that sending it twice is safe. What the server refused is not tried again. The error of
    the SDK, which holds the request's headers, is left behind.
    """
    kind, text, status = _sorted(error, timeout, death)
    mapped: Exception = kind(redact(text, secrets), status=status)
    return mapped


def _sorted(error: Exception, timeout: float, death: str | None) -> tuple[Any, str, int | None]:
    if death is not None:
        return lm15.TransportError, f"The server died while it was asked. It last wrote:\n{death}", None
    if isinstance(error, openai.APITimeoutError):
        return lm15.TimeoutError, f"No answer within {timeout:g} s (server_options['request_timeout']).", None
    if isinstance(error, openai.APIStatusError):
        said = _said(error)
        return _class_of(error.status_code, said), said, error.status_code
    if isinstance(error, (openai.APIConnectionError, httpx.HTTPError)):
        cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else error
        why = type(cause).__name__ if cause is not None else "no whole answer"
        return lm15.TransportError, f"The server cannot be reached, or closed the connection ({why}).", None
    if isinstance(error, openai.APIError):
        return lm15.ServerError, f"The server failed while it answered: {error}", None
    return lm15.ProviderError, f"The server's answer cannot be read: {type(error).__name__}: {error}", None


def _class_of(status: int, said: str) -> Any:
    if status in (400, 413, 422) and any(sign in said.lower() for sign in _TOO_LONG):
        return lm15.ContextLengthError
    if status >= 500:
        return lm15.ServerError
    known = {401: lm15.AuthError, 403: lm15.AuthError, 404: lm15.UnsupportedModelError}
    known |= {408: lm15.TimeoutError, 429: lm15.RateLimitError}
    return known.get(status, lm15.InvalidRequestError)


def _said(error: openai.APIStatusError) -> str:
    """The server's own words: each kind of server puts them elsewhere."""
    body: Any = error.body
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and key in body:
            body = body[key]
    text = body if isinstance(body, str) else json.dumps(body, default=str) if body else error.response.text
    return text[:2000] or f"The server answered with status {error.status_code}."


def _generation_config(config: Any, tokens: Tokens) -> str:
    """transformers' server samples only where its own configuration says so, and takes a whole one with each request."""
    found: dict[str, Any] = {"do_sample": bool(config.temperature)}
    if config.temperature:
        found |= {"temperature": config.temperature, "top_k": config.top_k or 0}
        found["top_p"] = 1.0 if config.top_p is None else config.top_p
    if tokens.stop_ids:
        found["eos_token_id"] = list(tokens.stop_ids)
    if tokens.pad_id is not None:
        found["pad_token_id"] = tokens.pad_id
    return json.dumps(found)


def _response_format(given: dict[str, Any]) -> dict[str, Any]:
    if given["type"] != "json_schema":
        return dict(given)
    inner = {"name": given.get("name") or "response", "schema": given["schema"]}
    return {"type": "json_schema", "json_schema": inner | ({"strict": given["strict"]} if "strict" in given else {})}


def _tool_choice(choice: lm15.ToolChoice) -> Any:
    if choice.mode == "required" and len(choice.allowed) == 1:
        return {"type": "function", "function": {"name": choice.allowed[0]}}
    return choice.mode


def _usage(usage: Any) -> lm15.Usage:
    details = usage.prompt_tokens_details
    return lm15.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cache_read_tokens=details.cached_tokens if details is not None else None,
    )
