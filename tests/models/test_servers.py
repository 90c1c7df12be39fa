"""Servers as child processes: shared, restarted, given adapters, and reported when they fail. A real child each time."""

import copy
import json
import pickle
import stat
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import dspy
import httpx
import psutil
import pytest
from dspy import lm15

from dspyc import LocalLM
from dspyc.errors import ModelError
from dspyc.models.servers.async_engine import AsyncServerEngine
from dspyc.models.servers.engine import ServerEngine
from tests.models import openai_server, small

SCRIPT = Path(openai_server.__file__)
CLOCK = time.monotonic


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An executable that takes vLLM's and SGLang's command lines."""
    file = tmp_path_factory.mktemp("bin") / "server"
    file.write_text(f"#!{sys.executable} -S\nimport runpy\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


class Started:
    """Makes LMs over the server, and ends what they started."""

    def __init__(self, model: Path, program: Path) -> None:
        self.model, self.program = model, program
        self.engines: list[ServerEngine] = []

    def lm(self, *args: str, adapter: Path | None = None, server: str = "vllm", **options: Any) -> dspy.LM:
        known = {"program": self.program, "args": args, **options}
        lm = LocalLM(self.model, adapter, server=server, server_options=known, cache=False, num_retries=0)
        self.engines.append(lm.engine)
        return lm


@pytest.fixture
def started(llama: Path, program: Path) -> Iterator[Started]:
    found, before = Started(llama, program), threading.enumerate()
    yield found
    for engine in found.engines:
        engine.close()
    assert not any(is_server(process) for process in psutil.Process().children(recursive=True))
    logs = [thread for thread in threading.enumerate() if thread.name == "dspyc-child-log" and thread not in before]
    for thread in logs:
        thread.join(30)
    assert not any(thread.is_alive() for thread in logs)


def is_server(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it is gone meanwhile
        return SCRIPT.name in " ".join(process.cmdline())
    return False


def seen(lm: dspy.LM) -> dict[str, Any]:
    """What the server was sent, and how it was started."""
    endpoint = lm.engine.enter()
    lm.engine.server.leave()
    return httpx.get(endpoint.base_url.removesuffix("/v1") + "/seen", trust_env=False).json()  # type: ignore[no-any-return]


def until_sent(lm: dspy.LM, text: str, times: int) -> None:
    """Wait until the server has so many requests with this text."""
    end = CLOCK() + 60
    while [entry["body"]["messages"][-1]["content"] for entry in seen(lm)["seen"]].count(text) < times:
        assert CLOCK() < end


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let so much time have passed, by the clock of Python."""
    monkeypatch.setattr(time, "monotonic", lambda: CLOCK() + seconds)


def test_a_child_starts_at_the_first_call_and_answers(started: Started) -> None:
    lm = started.lm()
    assert lm.engine.pid is None
    assert lm("Hello") == ["llama|Hello"]
    assert psutil.pid_exists(lm.engine.pid)
    assert lm.model == lm.engine.model_string
    assert lm.model.startswith("vllm/llama@")
    assert lm.history[-1]["usage"]["prompt_tokens"] == 7


def test_what_is_sent_leaves_nothing_to_the_models_folder(started: Started) -> None:
    lm = started.lm()
    lm("Hello")
    body = seen(lm)["seen"][-1]["body"]
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (0.0, 1.0, -1, 1.0)
    assert body["stop_token_ids"] == sorted(lm.engine.chat.stop_ids)
    lm("Hello", temperature=0.7, top_p=0.9, top_k=5, seed=3, stop=["x"], max_tokens=9)
    body = seen(lm)["seen"][-1]["body"]
    assert [body[k] for k in ("temperature", "top_p", "top_k", "seed", "max_tokens")] == [0.7, 0.9, 5, 3, 9]
    assert body["stop"] == ["x"]


def test_lms_of_one_base_share_a_child_and_others_do_not(started: Started) -> None:
    first, second, other = started.lm(), started.lm(), started.lm("--max-num-seqs", "4")
    for lm in (first, second, other):
        lm("Hello")
    assert first.engine.pid == second.engine.pid != other.engine.pid
    assert first.model == second.model != other.model  # the arguments may decide what is answered


def test_many_threads_start_one_child(started: Started) -> None:
    lm = started.lm()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: lm(f"number {i}"), range(64)))
    assert answers == [[f"llama|number {i}"] for i in range(64)]
    assert lm.engine.calls == 64
    assert seen(lm)["argv"].count("--port") == 1


@pytest.mark.parametrize("server", ["vllm", "sglang"])
def test_adapters_join_the_server_that_runs(started: Started, adapters: list[Path], server: str) -> None:
    base = started.lm(server=server)
    assert base("Hello") == ["llama|Hello"]
    plain = base.engine.pid
    first = started.lm(adapter=adapters[0], server=server)
    worn = first.engine.served.worn.name
    first("Hello")  # the server was started without adapters, and is started again with this one
    assert base.engine.pid == first.engine.pid != plain
    second = started.lm(adapter=adapters[1], server=server)
    second("Hello")  # this one is loaded while it runs
    assert second.engine.pid == first.engine.pid
    bodies = [entry["body"] for entry in seen(base)["seen"]]
    loaded = second.engine.served.worn
    assert bodies[1] == {"lora_name": loaded.name, "lora_path": str(adapters[1])}
    names = [body.get("lora_path", body["model"]) for body in (bodies[0], bodies[2])]
    assert names == [worn, loaded.name]
    assert base("Hello") == ["llama|Hello"]
    assert len({base.model, first.model, second.model}) == 3


def test_an_adapter_of_a_higher_rank_waits_for_running_requests(started: Started, llama: Path, tmp_path: Path) -> None:
    low = started.lm(adapter=small.lora(llama, tmp_path / "low", seed=1))
    high_folder = small.lora(llama, tmp_path / "high", seed=2)
    config = json.loads((high_folder / "adapter_config.json").read_text())
    (high_folder / "adapter_config.json").write_text(json.dumps({**config, "r": 40}))
    low("Hello")
    before = low.engine.pid
    high, over = started.lm(adapter=high_folder), tmp_path / "over"
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(low, f"until {over}")
        until_sent(low, f"until {over}", 1)
        asked = pool.submit(high, "Hello")
        end = CLOCK() + 60
        while low.engine.server.enter() is not None:  # None: it lets no other request in
            low.engine.server.leave()
            assert CLOCK() < end
        assert not asked.done()
        over.touch()
        assert slow.result() == [f"{low.engine.served.worn.name}|until {over}"]
        assert asked.result() == [f"{high.engine.served.worn.name}|Hello"]
    assert high.engine.pid != before
    argv = seen(high)["argv"]
    assert argv[argv.index("--max-lora-rank") + 1] == "64"


def test_a_server_that_dies_is_reported_and_started_again(started: Started) -> None:
    lm = started.lm()
    lm("Hello")
    before = psutil.Process(lm.engine.pid).children(recursive=True)
    with pytest.raises(dspy.LMTransportError, match="out of memory") as caught:
        lm("die")
    assert "hf_abcdefghijklmnop" not in str(caught.value)
    assert "exit status 3" in str(caught.value)
    assert not any(process.is_running() for process in before)
    assert lm("Hello") == ["llama|Hello"]


def test_other_requests_of_a_server_that_dies_are_answered_by_the_next(started: Started, tmp_path: Path) -> None:
    lm, text = started.lm(), f"until {tmp_path / 'over'}"
    lm.num_retries = 3
    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(lm, text) for _ in range(6)]
        until_sent(lm, text, 6)
        assert pool.submit(started.lm(), "die").exception() is not None
        (tmp_path / "over").touch()
        assert [future.result() for future in slow] == [[f"llama|{text}"]] * 6


def test_one_that_dies_again_and_again_stays_down(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = started.lm()
    for _ in range(3):
        with pytest.raises(dspy.LMTransportError):
            lm("die")
    for seconds in (0, 300):
        later(monkeypatch, seconds)
        with pytest.raises(dspy.LMConfigurationError, match="died 3 times"):
            lm("Hello")
        assert lm.engine.pid is None
    later(monkeypatch, 600)
    assert lm("Hello") == ["llama|Hello"]


def test_closing_forgets_its_deaths(started: Started) -> None:
    lm = started.lm()
    for _ in range(3):
        with pytest.raises(dspy.LMTransportError):
            lm("die")
    with pytest.raises(dspy.LMConfigurationError, match="died 3 times"):
        lm("Hello")
    lm.engine.close()
    assert lm("Hello") == ["llama|Hello"]
    with pytest.raises(dspy.LMTransportError):
        lm("die")
    assert lm("Hello") == ["llama|Hello"]  # it died once


def test_one_that_ends_before_it_is_healthy(started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, starts = tmp_path / "counted", tmp_path / "starts"
    note = f"with open({str(starts)!r}, 'a') as file:\n    file.write('started ')\n"
    counted.write_text(started.program.read_text().replace("import runpy\n", f"import runpy\n{note}"))
    counted.chmod(started.program.stat().st_mode)
    lm, now = started.lm("--die-at-start", program=counted), int(CLOCK())  # whole, so that sums are exact
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with pytest.raises(ModelError, match="no room for the KV cache"):
        lm.engine.start()
    for seconds, number in ((0, 1), (29, 1), (30, 2)):  # nobody waits for the same again while the failure is fresh
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        with pytest.raises(dspy.LMConfigurationError, match="before it was healthy"):
            lm("Hello")
        assert starts.read_text() == "started " * number


def test_one_that_never_becomes_healthy_is_ended(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = started.lm("--never-healthy", start_timeout=100)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(lm, "Hello") for _ in range(4)]
        end = CLOCK() + 60
        while (process := lm.engine.server._process) is None or "listening on" not in process.tail():
            assert CLOCK() < end
            time.sleep(0.01)
        later(monkeypatch, 100)
        failures = [future.exception() for future in asked]
    assert all(isinstance(e, dspy.LMConfigurationError) and "not healthy after 100 s" in str(e) for e in failures)
    assert "listening on" in str(failures[0])  # the tail of its log
    assert lm.engine.pid is None


def test_a_port_that_is_taken_meanwhile_is_another_port(started: Started, tmp_path: Path) -> None:
    lm = started.lm("--taken-once", str(tmp_path / "taken"))
    assert lm("Hello") == ["llama|Hello"]


def test_a_child_has_none_of_our_secrets(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-canary-canary")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-canary")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Canary: canary")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    lm = started.lm("--no-secrets")
    lm("Hello")
    found = seen(lm)
    assert "OPENAI_API_KEY" not in found["environment"]
    headers = json.dumps(found["seen"][-1]["headers"]).lower()
    assert "canary" not in headers
    assert "authorization" not in headers


def test_copies_and_saved_state(started: Started, llama: Path) -> None:
    lm = started.lm()
    lm("Hello")
    assert copy.deepcopy(lm).engine is lm.engine
    assert lm.copy(temperature=0.5).engine is lm.engine
    state = json.loads(json.dumps(lm.engine.dump_state()))
    assert "program" not in state["options"]  # it belongs to this machine
    state["options"]["program"] = str(started.program)
    again = ServerEngine.load_state(state)
    assert (again.model_string, again.pid) == (lm.model, lm.engine.pid)
    assert AsyncServerEngine.load_state(state).engine.model_string == lm.model
    with pytest.raises(ModelError, match="changed since"):
        ServerEngine.load_state({**state, "identity": "0" * 12})
    assert pickle.dumps(state)


def test_a_student_on_a_server_runs_a_program(started: Started) -> None:
    lm = started.lm()
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    with dspy.context(adapter=dspy.ChatAdapter()):
        assert program(question="Why?").answer == "short and good"
    sent = seen(lm)["seen"][-1]["body"]["messages"]
    assert [message["role"] for message in sent] == ["system", "user"]


def test_another_engines_model_string(started: Started) -> None:
    lm = started.lm()
    with pytest.raises(lm15.UnsupportedModelError):
        lm.engine.serving("local/other@0")
