"""Tool calls and log-probabilities come through a ledger as the model gave them, first sitting and replay alike."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from dspyc.compiler import Ledger, bootstrap, observe
from dspyc.compiler.ray_workers import Executor, workers_of
from dspyc.compiler.replies import replies_of, replies_text
from tests.models.openai_server import ManyAtOnce

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TOKEN: dict[str, Any] = {"token": "Sunny", "logprob": -0.25, "bytes": None, "top_logprobs": []}
CHOICE = {
    "index": 0,
    "finish_reason": "tool_calls",
    "message": {"role": "assistant", "content": '{"answer": "Sunny"}', "tool_calls": [CALL]},
    "logprobs": {"content": [TOKEN], "refusal": None},
}
TOLD = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [CHOICE],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}


def weather(city: str) -> str:
    """What the sky is like."""
    return city


class Calls(dspy.Signature):
    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    answer: str = dspy.OutputField()
    calls: dspy.ToolCalls = dspy.OutputField()


class Asks(dspy.Module):
    def __init__(self, lm: dspy.BaseLM) -> None:
        super().__init__()
        self.step = dspy.Predict(Calls)
        self.step.lm = lm

    def forward(self, question: str) -> Any:
        return self.step(question=question, tools=[dspy.Tool(weather)])


class OpenAIsObjects(dspy.BaseLM):
    """Answers as OpenAI's SDK does."""

    supports_function_calling = True

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> ChatCompletion:
        return ChatCompletion.model_validate(TOLD)


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        data = json.dumps(TOLD).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def address() -> Iterator[str]:
    server = ManyAtOnce(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def run(folder: Path, lm: dspy.BaseLM, executor: Executor = "threads") -> Any:
    """The prediction of the only example."""
    example = dspy.Example(question="How is Paris?").with_inputs("question")
    with (
        dspy.context(adapter=dspy.JSONAdapter()),
        Ledger(folder) as ledger,
        workers_of(executor, num_threads=1, ledger=ledger) as workers,
    ):
        subject = observe(Asks(lm), "teacher", identity="the same")
        (trace,) = bootstrap(subject, [example], metric=None, ledger=ledger, workers=workers, show_progress=False)
        assert trace.error is None
        assert ledger.calls() == {"teacher": 1}
    return trace


def check(trace: Any) -> None:
    (called,) = trace.prediction.calls.tool_calls
    assert (called.id, called.name, called.args) == ("call_1", "weather", {"city": "Paris"})
    assert trace.prediction.logprobs.content[0].logprob == -0.25
    assert trace.prediction.logprobs["content"][0]["token"] == "Sunny"
    assert trace.calls[0].replies[0]["tool_calls"][0].model_dump() == CALL


@pytest.mark.parametrize("kind", ["of an SDK", "of DSPy"])
def test_tool_calls_and_logprobs_are_whole_in_both_sittings(kind: str, address: str, tmp_path: Path) -> None:
    settings = {"api_base": address, "api_key": "k", "engine": "lm15", "cache": False}
    lm = (
        OpenAIsObjects("own/m", logprobs=True)
        if kind == "of an SDK"
        else dspy.LM("openai/m", logprobs=True, **settings)
    )
    for replayed in (False, True):
        trace = run(tmp_path, lm)
        assert [call.replayed for call in trace.calls] == [replayed]
        check(trace)


@dataclass
class Part:
    text: str


class Wrapped(BaseModel, extra="allow"):
    parts: list[Part]


def test_objects_are_read_field_by_field_and_what_has_none_becomes_its_text() -> None:
    given = [
        Wrapped(parts=[Part("a")], **{"more": SimpleNamespace(n=1, _client="hidden")}),
        {"kind": Part, "raw": b"x"},
    ]
    (wrapped, plain) = replies_of(replies_text(given))
    assert wrapped == {"parts": [{"text": "a"}], "more": {"n": 1}}
    assert wrapped.parts[0].text == "a"
    assert plain == {"kind": str(Part), "raw": "b'x'"}
    with pytest.raises(AttributeError, match="missing"):
        _ = wrapped.missing


def test_no_reply_is_too_odd_for_the_record_of_a_paid_call() -> None:
    circle = SimpleNamespace()
    circle.circle = circle
    assert "namespace" in replies_of(replies_text([circle]))[0]
    for odd in ({("a", "b"): 1}, {"text": "Sunny", "raw": {("a", "b"): 1}}, {"text": "Sunny", "raw": circle}):
        (found,) = replies_of(replies_text([odd]))
        assert found.get("text") == odd.get("text")
        assert len(found) == len(odd)


def test_an_object_in_a_reply_brings_no_key_into_the_record() -> None:
    text = replies_text([{"text": "Sunny", "client": SimpleNamespace(api_key="sk-hidden", model="m")}])
    assert replies_of(text) == [{"text": "Sunny", "client": {"model": "m"}}]
