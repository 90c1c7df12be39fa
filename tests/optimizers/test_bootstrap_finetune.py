"""BootstrapFinetune, from examples to a compiled program, with real training of the bundled student.

Every row of the field notes' list of what DSPy 3.4.1's own optimizer gets wrong is a test here or in the room that owns it.
"""

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any, get_args

import dspy
import pytest

import dspyc
from dspyc.cli.compile import AdapterName
from dspyc.compiler import Ledger
from dspyc.compiler.gate import OnRegression
from dspyc.compiler.records import read_run
from dspyc.errors import (
    BootstrapError,
    ConfigError,
    DataError,
    LedgerError,
    ProgramError,
    RegressionError,
    RenderError,
)
from dspyc.signatures import adapt, adapter_of, predictors, program_fingerprint
from dspyc.signatures.checks import ADAPTERS

from . import desk
from .desk import QUICK
from .witness import Witness


def optimizer(tmp_path: Path, **settings: Any) -> dspyc.BootstrapFinetune:
    given = {"metric": desk.metric, "train_kwargs": QUICK, "run_dir": tmp_path, "holdout_fraction": 0, "num_threads": 4}
    return dspyc.BootstrapFinetune(**{**given, **settings})


def compile_desk(tmp_path: Path, number: int = 12, *, answer: Any = desk.expert, **settings: Any) -> Any:
    teacher_lm = dspyc.ScriptedLM(answer)
    return optimizer(tmp_path, teacher_lm=teacher_lm, **settings).compile(
        desk.student(), trainset=desk.examples(number)
    )


def elsewhere(tmp_path: Path, **settings: Any) -> dspyc.BootstrapFinetune:
    """For students whose model a `Witness` trains."""
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    return optimizer(tmp_path, **{"train_kwargs": {}, "teacher_lm": teacher_lm, "validation_fraction": 0, **settings})


def events(tmp_path: Path, kind: str) -> list[dict[str, Any]]:
    with Ledger(tmp_path) as ledger:
        return ledger.events(kind)


# ------------------------------------------------------------------------------------------------- what is trained on what


def test_rows_belong_to_predictors_by_name_though_one_is_called_twice(tmp_path: Path) -> None:
    compiled = compile_desk(tmp_path, multitask=False, validation_fraction=0)
    # 24 steps of `name` and 12 of `count`, whose inputs repeat: 4 distinct pairs of colours.
    assert compiled.report.rows == {"name": 24, "count": 4}
    assert compiled.report.dataset["duplicates"] == 8
    assert {tuple(t["predictors"]) for t in compiled.report.training} == {("name",), ("count",)}
    assert compiled.name.lm.model != compiled.count.lm.model


class Seldom(dspy.Module):  # type: ignore[misc]
    """`name` is called for every example, `count` for one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.name = dspy.Predict("thing -> colour: Literal['red', 'green', 'blue', 'black']")
        self.count = dspy.Predict("colours: list[str] -> total: int")

    def forward(self, thing: str) -> dspy.Prediction:
        colour = self.name(thing=thing).colour
        return dspy.Prediction(colour=colour, total=self.count(colours=[colour]).total if "item" in thing else 0)


def test_a_predictor_without_rows_to_hold_out_is_trained_without_early_stopping(tmp_path: Path, caplog: Any) -> None:
    things = ["one red item", *(f"a {colour} thing {i}" for i, colour in enumerate(desk.COLOURS * 3))]
    program = Seldom()
    program.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=24, cache=False))
    compiled = optimizer(
        tmp_path,
        metric=None,
        teacher_lm=dspyc.ScriptedLM(desk.expert),
        multitask=False,
        validation_fraction=0.3,
        train_kwargs={**QUICK, "early_stopping_patience": 2, "early_stopping_threshold": 0.1},
    ).compile(program, trainset=[dspy.Example(thing=thing).with_inputs("thing") for thing in things])
    patience = {t["predictors"][0]: t["config"]["early_stopping_patience"] for t in compiled.report.training}
    assert patience == {"name": 2, "count": None}
    assert "Predictor(s) ['count'] have too few rows to hold any out" in caplog.text


def test_multitask_trains_one_set_of_weights_for_all(tmp_path: Path) -> None:
    compiled = compile_desk(tmp_path)
    assert compiled.name.lm is compiled.count.lm
    assert len(compiled.report.training) == 1


def test_several_lms_are_each_trained_on_their_own_predictors_rows(tmp_path: Path) -> None:
    student = desk.student()
    student.count.lm = dspyc.LocalLM("dspyc/tiny", max_tokens=24, cache=False)
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    compiled = optimizer(tmp_path, teacher_lm=teacher_lm).compile(student, trainset=desk.examples(12))
    assert [t["predictors"] for t in compiled.report.training] == [["name"], ["count"]]
    assert compiled.name.lm is not compiled.count.lm


def test_train_kwargs_and_adapters_may_differ_by_lm(tmp_path: Path) -> None:
    student = desk.student()
    student.count.lm = other = dspyc.LocalLM("dspyc/tiny", max_tokens=24, cache=False)
    compiled = optimizer(
        tmp_path,
        teacher_lm=dspyc.ScriptedLM(desk.expert),
        train_kwargs={student.name.lm: {**QUICK, "max_steps": 1}, other: QUICK},
        adapter={other: dspyc.TerseAdapter()},
    ).compile(student, trainset=desk.examples(8))
    assert [t["steps"] for t in compiled.report.training] == [1, 2]
    assert isinstance(adapter_of(compiled.count), dspyc.TerseAdapter)
    assert isinstance(adapter_of(compiled.name), dspy.ChatAdapter)


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter(), dspyc.TerseAdapter()])
def test_every_adapter_compiles_and_stays_with_its_predictors(tmp_path: Path, adapter: dspy.Adapter) -> None:
    compiled = compile_desk(tmp_path, 8, adapter=adapter)
    for predictor in predictors(compiled).values():
        assert type(adapter_of(predictor)) is type(adapter)


def test_an_adapter_that_cannot_be_trained_is_refused_before_any_teacher_call(tmp_path: Path) -> None:
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    adapter = dspy.TwoStepAdapter(extraction_model=dspyc.ScriptedLM(desk.expert))
    with pytest.raises(RenderError, match="TwoStepAdapter"):
        optimizer(tmp_path, teacher_lm=teacher_lm, adapter=adapter).compile(desk.student(), trainset=desk.examples(4))
    assert teacher_lm.engine.calls == 0


def test_an_output_that_the_student_could_never_write_is_refused_before_any_teacher_call(tmp_path: Path) -> None:
    student = dspy.Predict("thing -> colour: Literal['red\\nblue', 'green']")
    student.lm = dspyc.LocalLM("dspyc/tiny", cache=False)
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    with pytest.raises(
        ConfigError, match=r"Predictor `self`: Output `colour` of type .* cannot be constrained"
    ) as found:
        optimizer(tmp_path, teacher_lm=teacher_lm).compile(student, trainset=desk.examples(4))
    assert "constrained=False" in found.value.hint
    assert teacher_lm.engine.calls == 0


def test_two_tasks_of_one_terse_name_are_refused_before_any_teacher_call(tmp_path: Path) -> None:
    class Twice(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = dspy.Predict(dspy.Signature("text -> label", "Say the topic."))
            self.second = dspy.Predict(dspy.Signature("text -> label", "Say the mood."))

        def forward(self, text: str) -> dspy.Prediction:
            return dspy.Prediction(topic=self.first(text=text).label, mood=self.second(text=text).label)

    student = Twice()
    student.set_lm(dspyc.LocalLM("dspyc/tiny"))
    teacher_lm = dspyc.ScriptedLM(lambda inputs: {"label": "x"})
    trainset = [dspy.Example(text=f"text {i}").with_inputs("text") for i in range(4)]
    with pytest.raises(ConfigError, match="`first` and `second`"):
        optimizer(tmp_path, metric=None, teacher_lm=teacher_lm, adapter=dspyc.TerseAdapter()).compile(
            student, trainset=trainset
        )
    assert teacher_lm.engine.calls == 0


# ------------------------------------------------------------------------------------------------------------- who teaches


def test_a_teachers_own_lm_is_used_before_any_other(tmp_path: Path) -> None:
    own, spare, everywhere = (dspyc.ScriptedLM(desk.expert, model=f"scripted/{n}") for n in ("own", "spare", "global"))
    teacher = desk.Desk()
    teacher.name.lm = own
    with dspy.context(lm=everywhere):
        optimizer(tmp_path, teacher_lm=spare).compile(desk.student(), trainset=desk.examples(4), teacher=teacher)
    assert (own.engine.calls, spare.engine.calls, everywhere.engine.calls) == (8, 4, 0)
    assert teacher.name.lm is own
    assert teacher.count.lm is None


def test_several_teachers_all_teach(tmp_path: Path) -> None:
    def teacher(word: str) -> desk.Desk:
        program = desk.Desk()
        program.name.signature = program.name.signature.with_instructions(f"You are {word}.")
        program.set_lm(dspyc.ScriptedLM(desk.expert, model=f"scripted/{word}"))
        return program

    team = [teacher("one"), teacher("two")]
    compiled = optimizer(tmp_path).compile(desk.student(), trainset=desk.examples(4), teacher=team)
    assert compiled.report.dataset["traces"] == 8
    assert [t.name.lm.engine.calls for t in team] == [12, 12]


def test_without_a_teacher_labels_become_rows(tmp_path: Path) -> None:
    student = dspy.Predict(dspy.Signature("text -> label: Literal['a', 'b']"))
    student.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=8, cache=False))
    trainset = [dspy.Example(text=f"text {i}", label="ab"[i % 2]).with_inputs("text") for i in range(10)]
    compiled = optimizer(tmp_path, metric=lambda e, p: e.label == p.label).compile(student, trainset=trainset)
    assert compiled.report.rows == {"self": 9}  # a tenth of the examples measures the training's loss
    assert compiled.report.calls == {}


def test_without_teacher_and_labels_the_student_teaches_itself(tmp_path: Path) -> None:
    student = dspy.Predict("text -> label")
    student.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=8, cache=False))
    adapt(student, dspyc.TerseAdapter())
    trainset = [dspy.Example(text=f"text {i}").with_inputs("text") for i in range(3)]
    compiled = optimizer(tmp_path, metric=None).compile(student, trainset=trainset)
    assert compiled.report.calls == {"teacher": 3}
    assert student.lm.engine.calls == 3
    assert compiled.report.dataset["traces"] == 3


def test_a_student_that_teaches_itself_is_compared_with_itself_at_no_cost(tmp_path: Path) -> None:
    student = dspy.Predict("text -> label")
    student.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=8, cache=False))
    adapt(student, dspyc.TerseAdapter())
    trainset = [dspy.Example(text=f"text {i}").with_inputs("text") for i in range(5)]
    chosen = optimizer(tmp_path, metric=lambda e, p: len(e.text) == 6, holdout_fraction=0.4)
    roles = [(stage.role, stage.calls) for stage in chosen.plan(student, trainset=trainset).stages]
    assert roles == [("teacher", 3), ("student", 2), ("compiled", 2)]
    report = chosen.compile(student, trainset=trainset).report
    assert report.calls == dict(roles)
    assert report.teacher == report.before == 1.0


def test_a_teacher_of_other_structure_is_refused_by_name(tmp_path: Path) -> None:
    teacher = dspy.Predict("thing -> colour")
    teacher.set_lm(dspyc.ScriptedLM(desk.expert))
    with pytest.raises(ProgramError, match="no predictor `name`"):
        optimizer(tmp_path).compile(desk.student(), trainset=desk.examples(4), teacher=teacher)
    assert teacher.lm.engine.calls == 0


def test_a_teacher_without_an_lm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="`name`"):
        optimizer(tmp_path).compile(desk.student(), trainset=desk.examples(4), teacher=desk.Desk())


# --------------------------------------------------------------------------------------------------- what goes wrong in runs


def flaky(inputs: dict[str, str]) -> dict[str, Any] | str:
    """Raises on one thing, answers another so that nothing can be read from it."""
    if inputs.get("thing", "").endswith("thing 1"):
        raise RuntimeError("the model is down")
    return "I would rather not say." if inputs.get("thing", "").endswith("thing 2") else desk.expert(inputs)


def moody(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool | None:
    """A metric that forgets a path."""
    return None if example.first.endswith(" 3") else desk.metric(example, prediction)


def test_bad_examples_are_events_and_not_the_end(tmp_path: Path) -> None:
    compiled = compile_desk(tmp_path, 8, answer=flaky, metric=moody)
    assert compiled.report.dataset["failed"] == 3
    found = "\n".join(e["error"] for e in events(tmp_path, "bad example"))
    assert "the model is down" in found
    assert "AdapterParseError" in found
    assert "`moody` answered None" in found


def test_an_answer_that_is_half_readable_is_a_bad_example(tmp_path: Path) -> None:
    def forgetful(inputs: dict[str, str]) -> dict[str, Any]:
        return {"topic": "x"} if inputs["text"].endswith("1") else {"topic": "x", "mood": "y"}

    student = dspy.Predict("text -> topic, mood")
    student.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=8, cache=False))
    trainset = [dspy.Example(text=f"text {i}").with_inputs("text") for i in range(3)]
    compiled = optimizer(tmp_path, metric=None, teacher_lm=dspyc.ScriptedLM(forgetful)).compile(
        student, trainset=trainset
    )
    assert compiled.report.dataset["failed"] == 1
    assert sum(compiled.report.rows.values()) == 2
    (bad,) = events(tmp_path, "bad example")
    assert "AdapterParseError" in bad["error"]


def test_a_failed_step_keeps_its_own_inputs(tmp_path: Path) -> None:
    compile_desk(tmp_path, 8, answer=flaky)
    with Ledger(tmp_path) as ledger:
        failed = [t for t in ledger.traces("teacher") if t["error"] and "AdapterParseError" in t["error"]]
    (step,) = failed[0]["steps"]
    assert step["predictor"] == "name"
    assert step["inputs"] == {"thing": "a blue thing 2"}
    assert step["outputs"] is None
    assert "AdapterParseError" in step["error"]


def test_max_errors_stops_the_compile_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(BootstrapError, match="`max_errors` is 2") as caught:
        compile_desk(tmp_path, 12, answer=flaky, max_errors=2, num_threads=1)
    assert "the model is down" in str(caught.value)
    assert "not repeated" in caught.value.hint


@pytest.mark.parametrize("answer", [None, math.nan, "good"])
def test_a_metric_that_never_scores_is_an_error(tmp_path: Path, answer: Any) -> None:
    with pytest.raises(BootstrapError, match="answered"):
        compile_desk(tmp_path, 12, metric=lambda e, p, t=None: answer)


def test_a_metric_that_raises_is_an_error_with_its_words(tmp_path: Path) -> None:
    def broken(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return bool(prediction.no_such_field)

    with pytest.raises(BootstrapError, match="no_such_field"):
        compile_desk(tmp_path, 12, metric=broken)


@pytest.mark.parametrize("score", [0.01, -0.5])
def test_a_poor_score_does_not_teach_and_nothing_is_trained_on_nothing(tmp_path: Path, score: float) -> None:
    with pytest.raises(DataError, match="scored below 1") as caught:
        compile_desk(tmp_path, 4, metric=lambda e, p, t=None: score)
    assert "metric_threshold" in caught.value.hint
    assert not (tmp_path / "training").exists()


def test_a_threshold_of_zero_is_a_threshold(tmp_path: Path) -> None:
    kept = compile_desk(tmp_path / "zero", 4, metric=lambda e, p, t=None: 0.0, metric_threshold=0)
    assert kept.report.dataset["below"] == 0
    with pytest.raises(DataError, match="scored below 0"):
        compile_desk(tmp_path / "below", 4, metric=lambda e, p, t=None: -0.5, metric_threshold=0)


def test_the_metric_gets_the_runs_trace(tmp_path: Path) -> None:
    seen = []

    def watching(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        seen.append([len(trace), trace[0][1], trace[0][2].colour])
        return True

    compile_desk(tmp_path, 1, metric=watching)
    assert seen == [[3, {"thing": "a red thing 0"}, "red"]]


# --------------------------------------------------------------------------------------------- what the caller's objects keep


def test_the_callers_objects_stay_as_they_were(tmp_path: Path) -> None:
    student, trainset = desk.student(), desk.examples(6)
    student.name.demos = [{"thing": "a red hat", "colour": "red"}]
    teacher = desk.Desk()
    teacher.set_lm(dspyc.ScriptedLM(desk.expert))
    kwargs = dict(QUICK)
    before = program_fingerprint(student), program_fingerprint(teacher), [e.toDict() for e in trainset]
    identities = student.name.lm, student.count.lm, teacher.name.lm, teacher.name
    compiled = optimizer(tmp_path, train_kwargs=kwargs, exclude_demos=True).compile(
        student, trainset=trainset, teacher=teacher
    )
    assert before == (program_fingerprint(student), program_fingerprint(teacher), [e.toDict() for e in trainset])
    assert identities == (student.name.lm, student.count.lm, teacher.name.lm, teacher.name)
    assert kwargs == QUICK
    assert type(student.name) is dspy.Predict
    assert "forward" not in vars(teacher)
    assert "forward" not in vars(student)
    assert student._compiled is False
    assert compiled is not student
    twin = compiled.deepcopy()
    assert twin.name is not compiled.name
    assert twin.forward.__self__ is twin  # bound to itself, not to what it was copied from
    assert twin.name.lm is compiled.name.lm or twin.name.lm.engine is compiled.name.lm.engine
    assert compiled.name.demos == []
    assert student.name.demos


def test_demos_stay_in_prompts_unless_excluded(tmp_path: Path) -> None:
    student = desk.student()
    student.name.demos = [{"thing": "a red hat", "colour": "red"}]
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    compiled = optimizer(tmp_path, teacher_lm=teacher_lm).compile(student, trainset=desk.examples(4))
    assert compiled.name.demos == student.name.demos


@pytest.mark.parametrize("exclude_demos", [False, True])
def test_rows_have_the_demos_that_the_compiled_program_sends(tmp_path: Path, exclude_demos: bool) -> None:
    student, examples = desk.Desk(), desk.examples(8)
    student.name.demos = [{"thing": "a red hat", "colour": "red"}]
    with Witness(desk.expert) as server:
        student.set_lm(server.lm())
        compiled = elsewhere(tmp_path, exclude_demos=exclude_demos).compile(student, trainset=examples)
        server.asked.clear()
        for example in examples:
            compiled(**example.inputs())
        assert all(row[:-1] in server.asked for row in server.rows)
        with_demos = [row for row in server.rows if "a red hat" in str(row)]
        assert len(with_demos) == (0 if exclude_demos else 16)


def test_another_threshold_metric_or_adapter_in_the_same_folder_asks_the_teacher_nothing(tmp_path: Path) -> None:
    def half_for_red(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        return 0.5 if "red" in example.first else 1.0

    def answer(inputs: dict[str, str]) -> dict[str, Any] | str:
        return "red" if "text" in inputs else desk.expert(inputs)

    student, teacher_lm = desk.Desk(), dspyc.ScriptedLM(desk.expert)
    with Witness(answer) as server:
        student.set_lm(server.lm())
        counts, calls = [], []
        for changes in (
            {"metric": half_for_red},
            {"metric": half_for_red, "metric_threshold": 0.5},
            {"metric": desk.metric},
            {"metric": desk.metric, "adapter": dspyc.TerseAdapter()},
        ):
            compiled = elsewhere(tmp_path, teacher_lm=teacher_lm, **changes).compile(
                student, trainset=desk.examples(16), valset=desk.examples(18)[16:]
            )
            counts.append(compiled.report.rows["name"])
            calls.append(teacher_lm.engine.calls)
        assert counts == [24, 32, 32, 32]
        assert calls == [(16 + 2) * 3] * 4
        layouts = [b"[[ ## thing ## ]]" in file["content"] for file in server.files.values()]
        assert layouts == [True, True, False]  # of the second and third the rows are the same


# ------------------------------------------------------------------------------------------------------------------ the gate


def test_the_gate_reports_before_teacher_and_after(tmp_path: Path) -> None:
    def scored(program: dspy.Module) -> float:
        return sum(desk.metric(example, program(**example.inputs())) for example in held_out) / len(held_out)

    teacher_lm, held_out = dspyc.ScriptedLM(desk.expert), desk.examples(12)[8:]
    compiled = optimizer(tmp_path, teacher_lm=teacher_lm).compile(
        desk.student(), trainset=desk.examples(12)[:8], valset=held_out
    )
    report = compiled.report
    assert report.teacher == 1.0
    assert report.before == scored(desk.student())
    assert report.after == scored(compiled)
    assert report.interval[0] <= report.after - report.before <= report.interval[1]
    assert report.calls["teacher"] == 8 * 3 + 4 * 3


def test_without_a_valset_part_of_the_trainset_is_held_out(tmp_path: Path) -> None:
    compiled = compile_desk(tmp_path, 10, holdout_fraction=0.2)
    assert compiled.report.verdict.examples == 2
    assert compiled.report.dataset["traces"] == 8


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("given", [{}, {"valset": desk.examples(16)[10:]}])
def test_no_row_is_of_an_example_that_the_gate_asks(tmp_path: Path, given: dict[str, Any], times: int) -> None:
    """However often it stands in the training examples."""
    student, examples = desk.Desk(), desk.examples(10) * times
    with Witness(desk.expert) as server:
        student.set_lm(server.lm())
        elsewhere(tmp_path, holdout_fraction=0.2).compile(student, trainset=examples, **given)
        taught = {field for e in desk.examples(16) for field in e.inputs().values() if field in str(server.rows)}
    with Ledger(tmp_path) as ledger:
        runs = list(ledger.traces("student"))
    asked = {step["inputs"]["thing"] for run in runs for step in run["steps"] if step["predictor"] == "name"}
    assert len(runs) == (6 if given else 2 * times)
    assert asked.isdisjoint(taught)
    assert asked | taught == {field for e in [*examples, *given.get("valset", [])] for field in e.inputs().values()}


class Fixed(dspy.Module):  # type: ignore[misc]
    """Falls back to a right answer while its weights are the base's: compiling it can only make it worse."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.name = dspy.Predict("thing -> colour")

    def forward(self, thing: str) -> dspy.Prediction:
        lm = self.name.lm or dspy.settings.lm
        if lm.model == self.base:
            return dspy.Prediction(colour="red")
        return self.name(thing=thing) if "scripted" in lm.model else dspy.Prediction(colour="wrong")


def regressing(tmp_path: Path, on_regression: Any) -> Any:
    lm = dspyc.LocalLM("dspyc/tiny", max_tokens=8, cache=False)
    student = Fixed(lm.model)
    student.set_lm(lm)
    examples = [dspy.Example(thing=f"hat {i}", colour="red").with_inputs("thing") for i in range(8)]
    return optimizer(
        tmp_path,
        metric=lambda e, p: p.colour == e.colour,
        teacher_lm=dspyc.ScriptedLM(lambda inputs: {"colour": "red"}),
        on_regression=on_regression,
    ).compile(student, trainset=examples, valset=examples, teacher=Fixed("none"))


def test_a_regression_warns_raises_or_keeps_the_student(tmp_path: Path) -> None:
    warned = regressing(tmp_path, "warn")
    assert warned.report.after == 0.0
    assert warned.report.verdict.outcome == "worse"
    assert warned(thing="hat").colour == "wrong"
    with pytest.raises(RegressionError, match=r"scored 0\.000 on 8"):
        regressing(tmp_path, "raise")
    kept = regressing(tmp_path, "keep_student")
    assert kept.report.kept_student
    assert kept(thing="hat").colour == "red"


# ---------------------------------------------------------------------------------------------------------- arguments and input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metric": "exact"}, "`metric` is a str"),
        ({"on_regression": "ignore"}, "'warn', 'raise' and 'keep_student'"),
        ({"holdout_fraction": 1.5}, "`holdout_fraction` is 1.5"),
        ({"max_errors": 0}, "`max_errors` is 0"),
        ({"teacher_lm": "openai/gpt-5"}, "`teacher_lm` is a str"),
        ({"train_kwargs": "full"}, "`train_kwargs` is 'full'; a dict of settings"),
        ({"train_kwargs": {dspyc.ScriptedLM(desk.expert): "full"}}, "`train_kwargs` has 'full' for 'scripted/"),
        ({"adapter": "yaml"}, "`adapter` is 'yaml'; an adapter, 'terse', 'chat', 'json' or 'xml' is allowed"),
        ({"adapter": dspyc.TerseAdapter}, r"`adapter` is the class TerseAdapter.*Write TerseAdapter"),
        ({"adapter": {dspyc.ScriptedLM(desk.expert): 5}}, "`adapter` is a int"),
    ],
)
def test_arguments_are_checked_when_the_optimizer_is_made(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        dspyc.BootstrapFinetune(**settings)


def test_the_documentation_has_every_argument_with_its_default() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "finetune.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    table = {cells[0].strip("`"): cells[2].strip("`") for cells in lines if len(cells) > 2}
    arguments = inspect.signature(dspyc.BootstrapFinetune.__init__).parameters
    for name, argument in list(arguments.items())[1:]:
        assert table[name] == repr(argument.default)
    for value in get_args(OnRegression):
        assert f'| `"{value}"` |' in text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("terse", dspyc.TerseAdapter),
        ("chat", dspy.ChatAdapter),
        ("json", dspy.JSONAdapter),
        ("xml", dspy.XMLAdapter),
    ],
)
def test_adapters_have_the_names_of_the_command_line(name: str, kind: type) -> None:
    lm = dspyc.ScriptedLM(desk.expert)
    assert type(dspyc.BootstrapFinetune(adapter=name).adapter) is kind
    assert type(dspyc.BootstrapFinetune(adapter={lm: name}).adapter[lm]) is kind
    assert [each.value for each in AdapterName] == list(ADAPTERS)


def test_traces_are_given_as_a_list_or_as_the_path_of_their_file(tmp_path: Path) -> None:
    compile_desk(tmp_path / "paid", 6)
    file = tmp_path / "teacher.jsonl"
    dspyc.save_traces(read_run(tmp_path / "paid").traces("teacher"), file)
    rows = []
    for given in (file, str(file), dspyc.load_traces(file)):
        made = optimizer(tmp_path / "again").compile(desk.student(), trainset=desk.examples(6), traces=given)
        rows.append(made.report.rows)
    assert rows[0] == rows[1] == rows[2]
    assert optimizer(tmp_path).plan(desk.student(), trainset=desk.examples(6), traces=str(file)).calls == 0
    for wrong, said in (
        ([{"id": 1}], r"`traces\[0\]` is a dict"),
        (5, "`traces` is a int"),
        ("no.jsonl", "cannot be read"),
    ):
        with pytest.raises(dspyc.DspycError, match=said):
            optimizer(tmp_path).compile(desk.student(), trainset=desk.examples(6), traces=wrong)


class Uncounted(desk.Desk):
    """Never calls its second predictor."""

    def forward(self, first: str, second: str) -> dspy.Prediction:
        return dspy.Prediction(colours=[self.name(thing=thing).colour for thing in (first, second)])


@pytest.mark.parametrize(
    ("balance", "words", "calls"),
    [
        ("colour", r"`balance` names 'colour'; the student's predictors are \['count', 'name'\]", 0),
        ("count", r"`balance` names predictor 'count', which has no rows; \['name'\] have", 8),
    ],
)
def test_what_cannot_be_balanced_is_refused(tmp_path: Path, balance: str, words: str, calls: int) -> None:
    student, teacher_lm = Uncounted(), dspyc.ScriptedLM(desk.expert)
    student.set_lm(dspyc.LocalLM("dspyc/tiny"))
    with pytest.raises(ConfigError, match=words):
        optimizer(tmp_path, teacher_lm=teacher_lm, balance=balance).compile(student, trainset=desk.examples(4))
    assert teacher_lm.engine.calls == calls
    assert not (tmp_path / "training").exists()


def test_a_predictor_without_rows_is_found_before_any_is_trained(tmp_path: Path) -> None:
    student = Uncounted()
    student.set_lm(dspyc.LocalLM("dspyc/tiny"))
    given = {"teacher_lm": dspyc.ScriptedLM(desk.expert), "multitask": False}
    with pytest.raises(DataError, match=r"Predictor\(s\) \['count'\] have no rows: no good run called them"):
        optimizer(tmp_path, **given).compile(student, trainset=desk.examples(4), valset=desk.examples(6)[4:])
    assert set(read_run(tmp_path).summary()["calls"]) == {"teacher"}  # nothing was held out from it yet
    assert not (tmp_path / "training").exists()


def test_train_kwargs_by_lm_and_for_all_do_not_mix(tmp_path: Path) -> None:
    student, teacher_lm = desk.student(), dspyc.ScriptedLM(desk.expert)
    with pytest.raises(ConfigError, match="`train_kwargs` mixes language models and settings as keys"):
        optimizer(tmp_path, teacher_lm=teacher_lm, train_kwargs={student.name.lm: QUICK, "method": "lora"}).compile(
            student, trainset=desk.examples(4)
        )
    assert teacher_lm.engine.calls == 0


def test_an_argument_that_compile_does_not_take_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`compile` does not take \['num_trials'\]; trainset, teacher, valset"):
        optimizer(tmp_path).compile(desk.student(), trainset=desk.examples(4), num_trials=3)


@pytest.mark.parametrize(
    ("trainset", "words"),
    [
        ([], "is empty"),
        ("train.jsonl", "is a str"),
        ([{"first": "x"}], r"`trainset\[0\]` is a dict"),
        ([dspy.Example(first="x", second="y")], r"does not say which of its fields"),
    ],
)
def test_examples_are_checked_before_any_call(tmp_path: Path, trainset: Any, words: str) -> None:
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    with pytest.raises(DataError, match=words):
        optimizer(tmp_path, teacher_lm=teacher_lm).compile(desk.student(), trainset=trainset)
    assert teacher_lm.engine.calls == 0


def test_a_student_without_an_lm_or_with_one_that_cannot_be_tuned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="name"):
        optimizer(tmp_path).compile(desk.Desk(), trainset=desk.examples(4))
    student = desk.Desk()
    student.set_lm(dspyc.ScriptedLM(desk.expert))
    with pytest.raises(ProgramError, match="cannot be fine-tuned") as caught:
        optimizer(tmp_path).compile(student, trainset=desk.examples(4))
    assert "LocalLM" in caught.value.hint
    with pytest.raises(ProgramError, match="str"):
        optimizer(tmp_path).compile("Desk", trainset=desk.examples(4))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "full"}, "'full'.*wears the adapter"),
        ({"lora_rank": 4}, "r is 16, not 4"),
        ({"lora_alpha": 16}, "lora_alpha is 32.0, not 16.0"),
        ({"num_processes": 2}, "num_processes is 2, with an adapter"),
    ],
)
def test_a_training_that_would_lose_the_students_adapter_is_refused_before_any_call(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    first = compile_desk(tmp_path / "first", 4)
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    second = optimizer(tmp_path / "second", teacher_lm=teacher_lm, train_kwargs={**QUICK, **settings})
    with pytest.raises(ConfigError, match=said):
        second.compile(first, trainset=desk.examples(4))
    assert teacher_lm.engine.calls == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rat": 1}, "learning_rat"),
        ({"num_processes": 0}, "num_processes is 0"),
        ({"num_processes": "2"}, "num_processes is '2'"),
        ({"method": "qlora"}, "needs a CUDA GPU"),
        ({"report_to": ["mlflow"]}, "mlflow is not installed"),
        ({"max_length": 1_000_000}, "`max_length` is 1000000, and tiny takes"),
        ({"early_stopping_patience": 2}, "there are no validation rows"),  # of 4 examples none is held out
    ],
)
def test_a_training_setting_that_is_none_is_found_before_any_call(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    with pytest.raises(ConfigError, match=said):
        optimizer(tmp_path, teacher_lm=teacher_lm, train_kwargs=settings).compile(
            desk.student(), trainset=desk.examples(4)
        )
    assert teacher_lm.engine.calls == 0


def test_several_processes_train_what_one_does(tmp_path: Path) -> None:
    still, started = {**QUICK, "lora_dropout": 0.0, "precision": "fp32"}, list[str]()
    sys.addaudithook(lambda event, given: started.append(str(given[1])) if event == "subprocess.Popen" else None)
    two = compile_desk(tmp_path / "two", 8, train_kwargs={**still, "num_processes": 2}).report
    assert any("'--num-processes', '2'" in command for command in started)
    one = compile_desk(tmp_path / "one", 8, train_kwargs=still).report
    (of_two,), (of_one,) = two.training, one.training
    assert two.rows == one.rows
    assert (of_two["rows"], of_two["steps"]) == (of_one["rows"], 2)
    assert of_two["train_loss"] == pytest.approx(of_one["train_loss"], rel=1e-4)
    again = compile_desk(tmp_path / "two", 8, train_kwargs=still).report
    assert again.training == two.training  # the same run: how many carried it out does not matter


def test_a_run_folder_that_cannot_be_written_is_found_before_any_call() -> None:
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    with pytest.raises(LedgerError, match="run folder"):
        optimizer(Path("/proc/dspyc-run"), teacher_lm=teacher_lm).compile(desk.student(), trainset=desk.examples(4))
    assert teacher_lm.engine.calls == 0


def test_no_secret_is_written_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "sk-canary-0123456789abcdef"
    monkeypatch.setenv("EXPERT_API_KEY", canary)

    def leaking(inputs: dict[str, str]) -> dict[str, Any]:
        if inputs.get("thing", "").endswith("thing 1"):
            raise RuntimeError(f"Incorrect API key provided: {canary}")
        return desk.expert(inputs)

    compiled = compile_desk(tmp_path / "run", 8, answer=leaking)
    compiled.save(tmp_path / "artifact")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path
    assert "[secret]" in json.dumps(events(tmp_path / "run", "bad example"))
