"""Predictors that a program copies as it runs, as dspy.BestOfN and dspy.Refine do, and what they learn and show."""

import logging
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.compiler import Ledger, bootstrap, load_traces, observe, save_traces
from dspyc.compiler.dataset import Target, from_traces
from dspyc.compiler.demos import demos_of
from dspyc.compiler.trace import Trace
from dspyc.signatures import predictors
from tests.compiler.test_any_lm import InJson, in_json
from tests.optimizers import desk

QUESTIONS = [dspy.Example(question=f"q{i}", answer="right").with_inputs("question") for i in range(4)]


def right(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    return bool(prediction.answer == "right")


def reward(arguments: dict[str, Any], prediction: Any) -> float:
    return float(prediction.answer == "right")


def at_the_second_attempt() -> Any:
    """The teacher's function: its first answer to a question is wrong, all others are right."""
    seen: set[str] = set()

    def answer(inputs: dict[str, str]) -> dict[str, Any]:
        if "question" not in inputs:  # dspy.Refine's own predictor
            return {"discussion": "It erred.", "advice": '{"self": "Be right."}'}
        known = inputs["question"] in seen
        seen.add(inputs["question"])
        return {"answer": "right" if known else "wrong"}

    return answer


def best_of(number: int = 3, kind: Any = dspy.BestOfN, lm: Any = None) -> dspy.Module:
    program = kind(dspy.Predict("question -> answer"), N=number, reward_fn=reward, threshold=1.0)
    program.set_lm(lm or dspyc.ScriptedLM(at_the_second_attempt()))
    return program  # type: ignore[no-any-return]


def run(program: dspy.Module, folder: Path, examples: list[dspy.Example], **settings: Any) -> list[Trace]:
    with dspy.context(lm=predictors(program).popitem()[1].lm), Ledger(folder) as ledger:  # dspy.Refine asks DSPy's too
        subject = observe(program, "teacher", identity="the same", **settings)
        return bootstrap(subject, examples, metric=right, ledger=ledger, num_threads=1, show_progress=False)


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
def test_rows_are_of_the_attempt_that_was_kept(kind: Any, tmp_path: Path) -> None:
    program = best_of(kind=kind)
    traces = run(program, tmp_path, QUESTIONS)
    for trace in traces:
        (refused, kept) = trace.steps
        assert (refused.predictor, refused.outputs, refused.error) == (
            "module",
            None,
            "The program kept another attempt.",
        )
        assert (kept.predictor, kept.inputs, kept.outputs) == (
            "module",
            {"question": kept.inputs["question"]},
            {"answer": "right"},
        )
        assert len(trace.calls) == 2  # both were paid for
        assert {name: dict(demo) for name, demo in demos_of(trace).items()} == {
            "module": {"augmented": True, **kept.inputs, "answer": "right"}
        }
    targets = {"module": Target(predictors(program)["module"], dspy.ChatAdapter(), program.get_lm())}
    save_traces(traces, tmp_path / "traces.jsonl")
    for known in (traces, load_traces(tmp_path / "traces.jsonl")):
        dataset = from_traces(known, targets, threshold=None, scored=True, validation_fraction=0)
        assert dataset.report.rows == {"module": 4}
        assert all("right" in row["messages"][-1]["content"] for row in dataset.train["module"])
    again = run(program, tmp_path, QUESTIONS)
    assert all(call.replayed for trace in again for call in trace.calls)


def test_the_hint_of_refine_is_sent_and_is_not_learned(tmp_path: Path) -> None:
    (trace,) = run(best_of(kind=dspy.Refine), tmp_path, QUESTIONS[:1])
    first, second = (str(step.calls[0].messages) for step in trace.steps)
    assert "hint_" not in first
    assert "hint_" in second


def test_copies_that_cannot_be_told_apart_or_were_changed_have_no_name(tmp_path: Path) -> None:
    class Copies(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = dspy.Predict("question -> answer")
            self.other = self.one.deepcopy()  # of one `stage`
            self.changed = dspy.Predict("question -> answer")
            self.unchanged = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            changed = self.changed.deepcopy()
            changed.signature = changed.signature.with_instructions("Otherwise.")
            shown = self.changed.deepcopy()
            shown.demos = [dspy.Example(question="4?", answer="right")]
            for predictor in (self.one.deepcopy(), changed, shown, self.unchanged.deepcopy()):
                predictor(question=question)
            self.one(question=question)
            return self.other(question=question)

    program = Copies()
    program.set_lm(dspyc.ScriptedLM(lambda inputs: {"answer": "right"}))
    (trace,) = run(program, tmp_path, QUESTIONS[:1])
    assert [(step.predictor, step.outputs) for step in trace.steps] == [
        (name, {"answer": "right"}) for name in ("unchanged", "one", "other")
    ]


def test_a_whole_program_in_best_of_n_becomes_weights_and_demos(tmp_path: Path) -> None:
    teacher = dspyc.ScriptedLM(at_the_second_attempt())
    settings: dict[str, Any] = {"metric": right, "num_threads": 1, "show_progress": False}
    made = dspyc.BootstrapFinetune(
        **settings, teacher_lm=teacher, train_kwargs=desk.QUICK, holdout_fraction=0, run_dir=tmp_path / "weights"
    ).compile(best_of(lm=dspyc.LocalLM("dspyc/tiny", max_tokens=24, cache=False)), trainset=UNLABELLED)
    assert made.report.rows == {"module": 4}
    demos = dspyc.BootstrapFewShot(**settings, max_labeled_demos=0, run_dir=tmp_path / "demos")
    compiled = demos.compile(best_of(), trainset=QUESTIONS)
    assert [demo.answer for demo in compiled.module.demos] == ["right"] * 4


UNLABELLED = [
    dspy.Example(question=f"q{i}").with_inputs("question") for i in range(4)
]  # labels would teach in its place


def test_a_predictor_without_rows_is_named_before_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Sometimes(desk.Desk):
        def forward(self, first: str, second: str) -> dspy.Prediction:
            return dspy.Prediction(colours=[self.name(thing=thing).colour for thing in (first, second)])

    student = Sometimes()
    student.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=24, cache=False))
    optimizer = dspyc.BootstrapFinetune(
        desk.metric,
        teacher_lm=dspyc.ScriptedLM(desk.expert),
        **{"train_kwargs": desk.QUICK, "holdout_fraction": 0, "run_dir": tmp_path, "show_progress": False},
    )
    with caplog.at_level(logging.WARNING, "dspyc"):
        optimizer.compile(student, trainset=desk.examples(4))
    assert "Predictor(s) ['count'] have no rows: no good run called them." in caplog.text
    assert "learned ['name'] only" in caplog.text
    with Ledger(tmp_path) as ledger:
        assert [event["predictors"] for event in ledger.events("no rows")] == [["count"]]


def test_a_row_is_what_the_model_said_whatever_the_program_does_with_it(tmp_path: Path) -> None:
    class Sorts(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.name = dspy.Predict("question -> names: list[str]")

        def forward(self, question: str) -> Any:
            said = self.name(question=question)
            said.names.sort()
            return dspy.Prediction(answer="right", names=said.names)

    program = Sorts()
    program.set_lm(dspyc.ScriptedLM(lambda inputs: {"names": '["b", "a"]'}))
    (trace,) = run(program, tmp_path, QUESTIONS[:1])
    assert trace.prediction.names == ["a", "b"]
    assert trace.steps[0].outputs == {"names": ["b", "a"]}
    assert demos_of(trace)["name"].names == ["b", "a"]


def test_a_teacher_s_forward_and_settings_choose_its_adapter(tmp_path: Path) -> None:
    lm = in_json()
    settings: dict[str, Any] = {"metric": right, "max_labeled_demos": 0, "num_threads": 1, "show_progress": False}
    with dspy.context(lm=lm):
        compiled = dspyc.BootstrapFewShot(**settings, run_dir=tmp_path / "forward").compile(
            InJson(lm), trainset=QUESTIONS
        )
        assert len(compiled.answer.demos) == 4
        plain, settings["metric"] = dspy.Predict("question -> answer"), None
        for adapter in (dspy.JSONAdapter(), dspyc.TerseAdapter()):
            optimizer = dspyc.BootstrapFewShot(
                **settings, teacher_settings={"lm": lm, "adapter": adapter}, run_dir=tmp_path / "settings"
            )
            calls = lm.engine.calls
            report = optimizer.compile(plain, trainset=QUESTIONS).report
            assert report.dataset["bootstrapped"] == 4
            assert lm.engine.calls == calls + 4  # another adapter is another request
