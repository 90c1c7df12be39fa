"""A server that runs already, at an address: the protocol over a real socket, and what goes wrong with it."""

import asyncio
import gc
import json
import logging
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15

from dspyc import LocalLM
from dspyc.errors import ModelError
from dspyc.models.servers.async_engine import AsyncServerEngine
from tests.models import small
from tests.models.running import Running

KEY = "key-canary-0123456789"
TOOL = dspy.lm15.FunctionTool(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    found = Running("--served-model-name", "base", "--lora-paths", "worn=/adapters/worn")
    yield found
    found.stop()


@pytest.fixture
def lm(server: Running) -> dspy.LM:
    return LocalLM("base", server=server.address, cache=False, num_retries=0, server_options={"request_timeout": 5})


def request_of(lm: dspy.LM, text: str, **config: Any) -> lm15.Request:
    message = lm15.Message.user(text)
    tools = config.pop("tools", ())
    return lm15.Request(model=lm.model, messages=(message,), tools=tools, config=lm15.Config(**config))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_address_answers(lm: dspy.LM) -> None:
    assert lm("Hello") == ["base|Hello"]
    assert lm.model.startswith("server/base@")
    assert lm.engine.pid is None


def test_usage_has_cached_tokens(lm: dspy.LM) -> None:
    usage = lm.engine.complete(request_of(lm, "Hello")).usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) == (7, 3, 4)


def test_a_folder_is_found_by_where_the_server_loaded_it(llama: Path) -> None:
    running = Running("--served-model-name", "student", "serve", str(llama))
    try:
        lm = LocalLM(llama, server=running.address + "/v1/", cache=False)
        assert lm("Hello") == ["student|Hello"]
        assert lm.engine.identity == LocalLM(llama).engine.identity
    finally:
        running.stop()


def test_a_thought_that_the_template_opens_is_no_part_of_a_reply(tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "thinking", template=small.THINKING)
    running = Running("--served-model-name", "student", "serve", str(folder))

    async def streamed(lm: dspy.LM) -> list[Any]:
        return [event async for event in AsyncServerEngine(lm.engine).stream(request_of(lm, "think"))]

    try:
        lm = LocalLM(folder, server=running.address, cache=False)
        assert lm("think") == ["yes"]
        assert lm.engine.complete(request_of(lm, "think", tools=(TOOL,))).message.parts[0].text == "yes"
        assert asyncio.run(lm.acall("one <think>")) == ["student|one <think>"]
        for events in (list(lm.engine.stream(request_of(lm, "think"))), asyncio.run(streamed(lm))):
            assert "".join(event.delta.text for event in events[1:-1]) == "yes"
    finally:
        running.stop()


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
def test_an_adapter_that_the_server_has(owner: str, adapters: list[Path]) -> None:
    running = Running("--owner", owner, "--lora-paths", f"triage={adapters[0]}")
    try:
        lm = LocalLM("base", adapters[0], server=running.address, cache=False)
        lm("Hello")
        body = running.seen()["seen"][-1]["body"]
        assert (body["model"], body.get("lora_path")) == {"vllm": ("triage", None), "sglang": ("base", "triage")}[owner]
        with pytest.raises(dspy.LMConfigurationError, match="does not serve the adapter"):
            LocalLM("base", adapters[1], server=running.address, cache=False)("Hello")
    finally:
        running.stop()


def test_a_model_that_the_server_does_not_have(server: Running) -> None:
    with pytest.raises(dspy.LMConfigurationError, match="serves 'base', 'worn'"):
        LocalLM("other", server=server.address, cache=False)("Hello")


def test_nobody_at_the_address() -> None:
    began = time.monotonic()
    with pytest.raises(dspy.LMConfigurationError, match=r"http://127\.0\.0\.1:9/v1 does not say what it serves"):
        LocalLM("base", server="http://127.0.0.1:9", cache=False)("Hello")
    assert time.monotonic() - began < 60  # a child's start would be waited for 600 seconds


def test_an_address_that_swallows_everything_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        lm = LocalLM(
            "base",
            server=f"http://127.0.0.1:{silent.getsockname()[1]}",
            cache=False,
            num_retries=0,
            server_options={"request_timeout": 0.5},
        )
        for seconds in (0, 5):  # what did not answer is asked again after 5 seconds
            monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: clock() + seconds)
            with ThreadPoolExecutor(4) as pool:
                failures = [future.exception() for future in [pool.submit(lm, "Hello") for _ in range(4)]]
            assert all("ReadTimeout" in str(failure) for failure in failures)
            assert connections(silent) == 1


def connections(server: socket.socket) -> int:
    """How many have connected since the last look."""
    server.settimeout(0)
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


def test_a_server_that_goes_away_can_be_tried_again() -> None:
    running = Running("--served-model-name", "base")
    lm = LocalLM("base", server=running.address, cache=False, num_retries=0)
    assert lm("Hello") == ["base|Hello"]
    running.stop()
    with pytest.raises(dspy.LMTransportError, match="cannot be reached"):
        lm("Hello")


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("too long", dspy.ContextWindowExceededError, "maximum context length is 2048"),
        ("busy", dspy.LMRateLimitError, "busy"),
        ("broken", dspy.LMServerError, "engine failed"),
        ("garbage", dspy.LMProviderError, "no chat completion"),
    ],
)
def test_what_a_server_answers_instead(lm: dspy.LM, text: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        lm(text)
    with pytest.raises(kind, match=words):
        asyncio.run(lm.acall(text))
    assert lm("Hello") == ["base|Hello"]


def test_only_what_may_succeed_is_tried_again(server: Running) -> None:
    lm = LocalLM("base", server=server.address, cache=False, num_retries=1)
    before = len(server.seen()["seen"])
    for text in ("too long", "broken"):
        with pytest.raises(dspy.LMError):
            lm(text)
    assert len(server.seen()["seen"]) - before == 1 + 2


def test_a_server_that_does_not_answer_in_time(server: Running) -> None:
    lm = LocalLM("base", server=server.address, cache=False, num_retries=0, server_options={"request_timeout": 1})
    before = server.seen()["gone"]
    with pytest.raises(dspy.LMTimeoutError, match="within 1 s"):
        lm("hang")
    until(lambda: len(server.seen()["gone"]) > len(before))  # the server was told, and can stop


def test_a_cancelled_task_cancels_its_request(lm: dspy.LM, server: Running) -> None:
    before = server.seen()

    async def impatient() -> None:
        task = asyncio.create_task(lm.acall("hang"))
        await asyncio.to_thread(until, lambda: len(server.seen()["seen"]) > len(before["seen"]))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(impatient())
    until(lambda: len(server.seen()["gone"]) > len(before["gone"]))


def test_a_stream_arrives_piece_by_piece(lm: dspy.LM) -> None:
    events = list(lm.engine.stream(request_of(lm, "one two")))
    assert [event.type for event in events] == ["start", "delta", "delta", "delta", "delta", "end"]
    assert "".join(event.delta.text for event in events[1:-1]) == "base|onetwo"
    assert events[-1].finish_reason == "stop"
    assert (events[-1].usage.output_tokens, events[-1].usage.cache_read_tokens) == (4, 4)


def test_an_async_stream(lm: dspy.LM) -> None:
    async def collect() -> list[Any]:
        return [event async for event in AsyncServerEngine(lm.engine).stream(request_of(lm, "one two"))]

    assert "".join(e.delta.text for e in asyncio.run(collect())[1:-1]) == "base|onetwo"


def test_dspys_streaming_listens(lm: dspy.LM) -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    streaming = dspy.streamify(program, stream_listeners=[listener])

    async def collect() -> list[Any]:
        with dspy.context(adapter=dspy.ChatAdapter()):
            return [item async for item in streaming(question="Why?")]

    *pieces, prediction = asyncio.run(collect())
    assert len(pieces) > 2
    assert "".join(piece.chunk for piece in pieces).strip() == prediction.answer == "short and good"


def test_a_stream_that_breaks_off_is_no_answer(lm: dspy.LM) -> None:
    with pytest.raises(lm15.TransportError):
        list(lm.engine.stream(request_of(lm, "cut short")))

    async def collect() -> list[Any]:
        return [event async for event in AsyncServerEngine(lm.engine).stream(request_of(lm, "cut short"))]

    with pytest.raises(lm15.TransportError):
        asyncio.run(collect())


def test_a_stream_that_nobody_reads_on_is_cancelled(lm: dspy.LM, server: Running) -> None:
    before = server.seen()["gone"].count("for ever")
    stream = lm.engine.stream(request_of(lm, "for ever"))
    for _ in range(3):
        next(stream)
    stream.close()
    del stream
    gc.collect()
    until(lambda: server.seen()["gone"].count("for ever") > before)


def test_tool_calls_in_the_text_are_found(lm: dspy.LM) -> None:
    response = lm.engine.complete(request_of(lm, "tool", tools=(TOOL,)))
    assert response.finish_reason == "tool_call"
    call = next(part for part in response.message.parts if isinstance(part, lm15.ToolCallPart))
    assert (call.name, call.input) == ("add", {"a": 1})
    events = list(lm.engine.stream(request_of(lm, "tool", tools=(TOOL,))))
    assert events[-1].finish_reason == "tool_call"


def test_a_schema_and_log_probabilities_are_passed_on(lm: dspy.LM, server: Running) -> None:
    assert lm.engine.supports_response_schema  # the server said that it is vLLM
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    lm.engine.complete(request_of(lm, "Hello", response_format={"type": "json_schema", "schema": schema}, logprobs=2))
    body = server.seen()["seen"][-1]["body"]
    assert body["response_format"]["json_schema"] == {"name": "response", "schema": schema}
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)


def test_a_stream_has_the_log_probabilities_that_were_asked_for(lm: dspy.LM) -> None:
    asked = request_of(lm, "Hello", logprobs=1)
    deltas = [event.delta for event in lm.engine.stream(asked) if event.type == "delta"]
    assert [(scored.token, scored.logprob) for delta in deltas for scored in delta.logprobs] == [("base|Hello", -0.5)]


def test_json_adapter_has_the_server_follow_the_signature(lm: dspy.LM, server: Running) -> None:
    program = dspy.Predict("question -> answer: Literal['as asked', 'otherwise']")
    program.set_lm(lm)
    with dspy.context(adapter=dspy.JSONAdapter()):
        assert program(question="Why?").answer == "as asked"
    sent = server.seen()["seen"][-1]["body"]["response_format"]
    assert sent["json_schema"]["schema"]["properties"]["answer"]["enum"] == ["as asked", "otherwise"]


def test_images_are_refused(lm: dspy.LM) -> None:
    image = lm15.ImagePart(url="https://example.org/a.png", media_type="image/png")
    request = lm15.Request(model=lm.model, messages=(lm15.Message(role="user", parts=(image,)),))
    with pytest.raises(lm15.UnsupportedFeatureError, match="image"):
        lm.engine.complete(request)


def test_a_key_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    running = Running("--key", KEY)
    options = {"api_key_env": "MY_SERVERS_PASS"}
    try:
        lm = LocalLM("base", server=running.address, cache=False, num_retries=0, server_options=options)
        with pytest.raises(
            dspy.LMConfigurationError, match="MY_SERVERS_PASS, which holds the server's key, is not set"
        ):
            lm("Hello")
        monkeypatch.setenv("MY_SERVERS_PASS", KEY)
        lm.engine.close()  # forgets the failure
        assert lm("Hello") == ["base|Hello"]
        assert running.seen()["seen"][-1]["headers"]["Authorization"] == f"Bearer {KEY}"
        monkeypatch.setenv("MY_SERVERS_PASS", KEY + "-no-longer")
        with pytest.raises(dspy.LMAuthError) as caught:
            lm("Hello")
        shown = "".join(traceback.format_exception(caught.value)) + json.dumps(lm.engine.dump_state()) + caplog.text
        assert KEY not in shown + repr(vars(lm))
        assert not any("openai" in type(e).__module__ for e in causes(caught.value))  # they hold the request's headers
    finally:
        running.stop()


def test_without_a_key_none_of_the_environment_is_sent(
    lm: dspy.LM, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    lm("Hello")
    assert "Authorization" not in server.seen()["seen"][-1]["headers"]


def test_saved_state_holds_the_address(lm: dspy.LM) -> None:
    again = type(lm.engine).load_state(lm.engine.dump_state())
    assert again.model_string == lm.model
    assert again.complete(request_of(lm, "Hello")).message.text == "base|Hello"


def test_it_is_not_fine_tuned(lm: dspy.LM) -> None:
    assert not lm.provider.finetunable


def test_an_adapter_that_is_no_folder(server: Running) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        LocalLM("base", "./gone", server=server.address)


def causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
