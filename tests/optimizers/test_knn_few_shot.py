"""KNNFewShot: a pool that is paid for once, and for every input the demos that are most like it."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.compiler.fitting import token_counter
from dspyc.compiler.records import read_run
from dspyc.errors import BootstrapError, ConfigError, DataError
from dspyc.signatures import prompt

from .desk import examples
from .simulated import questions, right, simulated_lm
from .witness import Witness

TRAIN = questions(0, 20)


def adder(lm: dspy.LM | None = None) -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm or simulated_lm())
    return program


def test_without_a_teacher_the_examples_are_the_pool_and_nothing_is_run() -> None:
    lm = simulated_lm()
    assert dspyc.KNNFewShot(3, TRAIN).plan(adder(lm)).calls == 0
    compiled = dspyc.KNNFewShot(3, TRAIN).compile(adder(lm))
    assert lm.engine.asked == []
    assert [dict(demo) for demo in compiled.demos] == [dict(example) for example in TRAIN]
    compiled(question="13 + 30")
    assert [message["role"] for message in lm.history[-1]["messages"]].count("assistant") == 3
    assert compiled.lm is lm


def test_a_teacher_runs_once_on_every_example_and_never_again(tmp_path: Path) -> None:
    teacher, student = simulated_lm(base=0.6), simulated_lm()
    optimizer = dspyc.KNNFewShot(2, TRAIN, metric=right, teacher_settings={"lm": teacher}, run_dir=tmp_path)
    plan = optimizer.plan(adder(student), teacher=adder(teacher))
    assert (plan.calls, teacher.engine.asked) == (20, [])
    compiled = optimizer.compile(adder(student), teacher=adder(teacher))
    assert sorted(set(teacher.engine.asked)) == sorted(example.question for example in TRAIN)
    paid = len(teacher.engine.asked)
    assert 2 < sum(demo.get("augmented", False) for demo in compiled.demos) < 20
    compiled(question="3 + 4")
    optimizer.compile(adder(student), teacher=adder(teacher))
    assert (len(teacher.engine.asked), len(student.engine.asked)) == (paid, 1)
    assert len(list(read_run(tmp_path).traces("teacher"))) == 20
    assert compiled.report.dataset["bootstrapped"] == sum(demo.get("augmented", False) for demo in compiled.demos)


def test_examples_given_to_compile_win() -> None:
    compiled = dspyc.KNNFewShot(2, TRAIN).compile(adder(), trainset=TRAIN[:5])
    assert len(compiled.demos) == 5
    with pytest.raises(DataError, match="trainset"):
        dspyc.KNNFewShot(2).compile(adder())


class TwoSteps(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.triage = dspy.Predict("ticket -> topic")
        self.reply = dspy.Predict("topic, customer -> text")

    def forward(self, ticket: str, customer: str) -> dspy.Prediction:
        return self.reply(topic=self.triage(ticket=ticket).topic, customer=customer)


TICKETS = [
    dspy.Example(ticket=f"{about} {i}", customer=who, topic=topic, text=f"Dear {who}").with_inputs("ticket", "customer")
    for i, (about, topic, who) in enumerate(
        [
            ("my parcel is late", "delivery", "Ada"),
            ("no money came back", "refund", "Ben"),
            ("lost password", "login", "Cyd"),
        ]
    )
]


def answer(inputs: dict[str, str]) -> dict[str, str]:
    return {"text": "Hello"} if "topic" in inputs else {"topic": "refund"}


def test_each_predictor_chooses_by_what_it_is_asked_itself() -> None:
    program = TwoSteps()
    program.set_lm(dspyc.ScriptedLM(answer, cache=False))
    compiled = dspyc.KNNFewShot(1, TICKETS).compile(program)
    compiled(ticket="the parcel is very late", customer="Cyd")  # the script says that it is about a refund
    first, second = (json.dumps(call["messages"]) for call in compiled.triage.lm.history[-2:])
    assert [name for name in ("delivery", "refund", "login") if name in first.split("customer")[0]] == ["delivery"]
    assert ("Dear Ben" in second) != ("Dear Cyd" in second)


def test_numbers_by_predictors_name() -> None:
    compiled = dspyc.KNNFewShot({"reply": 2}, TICKETS).compile(TwoSteps())
    assert (compiled.triage.demos, len(compiled.reply.demos), compiled.reply.nearest.k) == ([], 3, 2)


def test_what_cannot_be_chosen_is_refused_before_anything_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"\['route'\].*\['reply', 'triage'\]"):
        dspyc.KNNFewShot({"route": 2}, TICKETS).compile(TwoSteps())
    with pytest.raises(ConfigError, match=r"4 demos for predictor `triage`, and `trainset` has 3"):
        dspyc.KNNFewShot(4, TICKETS).compile(TwoSteps())
    with pytest.raises(ConfigError, match="`k`"):
        dspyc.KNNFewShot(0, TICKETS)
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)  # as Python has it for what is not there
    with pytest.raises(ConfigError, match=r"dspyc\[search\]"):
        dspyc.KNNFewShot(2, TICKETS)


def test_a_pool_that_is_smaller_than_hoped_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def few(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return str(example.question).startswith("1")

    settings = {"metric": few, "max_labeled_demos": 0, "run_dir": tmp_path}
    with caplog.at_level(logging.WARNING):
        compiled = dspyc.KNNFewShot(15, TRAIN, **settings).compile(adder())
    assert f"`self` has {len(compiled.demos)} demos to choose 15 from" in caplog.text
    compiled(question="1 + 1")


def test_any_k_of_a_pool_fit_the_students_context(caplog: pytest.LogCaptureFixture) -> None:
    train = [
        dspy.Example(question=f"question {i} " + "word " * (5 * i), answer="yes").with_inputs("question")
        for i in range(40)
    ]
    student = dspy.Predict("question -> answer")
    student.lm = dspyc.LocalLM("dspyc/tiny", cache=False, max_tokens=32)
    limit = 800
    with caplog.at_level(logging.WARNING):
        compiled = dspyc.KNNFewShot(4, train, fit_context=limit).compile(student)
    assert 4 < len(compiled.demos) < 40
    assert f"{40 - len(compiled.demos)} of 40 demos of `self` are left out" in caplog.text
    longest, count = train[-1].question, token_counter(student.lm)
    assert [demo.question for demo in compiled.demos] == [e.question for e in train[: len(compiled.demos)]]

    def length(demos: list[Any]) -> int:
        made = prompt(student, {"question": longest}, adapter=dspy.ChatAdapter(), lm=student.lm, demos=demos)
        return count(made)

    kept = len(compiled.demos)
    assert length(compiled.demos[-4:]) <= limit < length([*compiled.demos[-3:], train[kept]])
    compiled(question=longest)  # the engine refuses a prompt that is too long


def test_a_teacher_with_a_short_context_is_shown_the_labelled_demos_that_fit(tmp_path: Path) -> None:
    train = [
        dspy.Example(question=f"question {i} " + "word " * 120, answer="yes").with_inputs("question") for i in range(20)
    ]
    student = dspy.Predict("question -> answer")
    student.lm = dspyc.LocalLM("dspyc/tiny", cache=False, max_tokens=8)
    compiled = dspyc.KNNFewShot(4, train, metric=lambda *_: True, run_dir=tmp_path).compile(student)
    assert compiled.report.dataset["failed"] == 0
    with pytest.raises(BootstrapError, match="context"):
        dspyc.KNNFewShot(4, train, metric=lambda *_: True, run_dir=tmp_path, fit_context=False).compile(student)


def test_weights_are_trained_on_the_prompts_that_are_sent_and_no_row_shows_its_own_answer(tmp_path: Path) -> None:
    train = [dspy.Example(thing=e.first, colour=e.colours[0]).with_inputs("thing") for e in examples(12)]
    program = dspy.Predict("thing -> colour: Literal['red', 'green', 'blue', 'black']")
    with Witness(lambda inputs: "red") as server:
        program.set_lm(server.lm())
        tuned = dspyc.BootstrapFinetune(
            adapter=dspyc.TerseAdapter(), validation_fraction=0, run_dir=tmp_path, show_progress=False
        ).compile(dspyc.KNNFewShot(2, train).compile(program), trainset=train)
        assert len(server.rows) == 12
        for example, row in zip(train, server.rows, strict=True):
            tuned(thing=example.thing)
            assert server.asked[-1] == row[:-1]
            shown = [message["content"] for message in row[:-2] if message["role"] == "user"]
            assert len(shown) == 2
            assert not any(example.thing in text for text in shown)


def test_it_stands_in_a_sequence_of_optimizers(tmp_path: Path) -> None:
    sequence = dspyc.BetterTogether(right, n=dspyc.KNNFewShot(3), p=dspyc.LabeledFewShot(4))
    compiled = sequence.compile(
        adder(), trainset=TRAIN, valset=questions(50, 20), strategy="n -> p -> n", run_dir=tmp_path
    )
    last = next(c["program"] for c in compiled.candidate_programs if c["strategy"] == "n -> p -> n")
    middle = next(c["program"] for c in compiled.candidate_programs if c["strategy"] == "n -> p")
    assert (len(last.demos), last.nearest.k, len(middle.demos), middle.nearest) == (20, 3, 4, None)


def test_it_is_saved_as_an_artifact_with_a_report_that_says_what_each_predictor_shows(tmp_path: Path) -> None:
    compiled = dspyc.KNNFewShot({"reply": 2}, TICKETS).compile(TwoSteps())
    assert compiled.report.dataset == {"demos": {"triage": 0, "reply": 3}, "shown": {"reply": 2}}
    (pool, shown) = zip(*(column.cells for column in compiled.report.table().columns), strict=True)
    assert (pool, shown) == (("demos of `reply`", "3"), ("demos of `reply` for each input", "2"))
    compiled.save(tmp_path / "built")
    loaded = dspyc.load(tmp_path / "built", TwoSteps())
    assert (loaded.report, loaded.reply.nearest.k) == (compiled.report, 2)
    compiled.save(tmp_path / "state.json")  # DSPy's own
    plain = TwoSteps()
    plain.load(tmp_path / "state.json")
    assert len(plain.reply.demos) == 3
