"""A whole BootstrapFinetune compile through OpenAI's protocol: the server really trains the bundled student on the file that it
was sent, and serves the result."""

import itertools
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import dspy
import pytest

import dspyc
from dspyc.compiler import Ledger
from dspyc.errors import ConfigError, LedgerError, ModelError, TrainingError
from dspyc.providers import forget
from dspyc.providers.openai import OpenAIProvider
from dspyc.providers.polling import Polling

from .openai_server import KEY, OpenAIServer

COLOURS = ("red", "green", "blue", "black")


class TrainingServer(OpenAIServer):
    """Base and tuned models are local ones; jobs end when their weights are there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(polls=0)
        self.folder = folder
        self.models = {"dspyc-tiny": dspyc.LocalLM("dspyc/tiny", max_tokens=12, cache=False, constrained=False)}
        self.one = threading.Lock()
        self.train, self.reply = self._train, self._reply

    def _train(self, content: bytes, model: str) -> None:
        from dspy.clients.utils_finetune import TrainDataFormat

        rows = [json.loads(line) for line in content.splitlines()]
        settings = {"num_train_epochs": 20, "learning_rate": 3e-3, "batch_size": 16, "show_progress": False}
        settings |= {"validation_fraction": 0, "save_steps": 1000}
        job = self.models["dspyc-tiny"].finetune(
            rows, TrainDataFormat.CHAT, {**settings, "output_dir": str(self.folder / "weights")}
        )
        made = job.result()
        if isinstance(made, Exception):
            raise made
        self.models[model] = made

    def _reply(self, request: dict[str, Any]) -> str:
        with self.one:
            return str(self.models[request["model"]](messages=request["messages"])[0])


def examples(number: int, start: int = 0) -> list[dspy.Example]:
    made = [dspy.Example(thing=f"a {COLOURS[i % 4]} thing {i}", colour=COLOURS[i % 4]) for i in range(start, number)]
    return [one.with_inputs("thing") for one in made]


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return bool(prediction.colour == example.colour)


class Sort(dspy.Signature):  # type: ignore[misc]
    """Which colour?"""

    thing: str = dspy.InputField()
    colour: Literal["red", "green", "blue", "black"] = dspy.OutputField()


def student(server: OpenAIServer) -> dspy.Module:
    program = dspy.Predict(Sort)
    lm = dspyc.LM("openai/dspyc-tiny", api_base=server.url, cache=False, num_retries=0)
    lm.provider.polling = Polling(first=0.01, most=0.05)
    program.set_lm(lm)
    return program


def compile_it(server: OpenAIServer, run_dir: Path, **settings: Any) -> Any:
    given: dict[str, Any] = {"metric": metric, "adapter": dspyc.TerseAdapter(), "run_dir": run_dir, "num_threads": 2}
    optimizer = dspyc.BootstrapFinetune(**{**given, "train_kwargs": {"seed": 3}, **settings})
    return optimizer.compile(student(server), trainset=examples(48), valset=examples(60, 48))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_a_compile_trains_elsewhere_and_the_score_rises(tmp_path: Path) -> None:
    with TrainingServer(tmp_path) as server:
        compiled = compile_it(server, tmp_path / "run")
        report = compiled.report
        assert report.before < 0.5 < report.after
        facts = report.training[0]
        assert (facts["provider"], facts["remote_id"], facts["base"]) == ("openai", "ftjob-1", "openai/dspyc-tiny")
        assert facts["model"] == compiled.lm.model
        assert len(facts["data"]) == 16
        assert server.jobs["ftjob-1"]["validation_file"] is not None

        again = compile_it(server, tmp_path / "run")
        elsewhere = compile_it(server, tmp_path / "another run")
        assert again.lm.model == elsewhere.lm.model == compiled.lm.model
        assert list(server.jobs) == ["ftjob-1"]

        compiled.save(tmp_path / "artifact")
        loaded = dspyc.load(tmp_path / "artifact")
        assert loaded(thing="a red thing 90").colour == compiled(thing="a red thing 90").colour
        assert loaded.lm.provider.name == "openai"
        kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "weights" not in p.parts)
        assert b"ftjob-1" in kept
        assert KEY.encode() not in kept


@pytest.mark.parametrize("base", ["gpt-4.1-mini-2025-04-14", "gpt-4o-2024-05-13"])
def test_weights_that_were_paid_for_are_kept_though_a_limit_in_usd_lets_nobody_ask_them(
    base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LiteLLM's table has the price of the first one's tuned models, and of the second one's base only."""
    listed = base.startswith("gpt-4.1")
    with OpenAIServer(polls=0) as server:
        server.reply = lambda request: "red"
        program = dspy.Predict(Sort)
        program.set_lm(dspyc.LM(f"openai/{base}", api_base=server.url, cache=False, num_retries=0))
        settings: dict[str, Any] = {"adapter": "terse", "run_dir": tmp_path / "run", "budget": dspyc.Budget(usd=5)}
        optimizer = dspyc.BootstrapFinetune(metric, **settings)
        compiled = optimizer.compile(program, trainset=examples(12), valset=examples(16, 12))
        assert f"ft:{base}" in compiled.lm.model
        assert compiled(thing="a red thing").colour == "red"
        assert (compiled.report.verdict is not None, list(server.jobs)) == (listed, ["ftjob-1"])
        unasked = "The compiled program is not compared. The price of 'openai/ft:gpt" in caplog.text
        assert unasked is not listed
        compiled.save(tmp_path / "built")


def test_what_cannot_be_ordered_is_found_before_a_teacher_is_called(tmp_path: Path) -> None:
    teacher = dspyc.ScriptedLM(lambda inputs: {"colour": "red"})
    with OpenAIServer() as server:
        for wrong in ({"n_epochs": 0}, {"api_key": "x"}, {"epochs": 3}):
            with pytest.raises(ConfigError):
                compile_it(server, tmp_path, train_kwargs=wrong, teacher_lm=teacher)
    assert teacher.engine.calls == 0


def test_a_model_that_does_not_answer_stops_the_compile_and_is_kept(tmp_path: Path) -> None:
    asked: list[float] = []

    def say_nothing(request: dict[str, Any]) -> str:
        if not request["model"].startswith("ft:"):
            return "red"
        asked.append(time.monotonic())
        return ""

    with OpenAIServer() as server:
        server.reply = say_nothing
        with pytest.raises(ModelError, match="its reply is empty") as caught:
            compile_it(server, tmp_path)
        waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert [wait > least for wait, least in zip(waits, (0.25, 0.5, 1, 2), strict=True)] == [True] * 4
        server.reply = lambda request: "red"
        assert compile_it(server, tmp_path).lm.model.endswith("ftjob-1")
        assert list(server.jobs) == ["ftjob-1"]
        forgotten = forget("ftjob-1")
        assert f"dspyc jobs forget {forgotten.id}" in caught.value.hint
        assert compile_it(server, tmp_path).lm.model.endswith("ftjob-2")
        assert compile_it(server, tmp_path / "another run").lm.model.endswith("ftjob-2")
        assert list(server.jobs) == ["ftjob-1", "ftjob-2"]


def test_a_job_that_takes_longer_is_not_taken_for_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenAIServer(polls=None) as server:
        server.reply = lambda request: "red"
        settings: dict[str, Any] = {"train_kwargs": {"timeout": 0.1}}
        with pytest.raises(TrainingError, match="after its timeout"):
            compile_it(server, tmp_path / "run", **settings)
        home = os.environ["DSPYC_HOME"]
        monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "another machine's"))
        with pytest.raises(LedgerError, match="its end was not recorded"):
            compile_it(server, tmp_path / "run", train_kwargs={"timeout": 0.2})
        monkeypatch.setenv("DSPYC_HOME", home)
        server.polls = 0
        assert compile_it(server, tmp_path / "run", **settings).lm.model.endswith("ftjob-1")
        assert list(server.jobs) == ["ftjob-1"]


@pytest.mark.parametrize("at_openai", [True, False], ids=["another account", "another server"])
def test_a_resume_finds_the_job_that_another_shell_ordered(
    at_openai: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenAIServer(polls=None) as server, OpenAIServer(polls=0) as other:
        server.reply, other.reply = (lambda request: "red"), (lambda request: "blue")

        class Here(OpenAIProvider):
            usual: ClassVar[Mapping[str, Any]] = {"api_base": server.url}

        def compile_here() -> dspy.Module:
            chosen = {"api_base": server.url, "provider": Here(None, {"api_key": KEY})} if at_openai else {}
            program = dspy.Predict(Sort)
            program.set_lm(dspyc.LM("openai/gpt-4.1-mini-2025-04-14", cache=False, num_retries=0, **chosen))
            settings: dict[str, Any] = {"adapter": "terse", "run_dir": tmp_path / "run", "num_threads": 2}
            optimizer = dspyc.BootstrapFinetune(metric, train_kwargs={"timeout": 0.1}, **settings)
            return optimizer.compile(program, trainset=examples(48), valset=examples(60, 48))

        variables = ("OPENAI_ORG_ID", "org-a") if at_openai else ("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv(*variables)
        with pytest.raises(TrainingError, match="after its timeout"):
            compile_here()
        monkeypatch.setenv(variables[0], "" if at_openai else other.url)
        server.polls = 0
        for _ in range(2):  # once while its end is not recorded, and once when it is
            compiled = compile_here()
            assert compiled.lm.model.endswith("ftjob-1")
            assert compiled(thing="a red thing").colour == "red"
        assert (len(server.jobs), len(other.jobs)) == (1, 0)
        forget("ftjob-1")
        compile_here()
        assert (len(server.jobs), len(other.jobs)) == ((2, 0) if at_openai else (1, 1))


def test_a_job_that_fails_says_why_and_may_be_repeated(tmp_path: Path) -> None:
    with OpenAIServer(failure="The file has 3 examples of one kind") as server:
        server.reply = lambda request: "red"
        with pytest.raises(TrainingError, match="3 examples of one kind"):
            compile_it(server, tmp_path)
        server.failure = ""
        assert compile_it(server, tmp_path).lm.model.endswith("ftjob-2")
    with Ledger(tmp_path) as ledger:
        assert ledger.events("compile")
