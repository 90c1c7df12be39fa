"""A real `transformers serve`, over a tiny random model: started, asked, shared and ended."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import dspy
import psutil
import pytest

from dspyc import LocalLM
from dspyc.errors import ConfigError

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

SERVER = {"server": "transformers", "device": "cpu", "dtype": "float32", "cache": False, "max_tokens": 12}


@pytest.fixture(scope="module")
def lm(llama: Path) -> Iterator[dspy.LM]:
    found = LocalLM(llama, **SERVER)
    yield found
    found.engine.close()


def test_greedy_answers_are_those_of_the_batched_engine(lm: dspy.LM, llama: Path) -> None:
    here = LocalLM(llama, cache=False, max_tokens=12, dtype="float32", device="cpu")
    for text in ("Hello", "How are you?", "0123 [[ ## answer ## ]]"):
        assert lm(text) == here(text)
    assert lm.engine.calls == 3


def test_an_awaited_answer_is_the_same(lm: dspy.LM) -> None:
    async def both() -> list[list[str]]:
        return await asyncio.gather(lm.acall("Hello"), lm.acall("How are you?"))

    assert asyncio.run(both()) == [lm("Hello"), lm("How are you?")]
    assert asyncio.run(both()) == [lm("Hello"), lm("How are you?")]  # another event loop


def test_sampling_follows_temperature_and_seed(lm: dspy.LM) -> None:
    drawn = [lm("Hello", temperature=1.0, seed=seed)[0] for seed in (1, 2, 3, 1)]
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) > 1


def test_stop_strings_are_cut_though_the_server_has_none(lm: dspy.LM) -> None:
    whole = lm("Hello")[0]
    assert lm("Hello", stop=[whole[4:6]])[0] == whole[:4]


def test_usage_names_tokens(lm: dspy.LM) -> None:
    lm("Hello")
    usage = lm.history[-1]["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["prompt_tokens"] > 5


def test_a_stream_brings_the_same_text(lm: dspy.LM) -> None:
    request = request_of(lm, "Hello")
    events = list(lm.engine.stream(request))
    assert [events[0].type, events[-1].type] == ["start", "end"]
    streamed = "".join(event.delta.text for event in events[1:-1])
    assert streamed == lm("Hello")[0].rstrip("\ufffd")  # the server's streamer leaves half a character out
    assert len(events) > 3
    assert events[-1].usage.output_tokens == 12


def test_a_prompt_over_the_context_is_a_context_error(lm: dspy.LM) -> None:
    with pytest.raises(dspy.ContextWindowExceededError, match="holds 2048"):
        lm("Hello " * 3000)


def test_a_reply_gets_what_the_context_leaves(lm: dspy.LM) -> None:
    request = request_of(lm, "7" * 2010, max_tokens=500)
    assert lm.engine.complete(request).usage.total_tokens <= 2048


def test_two_lms_share_one_child_and_closing_leaves_no_process(llama: Path) -> None:
    first, second = LocalLM(llama, **SERVER), LocalLM(llama, **SERVER)
    first("Hello")
    pid = first.engine.pid
    assert pid == second.engine.pid
    group = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    addresses = {c.laddr.ip for p in group for c in p.net_connections() if c.status == "LISTEN"}
    assert addresses == {"127.0.0.1"}
    first.engine.close()
    assert not any(process.is_running() for process in group)
    assert second.engine.pid is None
    assert second("Hello") == first("Hello")  # started again
    assert second.engine.pid not in (None, pid)


def test_what_it_does_not_take(lm: dspy.LM, llama: Path, adapters: list[Path]) -> None:
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="logprobs"):
        lm("Hello", logprobs=True)
    with pytest.raises(ConfigError, match="takes no adapters"):
        LocalLM(llama, adapters[0], **SERVER)


def request_of(lm: dspy.LM, text: str, max_tokens: int = 12) -> dspy.lm15.Request:
    return dspy.lm15.Request(
        model=lm.model,
        messages=(dspy.lm15.Message.user(text),),
        config=dspy.lm15.Config(max_tokens=max_tokens),
    )
