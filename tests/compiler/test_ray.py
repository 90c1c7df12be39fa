"""Ray: a local cluster of two workers asks a real server, and the result is that of threads."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import dspy
import psutil
import pytest

import dspyc
from dspyc.compiler.records import read_run
from dspyc.errors import ConfigError
from dspyc.providers.local import LocalProvider
from tests.compiler import test_native_replies as native
from tests.models.openai_server import ManyAtOnce
from tests.optimizers.simulated import share

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
KEY = "sk-canary-0123456789abcdef"


class Server(BaseHTTPRequestHandler):
    """Chat completions that depend on the prompt alone. `meet` is called for each request and may answer with a status."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    lock = threading.Lock()
    answered: Counter[str] = Counter()  # noqa: RUF012 (one server at a time); by the whole request
    count = itertools.count(1)
    meet: Callable[[int], int] = staticmethod(lambda number: 200)

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            number = next(Server.count)
        status = Server.meet(number)
        asked = json.dumps(body["messages"])
        text = f"[[ ## answer ## ]]\n{share(asked) < 0.5}\n\n[[ ## completed ## ]]"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        with self.lock:  # before the answer, behind which a test may look
            self.answered[asked] += status == 200
        told = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        data = json.dumps(told if status == 200 else {"error": {"message": f"refused for {KEY}"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    context = ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    yield context.address_info["gcs_address"]
    logs = Path(context.address_info["session_dir"])
    ray.shutdown()
    for path in logs.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


@pytest.fixture
def address() -> Iterator[str]:
    Server.answered, Server.count, Server.meet = Counter(), itertools.count(1), staticmethod(lambda number: 200)
    server = ManyAtOnce(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def program(address: str, **settings: Any) -> dspy.Predict:
    made = dspy.Predict("question -> answer: bool")
    made.set_lm(dspy.LM("openai/m", api_base=address, api_key=KEY, engine="lm15", **{"cache": False, **settings}))
    return made


def examples(number: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"is {i} odd?", answer=bool(i % 2)).with_inputs("question") for i in range(number)]


DATA = {"trainset": examples(10), "valset": examples(12)}


def right(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    return trace is not None or bool(prediction.answer == example.answer)  # every run teaches


def search(run_dir: Path, executor: Any, **settings: Any) -> dspyc.BootstrapFewShotWithRandomSearch:
    chosen = {"num_candidate_programs": 2, "num_threads": 4, "race": False, "show_progress": False, **settings}
    return dspyc.BootstrapFewShotWithRandomSearch(right, executor=executor, run_dir=run_dir, **chosen)


def found(run_dir: Path, made: dspy.Module) -> Any:
    """All that is to be the same, whoever asked."""
    run = read_run(run_dir)
    told = [(c["program"].demos, c["score"], c["subscores"]) for c in made.candidate_programs]
    steps = {trace["id"]: (trace["score"], [call["replies"] for step in trace["steps"] for call in step["calls"]])
             for trace in run.traces()}  # fmt: skip
    return made.demos, told, run.call_keys(), steps, run.summary()["calls"]


def test_a_search_finds_the_same_with_the_same_ledger(cluster: str, address: str, tmp_path: Path) -> None:
    with_threads = search(tmp_path / "threads", "threads").compile(program(address), **DATA)
    answered, Server.answered = Server.answered, Counter()
    with_ray = search(tmp_path / "ray", "ray").compile(program(address), **DATA)
    assert Server.answered == answered
    assert found(tmp_path / "ray", with_ray) == found(tmp_path / "threads", with_threads)
    search(tmp_path / "threads", "ray").compile(program(address), **DATA)  # either goes on where the other was
    assert Server.answered == answered


def workers() -> set[int]:
    """The process ids of the actors that ask."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "_Worker" in " ".join([process.name(), *process.cmdline()]):
                found.add(process.pid)
    return found


def test_a_worker_that_is_killed_is_an_event_and_its_requests_are_made_again(
    cluster: str, address: str, tmp_path: Path
) -> None:
    def kill_one(number: int) -> int:
        if number == 9:
            os.kill(min(workers() - before), signal.SIGKILL)
        return 200

    with_threads = search(tmp_path / "threads", "threads").compile(program(address), **DATA)
    before = workers()  # some of an earlier test may not have ended yet
    Server.count, Server.meet = itertools.count(1), staticmethod(kill_one)
    with_ray = search(tmp_path / "ray", "ray").compile(program(address), **DATA)
    assert found(tmp_path / "ray", with_ray) == found(tmp_path / "threads", with_threads)
    (event,) = [event for event in read_run(tmp_path / "ray").events() if event["kind"] == "worker lost"]
    assert "died" in event["error"]


def test_faults_pass_and_are_seen_for_what_they_are(cluster: str, address: str, tmp_path: Path) -> None:
    Server.meet = staticmethod(lambda number: (429, 500)[number // 5 % 2] if number % 5 == 0 else 200)
    made = dspyc.BootstrapFewShot(right, executor="ray", num_threads=4, run_dir=tmp_path, max_bootstrapped_demos=12,
                                  max_labeled_demos=0, show_progress=False)  # fmt: skip
    report = made.compile(program(address), trainset=examples(12)).report
    assert (report.dataset["runs"], report.dataset["failed"]) == (12, 0)
    assert max(Server.answered.values()) == 1
    Server.meet = staticmethod(lambda number: 401)
    report = dspyc.BootstrapFewShotWithRandomSearch(
        right, executor="ray", num_candidate_programs=0, run_dir=tmp_path / "refused", show_progress=False, race=False
    )
    with pytest.raises(dspyc.errors.BootstrapError, match="LMAuthError"):
        report.compile(program(address, num_retries=0), trainset=examples(4), valset=examples(4))


def test_a_budget_is_kept_to_the_call(cluster: str, address: str, tmp_path: Path) -> None:
    limited = search(tmp_path, "ray", budget=dspyc.Budget(calls=11))
    report = limited.compile(program(address), **DATA).report
    assert sum(Server.answered.values()) == 11
    assert "11 calls" in report.stopped


def test_what_the_cache_of_the_workers_answers_is_no_call(cluster: str, address: str, tmp_path: Path) -> None:
    first, second = (
        search(tmp_path / name, "ray").compile(program(address, cache=True), **DATA).report for name in ("one", "two")
    )
    assert first.spent["calls"] == sum(Server.answered.values())
    assert second.spent["calls"] == 0
    assert second.calls == first.calls


def test_a_compile_that_was_ended_asks_nothing_again(cluster: str, address: str, tmp_path: Path) -> None:
    """Ctrl-C, then kill -9, then to its end."""
    script = (
        "import sys; from pathlib import Path; from tests.compiler.test_ray import *\n"
        "search(Path(sys.argv[1]), 'ray').compile(program(sys.argv[2]), **DATA)"
    )
    recorded = 0
    for kind in (signal.SIGINT, signal.SIGKILL):
        Server.count, reached, ended = itertools.count(1), threading.Event(), threading.Event()
        Server.meet = staticmethod(lambda number, reached=reached, ended=ended: hold(number >= 15, reached, ended))
        asking = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), address], env={**os.environ, "RAY_ADDRESS": cluster}
        )
        assert reached.wait(300)
        asking.send_signal(kind)
        asking.wait(120)
        ended.set()
        before, recorded = recorded, len(read_run(tmp_path).call_keys())
        assert recorded > before
    Server.meet = staticmethod(lambda number: 200)
    report = search(tmp_path, "ray").compile(program(address), **DATA).report
    assert report.replayed == recorded
    assert sum(Server.answered.values()) - len(Server.answered) <= 2 * 4  # those under way at each end


def hold(late: bool, reached: threading.Event, ended: threading.Event) -> int:
    if late:
        reached.set()
        ended.wait(300)
    return 200


class Held:
    """An engine that cannot be sent."""

    supports_function_calling = False

    def __init__(self) -> None:
        self.socket = threading.Lock()

    def complete(self, request: Any) -> Any:
        raise AssertionError

    def __deepcopy__(self, memo: dict[int, Any]) -> "Held":
        return self


def held() -> dspy.LM:
    return dspy.LM("held/here", engine=Held(), cache=False)


def few_shot(run_dir: Path, **settings: Any) -> dspyc.BootstrapFewShot:
    return dspyc.BootstrapFewShot(right, run_dir=run_dir, num_threads=2, show_progress=False, **settings)


def finetune(run_dir: Path) -> dspyc.BootstrapFinetune:
    return dspyc.BootstrapFinetune(
        right, teacher_lm=held(), executor="ray", run_dir=run_dir, num_threads=2, show_progress=False
    )


OPTIMIZERS: dict[str, Callable[[Path, dspy.Module], Any]] = {
    "search": lambda run_dir, student: search(run_dir, "ray").compile(
        student, trainset=examples(4), valset=examples(4)
    ),
    "few shot": lambda run_dir, student: few_shot(run_dir, executor="ray").compile(student, trainset=examples(4)),
    "a step of a sequence": lambda run_dir, student: dspyc.BetterTogether(right, p=few_shot(None)).compile(
        student, trainset=examples(4), valset=[], strategy="p", executor="ray", run_dir=run_dir
    ),
    "a pool of a step": lambda run_dir, student: dspyc.BetterTogether(
        right, k=dspyc.KNNFewShot(1, metric=right, num_threads=2, show_progress=False)
    ).compile(student, trainset=examples(4), valset=[], strategy="k", executor="ray", run_dir=run_dir),
    "what compares the steps": lambda run_dir, student: dspyc.BetterTogether(right, k=dspyc.LabeledFewShot()).compile(
        student, trainset=examples(4), valset=examples(4), strategy="k", executor="ray", run_dir=run_dir
    ),
    "the teacher of weights": lambda run_dir, student: finetune(run_dir).compile(student, trainset=examples(4)),
}


@pytest.mark.parametrize("compiled", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_asks_by_workers_and_what_cannot_be_sent_is_named(
    cluster: str, tmp_path: Path, compiled: Callable[[Path, dspy.Module], Any]
) -> None:
    student = dspy.Predict("question -> answer: bool")
    student.set_lm(
        held() if compiled is not OPTIMIZERS["the teacher of weights"] else dspyc.LM("openai/gpt-4.1-mini-2025-04-14")
    )
    with pytest.raises(ConfigError, match=r"'held/here' cannot be sent to Ray's workers: its `\w*engine"):
        compiled(tmp_path, student)


def test_what_workers_cannot_read_is_named(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that is sent by its name, from a module that only this process has."""
    here = types.ModuleType("only_here")
    exec("class Engine:\n    def complete(self, request):\n        raise AssertionError", vars(here))
    monkeypatch.setitem(sys.modules, "only_here", here)
    student = dspy.Predict("question -> answer: bool")
    student.set_lm(dspy.LM("held/here", engine=here.Engine(), cache=False))
    with pytest.raises(ConfigError, match=r"cannot read 'held/here': ModuleNotFoundError: .*only_here"):
        search(tmp_path, "ray").compile(student, trainset=examples(4), valset=examples(4))


def test_tool_calls_and_logprobs_come_from_a_worker_whole(cluster: str, tmp_path: Path) -> None:
    native.check(native.run(tmp_path, native.OpenAIsObjects("own/m", logprobs=True), "ray"))


def test_a_model_on_this_machine_is_asked_here(cluster: str, tmp_path: Path) -> None:
    student = dspy.Predict("question -> answer: bool")
    student.set_lm(dspyc.ScriptedLM(lambda inputs: {"answer": True}, provider=LocalProvider()))  # it cannot be sent
    made = dspyc.BootstrapFewShot(right, executor="ray", num_threads=2, run_dir=tmp_path, show_progress=False)
    assert made.compile(student, trainset=examples(2)).report.dataset["bootstrapped"] == 2
    assert student.lm.engine.calls == 2


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="`executor` is 'spark'; 'threads' and 'ray' are allowed"):
        search(Path("nowhere"), "spark")
    script = (
        "import sys; sys.modules['ray'] = None\n"
        "from pathlib import Path; from dspyc.compiler.ray_workers import workers_of; from dspyc.compiler import Ledger\n"
        "import tempfile\n"
        "with Ledger(Path(tempfile.mkdtemp())) as ledger, workers_of('ray', num_threads=1, ledger=ledger): pass"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ConfigError: executor='ray' needs Ray, which is not installed. pip install 'dspyc[ray]'" in ended.stderr
