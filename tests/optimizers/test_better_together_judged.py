"""BetterTogether: what its judge needs of a step's program, and that it says so where nothing could be scored."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import Teleprompter

import dspyc
from dspyc.compiler.sequence_report import SequenceReport, StepReport
from dspyc.errors import BootstrapError, ConfigError, ProgramError
from tests.optimizers.test_better_together import Learn, answer, counter, numbers, right, together


class Forgets(Teleprompter):  # type: ignore[misc]
    """An optimizer that resets the language models, as DSPy's do."""

    def compile(self, student: dspy.Module, *, trainset: Any) -> dspy.Module:
        return student.reset_copy()


class Pair(dspy.Module):  # type: ignore[misc]
    """Two predictors with a language model each."""

    def __init__(self, *lms: dspy.BaseLM) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict("word -> number: int"), dspy.Predict("word -> number: int")
        self.first.lm, self.second.lm = lms

    def forward(self, word: str) -> dspy.Prediction:
        return self.second(word=str(self.first(word=word).number))


def asked(lm: Any) -> int:
    return int(lm.engine.calls)


# -------------------------------------------------------------------------------------------------------- language models


@pytest.mark.parametrize("with_global", [False, True])
def test_a_step_of_dspys_own_is_scored_with_the_students_language_models(tmp_path: Path, with_global: bool) -> None:
    other = dspyc.ScriptedLM(lambda _: {"number": 0})
    with dspy.context(lm=other if with_global else None):
        compiled = together(p=dspy.LabeledFewShot(4)).compile(
            counter(), trainset=numbers(40), valset=numbers(8), strategy="p", run_dir=tmp_path
        )
    assert [step.score.mean for step in compiled.report.steps] == [0.5, 1.0]
    assert asked(other) == 0
    assert compiled.count.lm is not None


def test_each_predictor_gets_its_own_language_model_back(tmp_path: Path) -> None:
    one, two = (dspyc.ScriptedLM(lambda _, number=number: {"number": number}) for number in (3, 4))
    compiled = together(p=Forgets()).compile(
        Pair(one, two), trainset=numbers(8), valset=[], strategy="p", run_dir=tmp_path
    )
    assert [compiled.first.lm, compiled.second.lm] == [one, two]


def test_a_predictor_that_no_language_model_is_known_for_is_named(tmp_path: Path) -> None:
    class Adds(Teleprompter):  # type: ignore[misc]
        def compile(self, student: dspy.Module, *, trainset: Any) -> dspy.Module:
            student.another = dspy.Predict("word -> number: int")
            return student

    lms = dspyc.ScriptedLM(answer), dspyc.ScriptedLM(answer)
    with pytest.raises(ProgramError, match="predictor `another` has no language model after step p, by Adds"):
        together(p=Adds()).compile(Pair(*lms), trainset=numbers(8), valset=[], strategy="p", run_dir=tmp_path)
    with dspy.context(lm=dspyc.ScriptedLM(answer)):
        together(p=Adds()).compile(Pair(*lms), trainset=numbers(8), valset=[], strategy="p", run_dir=tmp_path)


# ----------------------------------------------------------------------------------------------------- runs that failed


def fails(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> Any:
    raise ValueError("no judgement")


@pytest.mark.parametrize(
    ("metric", "said"),
    [(fails, "no judgement"), *((lambda *_, value=value: value, "answered") for value in ("yes", None, float("nan")))],
)
def test_a_metric_that_never_scores_ends_it_before_any_step(
    tmp_path: Path, metric: Callable[..., Any], said: str
) -> None:
    learn = Learn(+1)
    with pytest.raises(ConfigError, match=f"The metric failed on every one of 8 held-out runs; the first: .*{said}"):
        dspyc.BetterTogether(metric, p=learn).compile(
            counter(), trainset=numbers(8), valset=numbers(8), strategy="p", run_dir=tmp_path
        )
    assert learn.given == []


def test_max_errors_ends_it_where_that_is_given(tmp_path: Path) -> None:
    def half(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        if example.number > 2:
            raise ValueError("no judgement")
        return right(example, prediction)

    data: dict[str, Any] = {"trainset": numbers(8), "valset": numbers(40), "strategy": "p", "run_dir": tmp_path}
    optimizer = dspyc.BetterTogether(half, p=Learn(+1))
    with pytest.raises(BootstrapError, match=r"`max_errors` is 10: .*no judgement"):
        optimizer.compile(counter(), max_errors=10, **data)
    compiled = optimizer.compile(counter(), **data)
    assert [step.failed for step in compiled.report.steps] == [20, 20]
    assert "20 of its runs failed" in compiled.report.conclusion
    assert "(20 failed)" in compiled.report._repr_html_()
    kept = json.loads(json.dumps(compiled.report.to_dict()))
    assert SequenceReport.from_dict(kept) == compiled.report
    kept["steps"][0].pop("failed")  # of a report that an earlier version wrote
    assert StepReport.from_dict(kept["steps"][0]).failed == 0


def test_programs_none_of_whose_runs_worked_are_not_called_the_best(tmp_path: Path) -> None:
    def broken(inputs: dict[str, str]) -> dict[str, Any]:
        raise RuntimeError("out of order")

    student = counter()
    student.set_lm(dspyc.ScriptedLM(broken))
    with pytest.raises(BootstrapError, match=r"8 of 8 held-out runs failed.*out of order"):
        together(p=Learn(+1)).compile(student, trainset=numbers(8), valset=numbers(4), strategy="p", run_dir=tmp_path)


def test_a_student_that_cannot_answer_yet_is_helped_by_a_step(tmp_path: Path) -> None:
    class Mends(Teleprompter):  # type: ignore[misc]
        def compile(self, student: dspy.Module, *, trainset: Any) -> dspy.Module:
            return counter(4)

    student = counter()
    student.set_lm(dspyc.ScriptedLM(lambda _: {"colour": "red"}))
    compiled = together(p=Mends()).compile(
        student, trainset=numbers(8), valset=numbers(4), strategy="p", run_dir=tmp_path
    )
    assert [(step.failed, step.score.mean) for step in compiled.report.steps] == [(4, 0.0), (0, 1.0)]


# -------------------------------------------------------------------------------------------------------------- arguments


def test_examples_may_come_from_a_generator(tmp_path: Path) -> None:
    learn = Learn(+1)
    compiled = together(p=learn).compile(
        counter(), trainset=iter(numbers(8)), valset=iter(numbers(4)), strategy="p", run_dir=tmp_path
    )
    assert len(learn.given[0]["trainset"]) == 8
    assert compiled.report.examples == 4
    assert compiled.report.plan["stages"][0]["examples"] == 4


@pytest.mark.parametrize("kind", [dspyc.BootstrapFewShotWithRandomSearch, dspy.BootstrapFewShotWithRandomSearch])
def test_steps_run_with_as_many_threads_as_the_compile_was_given(tmp_path: Path, kind: Any) -> None:
    lock, going, most = threading.Lock(), 0, 0
    meeting = threading.Event()

    def slowly(inputs: dict[str, str]) -> dict[str, Any]:
        nonlocal going, most
        with lock:
            going += 1
            most = max(most, going)
            if going > 1:
                meeting.set()
        meeting.wait(waited)
        with lock:
            going -= 1
        return answer(inputs)

    student = counter()
    student.set_lm(dspyc.ScriptedLM(slowly))
    step = kind(right, max_labeled_demos=2, max_bootstrapped_demos=1, num_candidate_programs=1)
    data: dict[str, Any] = {"trainset": numbers(20), "valset": numbers(4), "strategy": "p"}
    with dspy.context(lm=student.count.lm):
        waited = 0.002
        together(p=step).compile(student, num_threads=1, run_dir=tmp_path / "one", **data)
        assert most == 1
        waited = 60  # the first call waits for a second one
        together(p=step).compile(student, num_threads=4, run_dir=tmp_path / "four", **data)
    assert 1 < most <= 4
    assert step.num_threads is None


def test_a_step_with_threads_of_its_own_keeps_them(tmp_path: Path) -> None:
    class Takes(Learn):
        def compile(self, student: dspy.Module, *, trainset: Any, num_threads: int = 8) -> dspy.Module:
            return super().compile(student, trainset=trainset, note=str(num_threads))

    takes = Takes(+1)
    optimizer = together(p=takes)
    data: dict[str, Any] = {"trainset": numbers(8), "valset": [], "strategy": "p"}
    optimizer.compile(counter(), **data, run_dir=tmp_path / "1")
    optimizer.compile(counter(), num_threads=2, **data, run_dir=tmp_path / "2")
    own = {"p": {"num_threads": 3}}
    optimizer.compile(counter(), num_threads=2, optimizer_compile_args=own, **data, run_dir=tmp_path / "3")
    assert [given["note"] for given in takes.given] == ["8", "2", "3"]
