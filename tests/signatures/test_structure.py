"""Predictors by name, copies, and whether a teacher is the student's equal."""

import copy
from typing import Any, Literal

import dspy
import pytest

from dspyc.errors import ProgramError
from dspyc.signatures import check_equivalent, check_student, copy_program, predictors

from .programs import Nested, Spicy, Stubborn, answering, build


def test_names_are_dspys_own_and_frozen_sub_modules_are_included() -> None:
    program = Nested()
    names = list(predictors(program))
    assert names == ["first", "steps[0].predict", "steps[1]", "table['k']", "pair[0]", "frozen.predict"]
    assert list(predictors(program, frozen=False)) == [name for name, _ in program.named_predictors()] == names[:-1]
    assert predictors(program)["first"] is program.table["same"]


@pytest.mark.parametrize("program", [dspy.Predict("q -> a"), dspy.ChainOfThought("q -> a"), dspy.ReActV2("q -> a", [])])
def test_names_of_dspys_own_modules(program: dspy.Module) -> None:
    assert list(predictors(program).items()) == program.named_predictors()
    program._compiled = True
    assert list(predictors(program, frozen=False)) == [name for name, _ in program.named_predictors()]


def test_modules_that_refer_to_each_other() -> None:
    program = Nested()
    program.steps[0].parent = program
    assert "steps[0].predict" in predictors(program)


def test_a_copy_shares_language_models_and_nothing_else() -> None:
    lm = answering(a="x", b="y", c="z")
    program = build()
    program.set_lm(lm)
    program.judge = lm
    program.steps[0].helpers = [lm]
    copied = copy_program(program)
    assert copied.judge is lm
    assert copied.steps[0].helpers[0] is lm
    for name, predictor in predictors(copied).items():
        assert predictor is not predictors(program)[name]
        assert predictor.lm is predictors(program)[name].lm
    assert copied.table["same"] is copied.first
    copied.first.demos.append("new")
    copied.first.signature = copied.first.signature.with_instructions("Other.")
    assert len(program.first.demos) == 1
    assert program.first.signature.instructions == "Sort the item."
    copied(q="?")
    assert lm.engine.calls == 1
    assert program.history == []


def test_a_copy_of_what_cannot_be_copied_shares_it_but_no_predictor() -> None:
    lm = answering(a="x")
    program = Stubborn(lm)
    program.set_lm(lm)
    with pytest.raises(TypeError):
        copy.deepcopy(program)
    copied = copy_program(program)
    assert copied.lock is program.lock
    assert copied.mixed[1] is program.mixed[1]
    assert copied.mixed[0] is copied.again is not program.again
    assert copied.again.lm is copied.judge["lm"] is lm
    copied.again.demos.append({"q": "1"})
    assert program.again.demos == []
    assert copied(q="?").a == "x"


class Teacher(Nested):
    pass


def test_equal_programs_pass_whatever_their_prompts() -> None:
    teacher = Teacher()
    teacher.first.signature = teacher.first.signature.with_instructions("Very different.")
    teacher.first.demos = [{"item": "x"}]
    teacher.extra = dspy.Predict("more -> less")
    check_equivalent(Nested(), teacher)


def _without(name: str) -> Nested:
    program = Nested()
    delattr(program, name)
    return program


def _with(signature: Any) -> Nested:
    program = Nested()
    program.pair = (Spicy(signature),)
    return program


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (_without("pair"), r"no predictor `pair\[0\]`; it has `first`"),
        (_with("question -> d"), r"`pair\[0\]` .* lacks the input field `q`; it has an input field `question` besides"),
        (_with("q -> d, e"), r"`pair\[0\]` .* has an output field `e` besides"),
        (_with("q -> d: int"), r"`pair\[0\]` .* declares the output field `d` as int, the student as str"),
        (_with("q: Literal['x'] -> d"), r"declares the input field `q` as Literal\['x'\], the student as str"),
        (_with("d -> q"), "lacks the input field `q`"),
        ("gpt-5", "The teacher is a str; a dspy.Module is allowed"),
        (Nested, "The teacher is the class Nested; .* Make an instance"),
        (dspy.Module(), "The teacher Module has no predictors"),
    ],
)
def test_other_teachers_are_refused_by_name(teacher: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        check_equivalent(Nested(), teacher)


def test_a_frozen_part_of_the_student_needs_no_teacher() -> None:
    check_equivalent(Nested(), _without("frozen"))


def test_types_that_are_the_same_by_content_are_equal() -> None:
    def make(options: Any) -> dspy.Module:
        return dspy.Predict(dspy.Signature({"q": (str, dspy.InputField()), "a": (options, dspy.OutputField())}, "Do."))

    check_equivalent(make(str | None), make(str | None))
    check_equivalent(make(Literal["x", "y"]), make(Literal["x", "y"]))
    for other in (Literal["x"], Literal["y", "x"], Literal["x", 1], list[str], str | None):
        with pytest.raises(ProgramError, match="declares the output field `a`"):
            check_equivalent(make(Literal["x", "y"]), make(other))


def test_a_student_needs_predictors_and_language_models() -> None:
    check_student(build())
    with dspy.context(lm=answering(a="x")):
        check_student(Nested())
    half = build()
    half.steps[1].lm = None
    with (
        dspy.context(lm=None),
        pytest.raises(ProgramError, match=r"predictor\(s\) `steps\[1\]` have no language model"),
    ):
        check_student(half)
    forgotten = build()
    forgotten.frozen.predict.lm = None
    with dspy.context(lm=None), pytest.raises(ProgramError, match=r"`frozen.predict` .*student.set_lm does not reach"):
        check_student(forgotten)
    with pytest.raises(ProgramError, match="has no predictors"):
        check_student(dspy.Module())
    with pytest.raises(ProgramError, match=r"is a dict; a dspy\.Module is allowed"):
        check_student({})
    half.steps[1].lm = "openai/gpt-5"
    with pytest.raises(ProgramError, match=r"is a str; a dspy\.LM is allowed"):
        check_student(half)


def test_a_student_of_frozen_parts_only_has_nothing_to_train() -> None:
    program = dspy.Module()
    program.inner = dspy.ChainOfThought("q -> a")
    program.inner._compiled = True
    with pytest.raises(ProgramError, match="compiled sub-modules"):
        check_student(program)
