"""BetterTogether: steps that build on each other, are judged on examples that none has seen, and fail aloud."""

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import Teleprompter

import dspyc
from dspyc.compiler import Ledger
from dspyc.compiler.sequence_report import SequenceReport
from dspyc.errors import BudgetError, ConfigError, DataError
from tests.optimizers import desk

WORDS = ("one", "two", "three", "four")


def right(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return bool(prediction.number == example.number)


def numbers(count: int) -> list[dspy.Example]:
    return [dspy.Example(word=f"{WORDS[i % 4]} {i}", number=i % 4 + 1).with_inputs("word") for i in range(count)]


def answer(inputs: dict[str, str]) -> dict[str, Any]:
    number = WORDS.index(inputs["word"].split()[0]) + 1
    return {"number": number if number <= int(inputs["known"]) else 0}


class Counts(dspy.Module):  # type: ignore[misc]
    """Knows as many words as it has demos."""

    def __init__(self, demos: int = 2) -> None:
        super().__init__()
        self.count = dspy.Predict("word, known -> number: int")
        self.count.demos = [dspy.Example(word=word, known="0", number=0) for word in WORDS[:demos]]

    def forward(self, word: str) -> dspy.Prediction:
        return self.count(word=word, known=str(len(self.count.demos)))


def counter(demos: int = 2) -> Counts:
    program = Counts(demos)
    program.set_lm(dspyc.ScriptedLM(answer))
    return program


class Learn(Teleprompter):  # type: ignore[misc]
    """An optimizer of a user's own: it adds demos or takes some away, and notes what it was given."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more
        self.given: list[dict[str, Any]] = []

    def compile(self, student: dspy.Module, *, trainset: Any, teacher: Any = None, note: str = "") -> dspy.Module:
        known = len(student.count.demos)
        self.given.append({"trainset": trainset, "teacher": teacher, "note": note, "known": known})
        made = counter(known + self.more)
        made.set_lm(student.count.lm)
        return made


class Fail(Teleprompter):  # type: ignore[misc]
    def compile(self, student: dspy.Module, *, trainset: Any) -> dspy.Module:
        raise RuntimeError("out of paper")


def together(**optimizers: Any) -> dspyc.BetterTogether:
    return dspyc.BetterTogether(right, **optimizers)


def outcomes(compiled: Any) -> list[tuple[str, str]]:
    return [(step.strategy, step.outcome) for step in compiled.report.steps]


def test_steps_build_on_each_other_but_not_on_one_that_made_it_worse(tmp_path: Path) -> None:
    better, worse = Learn(+1), Learn(-2)
    student = counter()
    compiled = together(b=better, w=worse).compile(
        student, trainset=numbers(40), valset=numbers(200), strategy="b -> w->b", run_dir=tmp_path
    )
    assert [given["known"] for given in better.given] == [2, 3]  # not 1: the step between was clearly worse
    assert [given["known"] for given in worse.given] == [3]
    assert outcomes(compiled) == [("", "not compared"), ("b", "better"), ("b -> w", "worse"), ("b -> w -> b", "better")]
    assert [step.score.mean for step in compiled.report.steps] == [0.5, 0.75, 0.25, 1.0]
    assert compiled.report.best == 3
    assert len(compiled.count.demos) == 4
    assert [(c["strategy"], c["score"]) for c in compiled.candidate_programs] == [
        ("b -> w -> b", 100.0),
        ("b", 75.0),
        ("", 50.0),
        ("b -> w", 25.0),
    ]
    assert len(student.count.demos) == 2


def test_the_student_itself_is_returned_where_nothing_helped(tmp_path: Path) -> None:
    compiled = together(w=Learn(-1)).compile(counter(), trainset=numbers(40), strategy="w", run_dir=tmp_path)
    assert len(compiled.count.demos) == 2
    assert compiled.report.best == 0
    assert compiled.report.examples == 4  # a tenth of the training examples
    assert "The student as it was was returned" in compiled.report.conclusion


def test_steps_never_see_the_examples_that_compare_them(tmp_path: Path) -> None:
    learn, data = Learn(+1), numbers(40)
    compared_on: set[str] = set()  # the steps here ask nothing

    def watched(inputs: dict[str, str]) -> dict[str, Any]:
        compared_on.add(inputs["word"])
        return answer(inputs)

    program = counter()
    program.set_lm(dspyc.ScriptedLM(watched))
    together(p=learn).compile(program, trainset=data, strategy="p -> p", valset_ratio=0.5, seed=3, run_dir=tmp_path)
    first, second = ([example.word for example in given["trainset"]] for given in learn.given)
    assert len(first) == len(compared_on) == 20
    assert compared_on | set(first) == {example.word for example in data}
    assert sorted(first) == sorted(second)
    assert first != second  # shuffled between steps
    assert [example.word for example in data] == [example.word for example in numbers(40)]


def test_steps_do_not_see_what_equals_an_example_that_compares_them(tmp_path: Path, caplog: Any) -> None:
    learn, data = Learn(+1), numbers(20)
    compiled = together(p=learn).compile(
        counter(), trainset=data + data, strategy="p", valset_ratio=0.25, run_dir=tmp_path
    )
    with Ledger(tmp_path) as ledger:
        compared_on = {step["inputs"]["word"] for run in ledger.traces("held-out") for step in run["steps"]}
    learned_from = [example.word for example in learn.given[0]["trainset"]]
    assert compared_on.isdisjoint(learned_from)
    assert compared_on | set(learned_from) == {example.word for example in data}
    assert compiled.report.examples == 10
    assert f"{30 - len(learned_from)} of 30 examples of `trainset` to learn from are left out" in caplog.text
    together(p=learn).compile(counter(), trainset=data, valset=data[:3], strategy="p", run_dir=tmp_path / "given")
    assert "3 of 3 examples of `valset` are in `trainset` too" in caplog.text
    assert len(learn.given[-1]["trainset"]) == 20


def test_examples_keep_their_order_where_they_are_not_to_be_shuffled(tmp_path: Path) -> None:
    learn, data = Learn(+1), numbers(12)
    together(p=learn).compile(
        counter(), trainset=data, valset=[], strategy="p -> p", shuffle_trainset_between_steps=False, run_dir=tmp_path
    )
    assert [given["trainset"] for given in learn.given] == [data, data]


def test_each_optimizer_gets_the_teachers_that_it_takes_and_its_own_arguments(tmp_path: Path) -> None:
    learn, teachers = Learn(+1), [counter(4), counter(3)]
    together(p=learn).compile(
        counter(),
        trainset=numbers(10),
        teacher=teachers,
        strategy="p",
        valset_ratio=0,
        optimizer_compile_args={"p": {"note": "hello"}},
        run_dir=tmp_path,
    )
    assert learn.given[0]["teacher"] is teachers[0]
    assert learn.given[0]["note"] == "hello"


def test_too_few_examples_to_compare_by_are_told_once(tmp_path: Path, caplog: Any) -> None:
    together(p=Learn(+1)).compile(counter(), trainset=numbers(5), strategy="p", run_dir=tmp_path)
    assert caplog.text.count("Too few examples to hold any out") == 1


def test_without_held_out_examples_the_last_program_is_returned(tmp_path: Path) -> None:
    compiled = together(p=Learn(+1), w=Learn(-1)).compile(
        counter(), trainset=numbers(10), strategy="p -> w", valset_ratio=0, run_dir=tmp_path
    )
    assert len(compiled.count.demos) == 2
    assert compiled.report.steps[-1].score is None


def test_an_error_in_a_step_is_the_compiles(tmp_path: Path, caplog: Any) -> None:
    with pytest.raises(RuntimeError, match="out of paper"):
        together(p=Learn(+1), f=Fail()).compile(counter(), trainset=numbers(20), strategy="p -> f", run_dir=tmp_path)
    assert f"Step p -> f failed. What came before it is kept: the same compile goes on from {tmp_path}" in caplog.text


@pytest.mark.parametrize("wanted", [True, False, None])
def test_the_traceback_of_a_failed_step_is_logged_where_it_is_wanted(
    tmp_path: Path, caplog: Any, wanted: bool | None
) -> None:
    with pytest.raises(RuntimeError, match="out of paper"):
        together(f=Fail()).compile(
            counter(), trainset=numbers(4), valset=[], strategy="f", provide_traceback=wanted, run_dir=tmp_path
        )
    assert ('raise RuntimeError("out of paper")' in caplog.text) is bool(wanted)


def test_a_compile_that_is_run_again_asks_nothing_again(tmp_path: Path) -> None:
    student = counter()
    for _ in range(2):
        compiled = together(p=Learn(+1)).compile(student, trainset=numbers(40), strategy="p", run_dir=tmp_path)
    assert student.count.lm.engine.calls == 2 * 4
    assert compiled.report.calls == {"held-out": 8}


def test_the_report_is_saved_and_shown(tmp_path: Path) -> None:
    compiled = together(p=Learn(+1)).compile(
        counter(), trainset=numbers(40), valset=numbers(8), strategy="p", run_dir=tmp_path / "run"
    )
    compiled.save(tmp_path / "artifact")
    kept = json.loads((tmp_path / "artifact" / "artifact.json").read_text())["report"]
    assert SequenceReport.from_dict(kept) == compiled.report
    assert compiled.report.conclusion in (tmp_path / "artifact" / "README.md").read_text()
    assert "<b>p</b>" in compiled.report._repr_html_()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strategy": "p -> x"}, r"`strategy` is 'p -> x'; names of \['p'\]"),
        ({"strategy": ""}, "`strategy` is ''"),
        ({"valset_ratio": 1}, "`valset_ratio` is 1"),
        ({"optimizer_compile_args": {"q": {}}}, "names 'q'"),
        ({"optimizer_compile_args": {"p": {"student": None}}}, r"gives 'p' \['student'\]"),
    ],
)
def test_bad_settings_are_named_before_any_call(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    student = counter()
    with pytest.raises(ConfigError, match=said):
        together(p=Learn(1)).compile(student, trainset=numbers(9), run_dir=tmp_path, **{"strategy": "p", **given})
    assert student.count.lm.engine.calls == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="`p` is a str; a DSPy optimizer is allowed"):
        dspyc.BetterTogether(right, p="prompts")
    with pytest.raises(ConfigError, match="`metric` is a int"):
        dspyc.BetterTogether(3)
    with pytest.raises(DataError, match="`trainset` is empty"):
        together(p=Learn(1)).compile(counter(), trainset=[], strategy="p")


def test_prompts_then_weights_with_the_optimizers_of_this_library(tmp_path: Path) -> None:
    optimizer = dspyc.BetterTogether(
        desk.metric,
        p=dspyc.BootstrapFewShot(metric=desk.metric, max_bootstrapped_demos=1, max_labeled_demos=0),
        w=dspyc.BootstrapFinetune(desk.metric, train_kwargs=desk.QUICK, holdout_fraction=0, show_progress=False),
    )
    student, teacher = desk.student(), desk.Desk()
    teacher.set_lm(dspyc.ScriptedLM(desk.expert))
    compiled = optimizer.compile(
        student, trainset=desk.examples(12), teacher=teacher, strategy="p -> w", valset_ratio=0.2, run_dir=tmp_path
    )
    prompts, weights = (c["program"] for c in sorted(compiled.candidate_programs, key=lambda c: c["strategy"])[1:])
    assert len(prompts.name.demos) == 1
    assert prompts.name.lm.model == student.name.lm.model
    assert len(weights.name.demos) == 1
    assert weights.name.lm.model != student.name.lm.model
    assert {path.name for path in tmp_path.glob("step-*")} == {"step-1-p", "step-2-w"}


class Elsewhere(Teleprompter):  # type: ignore[misc]
    """Trains a model that nobody knows the price of."""

    def compile(self, student: dspy.Module, *, trainset: Any) -> dspy.Module:
        made = student.deepcopy()
        made.set_lm(dspy.LM("openai/my-own-tune", engine=dspyc.ScriptedLM(answer).engine, cache=False))
        return made


def test_a_trained_model_without_a_price_is_kept_and_not_compared(tmp_path: Path, caplog: Any) -> None:
    program = counter()
    program.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=20))
    compiled = together(w=Elsewhere(), p=Learn(+1)).compile(
        program,
        **{"trainset": numbers(8), "valset": numbers(4), "strategy": "w -> p"},
        budget=dspyc.Budget(usd=5),
        run_dir=tmp_path,
    )
    assert outcomes(compiled) == [("", "not compared"), ("w", "not compared")]
    assert compiled.report.best == 0
    assert [(c["strategy"], c["program"].count.lm.model) for c in compiled.candidate_programs] == [
        ("", program.count.lm.model),
        ("w", "openai/my-own-tune"),
    ]
    assert "my-own-tune" in caplog.text


def test_a_budget_is_one_for_the_whole_sequence(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    def counted(inputs: dict[str, str]) -> dict[str, Any]:
        asked.append(inputs)
        return answer(inputs)

    def compiled(calls: int | None, folder: Path) -> Any:
        program = counter()
        program.set_lm(dspy.LM("openai/paid", engine=dspyc.ScriptedLM(counted).engine, cache=False))
        few = {name: dspyc.BootstrapFewShot(right, max_labeled_demos=0, num_threads=1) for name in ("a", "b")}
        return together(**few).compile(
            program,
            trainset=numbers(8),
            valset=numbers(4),
            strategy="a -> b",
            budget=None if calls is None else dspyc.Budget(calls=calls),
            run_dir=folder,
        )

    whole = compiled(None, tmp_path / "whole")
    needed = len(asked)
    assert whole.report.stopped is None
    assert whole.report.spent["calls"] == needed
    for calls in (5, 4 + 4, needed - 1):
        asked.clear()
        cut = compiled(calls, tmp_path / str(calls))
        assert len(asked) == cut.report.spent["calls"] == calls
        assert cut.report.stopped == f"{calls} calls"
        assert "was not finished" in cut.report.conclusion
        assert len(cut.report.steps) < 3
        asked.clear()
        assert outcomes(compiled(None, tmp_path / str(calls))) == outcomes(whole)
        assert len(asked) == needed - calls
    with pytest.raises(BudgetError, match="2 calls"):
        compiled(2, tmp_path / "too little")


def test_a_step_that_goes_on_in_a_folder_of_its_own_pays_once(tmp_path: Path) -> None:
    """An optimizer with a `run_dir` has one ledger for all its steps."""
    asked: list[dict[str, str]] = []

    def counted(inputs: dict[str, str]) -> dict[str, Any]:
        asked.append(inputs)
        return answer(inputs)

    program = counter()
    program.set_lm(dspy.LM("openai/paid", engine=dspyc.ScriptedLM(counted).engine, cache=False))
    few = dspyc.BootstrapFewShot(right, max_labeled_demos=0, num_threads=1, run_dir=tmp_path / "few")
    for _ in range(2):  # the second time all is known
        compiled = together(a=few, b=Learn(+1)).compile(
            program,
            **{"trainset": numbers(8), "valset": numbers(4), "strategy": "a -> b -> a"},
            budget=dspyc.Budget(calls=100),
            run_dir=tmp_path / "whole",
        )
        assert compiled.report.spent["calls"] == len(asked)
