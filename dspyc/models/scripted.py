"""A language model whose answers are a Python function: the test double for programs, optimizers and this project.

    lm = ScriptedLM(lambda inputs: {"intent": "refund" if "money" in inputs["ticket"] else "other"})
    dspy.Predict("ticket -> intent")(ticket="I want my money back", lm=lm).intent     # 'refund'
    lm.engine.calls                                                                   # 1

Deep copies of the LM share its function and its count.
"""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import dspy
from dspy import lm15
from dspy.adapters.chat_adapter import FieldInfoWithName, field_header_pattern
from dspy.clients.engines.base import validate_request
from pydantic.fields import FieldInfo

from ..errors import ConfigError
from ..signatures.importing import imported
from .messages import messages_of

Answer = Callable[[dict[str, str]], dict[str, Any] | str]

_CLOSING = "\n\nRespond with the corresponding output fields, starting with the field `"


def ScriptedLM(answer: Answer, *, model: str = "scripted/expert", **kwargs: Any) -> dspy.LM:  # noqa: N802 (reads as a class)
    """A `dspy.LM` that answers with `answer(inputs)`.

    Args:
        answer: Gets the fields of the last user message, as ChatAdapter writes them, each as text; a message in another
            format comes whole, as `{"text": …}`. A dict that it returns is written in ChatAdapter's format, a string is
            sent as it is. Whatever it raises reaches the caller of the LM. It may be called from several threads at once.
        model: The model string. DSPy's cache knows an LM by it alone, so the cache is off unless `cache=True` is given.
        **kwargs: Passed on to `dspy.LM`.

    Returns:
        The LM; `lm.engine.calls` counts its requests, deep copies of the LM included.

    Raises:
        ConfigError: `answer` is not a function.
    """
    if not callable(answer):
        raise ConfigError(
            f"ScriptedLM needs a function that answers, not {type(answer).__name__}.",
            hint="Pass one that takes a dict of input texts and returns a dict of outputs, or a string.",
        )
    engine = ScriptedEngine(answer)
    return dspy.LM(model, engine=engine, async_engine=AsyncScriptedEngine(engine), **{"cache": False, **kwargs})


class ScriptedEngine:
    """DSPy's engine contract over a Python function."""

    supports_function_calling = False

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._calls = 0
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """Requests that reached the function, failed ones included."""
        return self._calls

    def complete(self, request: lm15.Request) -> lm15.Response:
        validate_request(request)
        with self._lock:
            self._calls += 1
        messages, _ = messages_of(request)
        answered = self.answer(inputs_of(messages))
        text = answered if isinstance(answered, str) else written(answered)
        said = " ".join(str(message["content"]) for message in messages)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=len(said.split()), output_tokens=len(text.split())),
        )

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        yield from lm15.response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing to free."""

    def dump_state(self) -> dict[str, Any]:
        """The function's importable name; a lambda or an inner function has none and cannot be saved."""
        name = f"{getattr(self.answer, '__module__', '')}:{getattr(self.answer, '__qualname__', '')}"
        try:
            can_be_found = imported(name) is self.answer
        except ImportError:
            can_be_found = False
        if not can_be_found:
            raise ConfigError(
                f"This ScriptedLM cannot be saved: {name!r} cannot be imported.",
                hint="Define its function in a module.",
            )
        return {"answer": name}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "ScriptedEngine":
        return cls(imported(state["answer"]))

    def __deepcopy__(self, memo: dict[int, Any]) -> "ScriptedEngine":
        return self


class AsyncScriptedEngine:
    """The same function and the same count, awaited."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return self.engine.complete(request)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        for event in self.engine.stream(request):
            yield event

    async def aclose(self) -> None:
        """Nothing to free."""

    def dump_state(self) -> dict[str, Any]:
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "AsyncScriptedEngine":
        return cls(ScriptedEngine.load_state(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> "AsyncScriptedEngine":
        return self


def inputs_of(messages: list[dict[str, Any]]) -> dict[str, str]:
    """The fields of the last user message in ChatAdapter's format; `{"text": whole}` in any other."""
    content = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    end = text.rfind(_CLOSING)
    body = text if end < 0 else text[:end]
    fields: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in body.split("\n"):
        header = field_header_pattern.fullmatch(line.strip())
        if header:
            current = fields.setdefault(header[1], [])
        elif current is not None:
            current.append(line)
    return {name: "\n".join(lines).strip() for name, lines in fields.items()} or {"text": text}


def written(outputs: dict[str, Any]) -> str:
    """A reply in ChatAdapter's format: the text that ChatAdapter itself would write for these values."""
    fields = {FieldInfoWithName(name, FieldInfo(annotation=object)): value for name, value in outputs.items()}
    return f"{dspy.ChatAdapter().format_field_with_value(fields)}\n\n[[ ## completed ## ]]\n"
