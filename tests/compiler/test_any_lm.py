"""Language models that no predictor holds when a run begins: their calls are recorded, counted and replayed like all others."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.compiler import Ledger, bootstrap, observe
from dspyc.signatures import adapt
from tests.optimizers.simulated import questions, right, simulated_lm


class ByContext(dspy.Module):
    def __init__(self, other: dspy.LM) -> None:
        super().__init__()
        self.add = dspy.Predict("question -> answer")
        self.given = {"other": other}

    def forward(self, question: str) -> Any:
        with dspy.context(lm=self.given["other"]):
            return self.add(question=question)


class ByArgument(ByContext):
    def forward(self, question: str) -> Any:
        return self.add(question=question, lm=self.given["other"])


class MadeInForward(ByContext):
    def forward(self, question: str) -> Any:
        fresh = dspy.Predict("question -> answer")
        fresh.lm = self.given["other"]
        return fresh(question=question)


class Directly(ByContext):
    def forward(self, question: str) -> Any:
        self.given["other"](messages=[{"role": "user", "content": f"[[ ## question ## ]]\n{question}"}])
        return self.add(question=question)


class Outside(ByContext):
    """Holds the LM where no copy of the program finds it: in a closure."""

    def __init__(self, other: dspy.LM) -> None:
        super().__init__(simulated_lm())
        self.choose = lambda: other

    def forward(self, question: str) -> Any:
        with dspy.context(lm=self.choose()):
            return self.add(question=question)


PROGRAMS = [ByContext, ByArgument, MadeInForward, Directly, Outside]


@pytest.mark.parametrize("kind", PROGRAMS)
def test_every_call_of_any_lm_is_recorded_and_replayed(kind: Callable[..., dspy.Module], tmp_path: Path) -> None:
    other, shared = simulated_lm(), simulated_lm()
    examples = questions(0, 5)
    for sitting in (1, 2):
        with dspy.context(lm=shared), Ledger(tmp_path) as ledger:
            subject = observe(kind(other), "teacher", identity="the same")
            traces = bootstrap(subject, examples, metric=right, ledger=ledger, num_threads=4, show_progress=False)
            assert [trace.error for trace in traces] == [None] * 5
            asked = len(other.engine.asked) + len(shared.engine.asked)
            assert sum(ledger.calls().values()) == asked
        assert len(other.engine.asked) == 5, f"sitting {sitting}"
    assert len(shared.engine.asked) == (5 if kind is Directly else 0)


def test_a_judge_in_the_metric_is_recorded_and_counts_against_the_budget(tmp_path: Path) -> None:
    judge, student = simulated_lm(1.0), simulated_lm(1.0)
    judged = dspy.Predict("question -> answer")
    judged.lm = judge

    def agree(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
        return bool(judged(question=example.question).answer == prediction.answer)

    examples = questions(0, 20)
    for _ in range(2):
        with dspy.context(lm=student), Ledger(tmp_path) as ledger:
            subject = observe(dspy.Predict("question -> answer"), "student", identity="the same")
            bootstrap(subject, examples, metric=agree, ledger=ledger, num_threads=4, show_progress=False)
    assert len(judge.engine.asked) == len(student.engine.asked) == 20

    with dspy.context(lm=simulated_lm()), Ledger(tmp_path / "small", budget=dspyc.Budget(calls=8)) as ledger:
        judge.engine.asked.clear()
        subject = observe(dspy.Predict("question -> answer"), "student", identity="the same")
        bootstrap(subject, examples, metric=agree, ledger=ledger, num_threads=1, show_progress=False)
        assert len(judge.engine.asked) == 4
        assert ledger.meter.spent.calls == 8


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_lm_that_the_shared_adapter_holds_is_recorded_and_counts_against_the_budget(
    tmp_path: Path, asynchronous: bool
) -> None:
    class Adds(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            return asyncio.run(self.add.acall(question=question)) if asynchronous else self.add(question=question)

    student = dspyc.ScriptedLM(lambda inputs: {"text": "in words"})
    extractor = dspyc.ScriptedLM(lambda inputs: {"answer": "right"}, model="scripted/extractor")
    adapter = dspy.TwoStepAdapter(extractor)
    for _ in range(2):
        with dspy.context(lm=student, adapter=adapter), Ledger(tmp_path, budget=dspyc.Budget(calls=20)) as ledger:
            subject = observe(Adds(), "student", identity="the same")
            bootstrap(subject, questions(0, 5), metric=None, ledger=ledger, num_threads=2, show_progress=False)
            assert ledger.calls() == {"student": 10}
            assert ledger.meter.spent.calls == 10
        assert (student.engine.calls, extractor.engine.calls) == (5, 5)
    assert adapter.extraction_model is extractor


def test_a_teacher_s_forward_chooses_its_own_lm(tmp_path: Path) -> None:
    other, shared = simulated_lm(2.0), simulated_lm(2.0)
    with dspy.context(lm=shared):
        optimizer = dspyc.BootstrapFewShot(right, max_bootstrapped_demos=2, run_dir=tmp_path, show_progress=False)
        compiled = optimizer.compile(ByContext(other), trainset=questions(0, 4))
    assert compiled.add.demos
    assert other.engine.asked
    assert not shared.engine.asked


@pytest.mark.parametrize("kind", [ByContext, ByArgument, Outside])
def test_an_lm_that_forward_chooses_gives_other_replies_in_later_rounds(
    kind: Callable[..., dspy.Module], tmp_path: Path
) -> None:
    asked: list[Any] = []

    class Listener(dspy.utils.callback.BaseCallback):  # type: ignore[misc]
        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            asked.append((instance.model, instance.kwargs.get("rollout_id"), instance.kwargs.get("temperature")))

    replies, judge = iter(["wrong", "wrong", "right"]), dspy.Predict("answer -> good: bool")
    judge.lm = dspyc.ScriptedLM(lambda inputs: {"good": inputs["answer"] == "right"}, model="scripted/judge")
    other = dspyc.ScriptedLM(lambda inputs: {"answer": next(replies)}, model="scripted/other")
    with dspy.context(callbacks=[Listener()], lm=simulated_lm()):
        optimizer = dspyc.BootstrapFewShot(
            lambda example, prediction, trace=None: judge(answer=prediction.answer).good,
            **{"max_rounds": 3, "max_bootstrapped_demos": 1, "max_labeled_demos": 0},
            run_dir=tmp_path,
            show_progress=False,
        )
        compiled = optimizer.compile(kind(other), trainset=questions(0, 1))
    assert [demo.answer for demo in compiled.add.demos] == ["right"]
    assert [call for call in asked if "other" in call[0]] == [
        ("scripted/other", None, None),
        ("scripted/other", 1, 1.0),
        ("scripted/other", 2, 1.0),
    ]
    assert [call for call in asked if "judge" in call[0]] == [("scripted/judge", None, None)] * 2  # "wrong" once


def test_callbacks_hear_of_each_format_and_parse_once(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listener(dspy.utils.callback.BaseCallback):  # type: ignore[misc]
        def on_adapter_format_start(self, *args: Any, **kwargs: Any) -> None:
            heard.append("format")

        def on_adapter_parse_start(self, *args: Any, **kwargs: Any) -> None:
            heard.append("parse")

    with dspy.context(lm=simulated_lm(), callbacks=[Listener()]), Ledger(tmp_path) as ledger:
        subject = observe(dspy.Predict("question -> answer"), "teacher", identity="the same")
        bootstrap(subject, questions(0, 1), metric=right, ledger=ledger, show_progress=False)
    assert sorted(heard) == ["format", "parse"]


def says_right(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    return bool(prediction.answer == "right")


class InJson(dspy.Module):
    """Sets an adapter in `forward`, and an LM that no predictor holds."""

    def __init__(self, lm: dspy.BaseLM) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.choose = lambda: lm

    def forward(self, question: str) -> Any:
        with dspy.context(lm=self.choose(), adapter=dspy.JSONAdapter()):
            return self.answer(question=question)


def in_json() -> dspyc.ScriptedLM:
    return dspyc.ScriptedLM(lambda inputs: '{"answer": "right"}', model="scripted/json")


@pytest.mark.parametrize("copied", [False, True])
def test_calls_under_an_adapter_of_forward_s_own_are_recorded_and_counted(copied: bool, tmp_path: Path) -> None:
    lm = in_json()
    program: dspy.Module = InJson(lm)
    if copied:  # dspy.BestOfN gives its copies the LM that it finds
        program = dspy.BestOfN(program, N=1, reward_fn=lambda arguments, prediction: 1.0, threshold=1.0)
        program.set_lm(lm)
    with dspy.context(lm=dspyc.ScriptedLM(lambda inputs: {"answer": "wrong"})):
        for _ in range(2):
            with Ledger(tmp_path, budget=dspyc.Budget(calls=3)) as ledger:
                subject = observe(program, "teacher", identity="the same")
                traces = bootstrap(
                    subject, questions(0, 4), metric=says_right, ledger=ledger, num_threads=1, show_progress=False
                )
                assert ledger.calls() == {"teacher": 3}
                assert (len(traces), ledger.meter.spent.calls) == (3, 3)
            assert lm.engine.calls == 3


def test_a_judge_that_carries_its_adapter_is_recorded_and_counted(tmp_path: Path) -> None:
    lm, judge = in_json(), dspy.Predict("question -> answer")
    judge.lm = lm
    adapt(judge, dspy.JSONAdapter())

    def judged(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
        return bool(judge(question=example.question).answer == prediction.answer)

    program = dspy.Predict("question -> answer")
    program.set_lm(dspyc.ScriptedLM(lambda inputs: {"answer": "right"}))
    for _ in range(2):
        with Ledger(tmp_path, budget=dspyc.Budget(calls=6)) as ledger:
            subject = observe(program, "teacher", identity="the same")
            traces = bootstrap(
                subject, questions(0, 4), metric=judged, ledger=ledger, num_threads=1, show_progress=False
            )
            assert ledger.calls() == {"teacher": 6}
            assert [trace.score for trace in traces] == [1.0] * 3
        assert lm.engine.calls == 3
    assert judge.lm is lm


def test_the_lm_of_an_adapter_that_a_predictor_carries_is_recorded(tmp_path: Path) -> None:
    student = dspyc.ScriptedLM(lambda inputs: {"text": "in words"})
    extractor = dspyc.ScriptedLM(lambda inputs: {"answer": "right"}, model="scripted/extractor")
    program = dspy.Predict("question -> answer")
    program.set_lm(student)
    adapt(program, dspy.TwoStepAdapter(extractor))
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            subject = observe(program, "teacher", identity="the same")
            traces = bootstrap(subject, questions(0, 4), metric=says_right, ledger=ledger, show_progress=False)
        assert [trace.score for trace in traces] == [1.0] * 4
        assert (student.engine.calls, extractor.engine.calls) == (4, 4)
