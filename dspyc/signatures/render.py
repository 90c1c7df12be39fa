"""A call as the messages that inference sends, and a finished call as a training row.

    prompt(predictor, inputs, adapter=adapter, lm=lm)            Prompt(messages, tools)
    row(predictor, inputs, outputs, adapter=adapter, lm=lm)      {"messages": [..., assistant], "tools": [...]}

Nothing here imitates DSPy's formatting: the real predictor runs, with a language model that notes what it is sent, and a
reply is read back by the adapter's own code before it becomes a row.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import dspy
from dspy.adapters.types.tool import ToolCalls
from dspy.adapters.utils import serialize_for_json
from dspy.utils.exceptions import AdapterParseError

from ..errors import RenderError
from .adapted import adapt
from .values import fitted, same, short


class Row(TypedDict, total=False):
    """A training example in chat format. The last message is the assistant's, and the only one that is learned.

    Messages are OpenAI's dicts: `role`, `content` (text, or a list of parts in user turns) and, for native tool calls,
    `tool_calls`, `tool_call_id` and `name`. `tools` are OpenAI's function declarations. `predictor`, `example` and
    `trace` say where the row came from.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    predictor: str
    example: str
    trace: str


class Prompt(NamedTuple):
    """What a language model is sent: OpenAI-style messages, and tool declarations (empty without native tools)."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


def prompt(
    predictor: dspy.Predict,
    inputs: Mapping[str, Any],
    *,
    adapter: dspy.Adapter,
    lm: dspy.BaseLM,
    demos: Sequence[Any] | None = None,
) -> Prompt:
    """What `predictor(**inputs)` sends to `lm` under `adapter`. Neither is changed, and `lm` is not called.

    `demos` stand in for the predictor's own. Inputs that are not fields of its signature are left out.

    Raises:
        RenderError: The predictor or the adapter failed before it reached the language model.
    """
    capture = _CaptureLM(lm)
    twin = _twin(predictor, adapter, capture, demos)
    given = {name: inputs[name] for name in predictor.signature.input_fields if name in inputs}
    try:
        with dspy.context(**_QUIET, adapter=twin.adapter):
            twin(**given)
    except _Captured:
        pass
    except Exception as error:  # the user's types and adapters may raise anything
        raise RenderError(
            f"The prompt cannot be written by {type(adapter).__name__}: {type(error).__name__}: {error}",
            hint="Check the inputs' types against the signature, or use another adapter.",
        ) from error
    if capture.messages is None:
        raise RenderError(
            f"The predictor {type(predictor).__name__} answered without asking its language model.",
            hint="Only predictors that call their LM once can be trained.",
        )
    return Prompt(capture.messages, capture.tools)


def row(
    predictor: dspy.Predict,
    inputs: Mapping[str, Any],
    outputs: Any,
    *,
    adapter: dspy.Adapter,
    lm: dspy.BaseLM,
    demos: Sequence[Any] | None = None,
) -> Row:
    """The training row of one finished call: the prompt that inference will send, and the reply to be learned.

    Args:
        predictor: The student's predictor.
        inputs: Its inputs by field name.
        outputs: A mapping or `dspy.Prediction` of its outputs. Labels are read as DSPy reads a reply: "3" for an int.
        adapter: The adapter that the student will run with.
        lm: The student's LM; it is asked for its capabilities only.
        demos: None for the predictor's own, [] for none.

    Raises:
        RenderError: An output is missing or not of its type, or the adapter cannot read this answer back.
    """
    rendered = prompt(predictor, inputs, adapter=adapter, lm=lm, demos=demos)
    writer = _Writer(predictor, inputs, adapter, lm)
    made = Row(messages=[*rendered.messages, writer.reply(outputs)])
    if rendered.tools:
        made["tools"] = rendered.tools
    return made


class _Writer:
    """Writes and reads back one predictor's replies. `written` is the signature of what the LM itself writes as text."""

    def __init__(self, predictor: dspy.Predict, inputs: Mapping[str, Any], adapter: Any, lm: dspy.BaseLM) -> None:
        self.adapter, self.capture = silenced(adapter), _CaptureLM(lm)
        self.signature = predictor.signature
        self.options = dict(predictor.config)
        # A prompt was made with these inputs just before, so this, its first step, has nothing left to raise.
        self.written = self.adapter._call_preprocess(self.capture, self.options, self.signature, dict(inputs))

    def reply(self, outputs: Any) -> dict[str, Any]:
        values = self._values(outputs)
        calls = self._native_calls(values)
        try:
            content = self._content(values, partial=bool(calls))
        except Exception as error:  # the user's types may raise anything
            raise RenderError(f"{self._name} cannot write the answer: {type(error).__name__}: {error}") from error
        if not content and not calls:
            raise RenderError(
                "The answer is empty: no output has a value.", hint="Leave the example out, or fix what taught it."
            )
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = calls
        self._check_survives(values, content, calls)
        return message

    @property
    def _name(self) -> str:
        return type(self.adapter).__name__

    def _values(self, outputs: Any) -> dict[str, Any]:
        given = dict(outputs.items())
        values = {}
        for name, field in self.signature.output_fields.items():
            if name not in given and field.is_required():
                raise RenderError(
                    f"Output `{name}` is missing; there is {sorted(map(str, given)) or 'nothing'}.",
                    hint="Give every output field of the signature a value.",
                )
            value = given[name] if name in given else field.get_default(call_default_factory=True)
            # Beside native tool calls a model may write no text, and the text's fields are then None.
            values[name] = None if value is None else fitted(name, value, field.annotation)
        return values

    def _native_calls(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        for name, field in self.signature.output_fields.items():
            if field.annotation == ToolCalls and name not in self.written.output_fields and values[name] is not None:
                return [_openai_call(call, i) for i, call in enumerate(values[name].tool_calls)]
        return []

    def _content(self, values: Mapping[str, Any], *, partial: bool) -> str | None:
        """DSPy's own way with the text beside native tool calls: the fields that have a value, or no text."""
        signature = self.written
        if partial:
            for name in self.written.output_fields:
                if values[name] is None:
                    signature = signature.delete(name)
        if not signature.output_fields:
            return None
        text = self.adapter.format_assistant_message_content(signature, {n: values[n] for n in signature.output_fields})
        return text if isinstance(text, str) else json.dumps(text)

    def _check_survives(self, values: Mapping[str, Any], content: str | None, calls: list[dict[str, Any]]) -> None:
        output: Any = {"text": content, "tool_calls": calls} if calls else content
        try:
            (read,) = self.adapter._call_postprocess(
                self.written, self.signature, [output], self.capture, dict(self.options)
            )
        except AdapterParseError as error:
            raise RenderError(f"{self._name} cannot read this answer back: {short(error)}", hint=_SURVIVE) from error
        for name, field in self.signature.output_fields.items():
            if not same(values[name], read.get(name), field.annotation):
                raise RenderError(
                    f"Output `{name}` does not survive {self._name}: {short(values[name])} would be read back as "
                    f"{short(read.get(name))}.",
                    hint=_SURVIVE,
                )


_SURVIVE = "Use an adapter that can write it, such as dspyc.TerseAdapter(), or leave the example out."

# What a call does besides calling: none of it may happen while a prompt is only being written.
_QUIET: dict[str, Any] = {
    "callbacks": [],
    "trace": None,
    "track_usage": False,
    "usage_tracker": None,
    "disable_history": True,
    "caller_modules": None,
    "send_stream": None,
    "stream_listeners": [],
    "warn_on_type_mismatch": False,
    "dspyc_run": None,  # compiler.calls: nothing is called that a ledger would record
}


class _Captured(BaseException):
    """Ends the call once its messages are known. Not an Exception, which a predictor's own retry would catch."""


class _CaptureLM(dspy.BaseLM):
    """Stands in for `lm`: the same model, settings and capabilities, but a call notes its messages and stops."""

    def __init__(self, lm: dspy.BaseLM) -> None:
        super().__init__(lm.model, lm.model_type, cache=False)
        self.kwargs = dict(lm.kwargs)
        self.lm = lm
        self.messages: list[dict[str, Any]] | None = None
        self.tools: list[dict[str, Any]] = []

    supports_function_calling = property(lambda self: self.lm.supports_function_calling)
    supports_reasoning = property(lambda self: self.lm.supports_reasoning)
    supports_response_schema = property(lambda self: self.lm.supports_response_schema)
    supported_params = property(lambda self: self.lm.supported_params)

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        if self.messages is None:
            self.messages = list(messages) if messages is not None else [{"role": "user", "content": prompt}]
            self.tools = list(kwargs.get("tools") or [])
        raise _Captured

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        self(prompt, messages=messages, **kwargs)


def silenced(adapter: dspy.Adapter) -> Any:
    """The adapter without its callbacks, which observe inference."""
    quiet = copy.copy(adapter)
    quiet.callbacks = []
    return quiet


def _twin(predictor: dspy.Predict, adapter: dspy.Adapter, lm: _CaptureLM, demos: Sequence[Any] | None) -> Any:
    """A shallow copy to run instead: its LM, adapter, demos, history and callbacks are its own."""
    twin: Any = copy.copy(predictor)
    twin.history, twin.callbacks, twin.lm = [], [], lm
    twin.demos = list(predictor.demos if demos is None else demos)
    adapt(twin, silenced(adapter))
    return twin


def _openai_call(call: ToolCalls.ToolCall, index: int) -> dict[str, Any]:
    arguments = json.dumps(serialize_for_json(call.args), ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id or f"call_{index}", "type": "function", "function": function}
