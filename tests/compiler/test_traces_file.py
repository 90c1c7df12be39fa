"""Traces as files: what was bootstrapped once comes back whole, and teaches again."""

import datetime
import json
from enum import Enum
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pydantic
import pytest

import dspyc
from dspyc.compiler import Ledger, bootstrap, load_traces, observe, read_run, save_traces
from dspyc.compiler.fitted_traces import current, fitted_to
from dspyc.errors import BootstrapError, ConfigError, DataError
from tests.optimizers import desk


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, list[Any]]:
    """A run folder with ten traces of a teacher, and those traces."""
    program = desk.Desk()
    program.set_lm(dspyc.ScriptedLM(desk.expert))
    with Ledger(tmp_path / "run") as ledger:
        subject = observe(program, "teacher", identity="x")
        return tmp_path / "run", bootstrap(subject, desk.examples(10), metric=desk.metric, ledger=ledger)


def test_traces_come_back_whole(recorded: tuple[Path, list[Any]], tmp_path: Path) -> None:
    run_dir, traces = recorded
    assert save_traces(traces, tmp_path / "live.jsonl") == 10
    assert save_traces(read_run(run_dir).traces("teacher"), tmp_path / "exported.jsonl") == 10
    by_id = {trace.id: trace for trace in load_traces(tmp_path / "exported.jsonl")}
    for live, loaded in zip(traces, load_traces(tmp_path / "live.jsonl"), strict=True):
        for trace in (loaded, by_id[live.id]):
            assert trace.to_record() == live.to_record()
            assert [call.messages for call in trace.calls] == [call.messages for call in live.calls]
            assert [call.replies for call in trace.calls] == [call.replies for call in live.calls]
            assert trace.prediction.toDict() == live.prediction.toDict()


def test_half_a_character_in_a_reply_is_one_bad_example(tmp_path: Path) -> None:
    half = "\ud83d"

    def answer(inputs: dict[str, str]) -> dict[str, Any] | str:
        return (
            {"answer": half} if inputs["question"] == "1" else half if inputs["question"] == "2" else {"answer": "yes"}
        )

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        if example.question == "3":
            raise ValueError(f"no judgement {half}")
        return True

    program = dspy.Predict("question -> answer")
    program.set_lm(dspyc.ScriptedLM(answer))
    examples = [dspy.Example(question=str(i)).with_inputs("question") for i in range(6)]
    with Ledger(tmp_path) as ledger:
        subject = observe(program, "teacher", identity="x")
        traces = bootstrap(subject, examples, metric=metric, ledger=ledger, num_threads=1)
    assert [trace.blame for trace in traces] == [None, None, "program", "metric", None, None]
    assert traces[3].error == r"ValueError: no judgement \ud83d"
    save_traces(read_run(tmp_path).traces("teacher"), tmp_path / "teacher.jsonl")
    loaded = load_traces(tmp_path / "teacher.jsonl")
    assert [trace.to_record() for trace in loaded] == [trace.to_record() for trace in traces]
    assert loaded[1].prediction.answer == half
    (again,) = current([loaded[3]], examples, {"self": program}, metric)
    assert again.error == traces[3].error


def test_a_loaded_bootstrap_makes_the_demos_that_it_made(recorded: tuple[Path, list[Any]], tmp_path: Path) -> None:
    run_dir, _ = recorded
    save_traces(read_run(run_dir).traces("teacher"), tmp_path / "teacher.jsonl")
    teacher = desk.Desk()
    teacher.set_lm(dspyc.ScriptedLM(desk.expert))
    teacher._compiled = True  # so that it runs without labelled demos, as it did when it was recorded

    def optimizer(name: str, **settings: Any) -> Any:
        return dspyc.BootstrapFewShot(desk.metric, num_threads=1, run_dir=tmp_path / name, **settings)

    live = optimizer("live").compile(desk.Desk(), trainset=desk.examples(10), teacher=teacher)
    loaded = load_traces(tmp_path / "teacher.jsonl")
    made = optimizer("loaded").compile(desk.Desk(), trainset=desk.examples(10), traces=loaded)
    for name in ("name", "count"):
        assert [dict(d) for d in getattr(made, name).demos] == [dict(d) for d in getattr(live, name).demos]
    assert made.report.spent["calls"] == made.report.plan["calls"] == 0
    path = tmp_path / "teacher.jsonl"
    planned = optimizer("loaded").plan(desk.Desk(), trainset=desk.examples(10), traces=path)
    assert planned.to_dict() == made.report.plan
    again = optimizer("again").compile(desk.Desk(), trainset=desk.examples(10), traces=(trace for trace in loaded))
    assert [dict(d) for d in again.name.demos] == [dict(d) for d in made.name.demos]
    pools = dspyc.KNNFewShot(2, metric=desk.metric, max_labeled_demos=0, run_dir=tmp_path / "pool")
    pool = pools.compile(desk.Desk(), trainset=desk.examples(10), traces=path)
    assert (len(pool.count.demos), pool.report.spent["calls"]) == (10, 0)
    assert pools.plan(desk.Desk(), trainset=desk.examples(10), traces=path).calls == 0
    with pytest.raises(ConfigError, match=r"`traces\[0\]` is a dict; traces, or the path of their file"):
        optimizer("wrong").compile(desk.Desk(), trainset=desk.examples(10), traces=[{}])
    assert made.report.dataset["bootstrapped"] == 4
    with pytest.raises(DataError, match="None of the 10 traces"):
        optimizer("other").compile(desk.Desk(), trainset=desk.examples(14)[10:], traces=loaded)
    with pytest.raises(ConfigError, match="`teacher` and `traces`"):
        optimizer("both").compile(desk.Desk(), trainset=desk.examples(4), traces=loaded, teacher=teacher)
    with pytest.raises(BootstrapError, match="No run of the teacher on 10 examples was good"):
        optimizer("strict", metric_threshold=2).compile(desk.Desk(), trainset=desk.examples(10), traces=loaded)


def test_a_loaded_bootstrap_trains_without_a_teacher(recorded: tuple[Path, list[Any]], tmp_path: Path) -> None:
    run_dir, _ = recorded
    save_traces(read_run(run_dir).traces("teacher"), tmp_path / "teacher.jsonl")
    optimizer = dspyc.BootstrapFinetune(
        metric=desk.metric, train_kwargs=desk.QUICK, run_dir=tmp_path / "second", holdout_fraction=0.2
    )
    compiled = optimizer.compile(
        desk.student(), trainset=desk.examples(10), traces=load_traces(tmp_path / "teacher.jsonl")
    )
    assert compiled.report.spent["calls"] == 0
    assert compiled.report.dataset["traces"] == 8  # two of the ten are held out
    assert compiled.report.verdict.examples == 2
    strict = dspyc.BootstrapFinetune(
        metric=lambda example, prediction: 0.0, train_kwargs=desk.QUICK, run_dir=tmp_path / "third"
    )
    with pytest.raises(DataError, match="8 scored below"):  # scored anew, by the metric of this compile
        strict.compile(desk.student(), trainset=desk.examples(10), traces=load_traces(tmp_path / "teacher.jsonl"))
    with pytest.raises(ConfigError, match="`teacher` and `traces`"):
        strict.compile(desk.student(), trainset=desk.examples(10), teacher=desk.student(), traces=[])


class Order(pydantic.BaseModel):
    number: int
    paid: bool


def test_inputs_are_read_as_the_program_declares_them(tmp_path: Path) -> None:
    program = dspy.Predict(dspy.Signature("order -> answer").with_updated_fields("order", type_=Order))
    program.set_lm(dspyc.ScriptedLM(lambda inputs: {"answer": "yes"}))
    examples = [dspy.Example(order=Order(number=7, paid=True)).with_inputs("order")]
    with Ledger(tmp_path / "run") as ledger:
        traces = bootstrap(observe(program, "teacher", identity="x"), examples, metric=None, ledger=ledger)
    save_traces(traces, tmp_path / "traces.jsonl")
    loaded = load_traces(tmp_path / "traces.jsonl")
    assert loaded[0].steps[0].inputs == {"order": {"number": 7, "paid": True}}
    assert fitted_to(loaded, {"self": program})[0].steps[0].inputs == {"order": Order(number=7, paid=True)}
    loaded[0].steps[0].inputs["order"] = {"number": "many"}
    with pytest.raises(DataError, match=f"Trace {loaded[0].id} gave `self` a `order`"):
        fitted_to(loaded, {"self": program})


class Kind(Enum):
    PLANT = 1
    ANIMAL = 2


class Being(pydantic.BaseModel):
    name: str
    kind: Kind


class Describe(dspy.Signature):
    """Say what is in the picture."""

    picture: dspy.Image = dspy.InputField()
    others: list[dspy.Image] = dspy.InputField()
    taken: datetime.date = dspy.InputField()
    note: str = dspy.InputField()
    being: Being = dspy.OutputField()
    kind: Kind = dspy.OutputField()
    seen: datetime.date = dspy.OutputField()


class Naturalist(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.describe = dspy.Predict(Describe)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        told = self.describe(**inputs)
        return dspy.Prediction(being=told.being, kind=told.kind, seen=told.seen, years=3)


def naturalist() -> Naturalist:
    program = Naturalist()
    being = json.dumps({"name": "oak", "kind": 1})
    program.set_lm(dspyc.ScriptedLM(lambda inputs: {"being": being, "kind": "PLANT", "seen": "2024-05-17"}))
    return program


def same_being(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return bool(example.being.name == prediction.being.name and prediction.kind is Kind.PLANT)


def pictures(number: int) -> list[dspy.Example]:
    return [
        dspy.Example(
            picture=dspy.Image(f"https://example.com/{i}.png"),
            others=[dspy.Image("data:image/png;base64,AAAA")],
            taken=datetime.date(2024, 5, 1 + i),
            note=7,  # DSPy writes any value into a field of text
            being=Being(name="oak", kind=Kind.PLANT),
        ).with_inputs("picture", "others", "taken", "note")
        for i in range(number)
    ]


def test_typed_outputs_and_images_come_back_as_they_were(tmp_path: Path) -> None:
    program, examples = naturalist(), pictures(2)
    with Ledger(tmp_path / "run") as ledger:
        traces = bootstrap(observe(program, "teacher", identity="x"), examples, metric=same_being, ledger=ledger)
    assert [trace.score for trace in traces] == [1.0, 1.0]
    save_traces(traces, tmp_path / "traces.jsonl")
    predictors = dict(program.named_predictors())
    for live, loaded in zip(traces, fitted_to(load_traces(tmp_path / "traces.jsonl"), predictors), strict=True):
        assert loaded.steps[0].inputs == live.steps[0].inputs
        assert loaded.steps[0].outputs == live.steps[0].outputs
        assert loaded.prediction.toDict() == live.prediction.toDict()
        assert isinstance(loaded.steps[0].inputs["picture"], dspy.Image)
        assert isinstance(loaded.prediction.being, Being)


def test_what_a_program_made_of_its_predictors_outputs_is_read_by_their_types(tmp_path: Path) -> None:
    """The prediction's fields are those of the last step that gave them; others stay what a file can hold."""
    program = naturalist()
    with Ledger(tmp_path / "run") as ledger:
        traces = bootstrap(observe(program, "teacher", identity="x"), pictures(1), metric=None, ledger=ledger)
    save_traces(traces, tmp_path / "traces.jsonl")
    [loaded] = load_traces(tmp_path / "traces.jsonl")
    loaded.prediction.being = {"name": "elm", "kind": 1}  # as of a program that renamed it
    loaded.prediction.kind = "neither"
    loaded.prediction.other = {"name": "elm"}
    [read] = fitted_to([loaded], dict(program.named_predictors()))
    assert read.prediction.being == Being(name="elm", kind=Kind.PLANT)
    assert (read.prediction.kind, read.prediction.other) == ("neither", {"name": "elm"})
    assert loaded.prediction.being == {"name": "elm", "kind": 1}  # what was loaded is not changed
    assert loaded.steps[0].outputs is not None
    loaded.steps[0].outputs["being"] = {"name": 3}
    with pytest.raises(DataError, match=f"Trace {loaded.id} has from `describe` a `being`"):
        fitted_to([loaded], dict(program.named_predictors()))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (dspy.Audio, dspy.Audio(data="AAAA", audio_format="wav")),
        (dspy.File, dspy.File(file_data="data:;base64,AA")),
        (set[str], {"red", "green", "blue"}),
        (dict[str, frozenset[int]], {"primes": frozenset({2, 11, 3})}),
        (list[int], [np.int64(3)]),
        (float, np.float32(0.5)),
    ],
)
def test_values_of_other_kinds_come_back_as_well(tmp_path: Path, kind: Any, value: Any) -> None:
    program = dspy.Predict(dspy.Signature("given -> answer").with_updated_fields("given", type_=kind))
    program.set_lm(dspyc.ScriptedLM(lambda inputs: {"answer": "yes"}))
    examples = [dspy.Example(given=value).with_inputs("given")]
    with Ledger(tmp_path / "run") as ledger:
        traces = bootstrap(observe(program, "teacher", identity="x"), examples, metric=None, ledger=ledger)
    save_traces(traces, tmp_path / "traces.jsonl")
    assert fitted_to(load_traces(tmp_path / "traces.jsonl"), {"self": program})[0].steps[0].inputs == {"given": value}


def test_a_typed_program_learns_from_a_file_what_it_learns_from_its_teacher(tmp_path: Path) -> None:
    examples = pictures(4)

    def optimizer(name: str) -> Any:
        return dspyc.BootstrapFewShot(
            same_being, max_bootstrapped_demos=2, max_labeled_demos=0, num_threads=1, run_dir=tmp_path / name
        )

    live = optimizer("live").compile(Naturalist(), trainset=examples, teacher=naturalist())
    save_traces(read_run(tmp_path / "live").traces("teacher"), tmp_path / "traces.jsonl")
    loaded = load_traces(tmp_path / "traces.jsonl")
    made = optimizer("loaded").compile(naturalist(), trainset=examples, traces=loaded)
    assert len(live.describe.demos) == 2
    assert [dict(demo) for demo in made.describe.demos] == [dict(demo) for demo in live.describe.demos]


class Ticket(pydantic.BaseModel):
    kind: str = pydantic.Field(alias="type")
    urgent: bool = False


def test_a_model_with_aliases_comes_back(tmp_path: Path) -> None:
    program = dspy.Predict(dspy.Signature("text -> ticket").with_updated_fields("ticket", type_=Ticket))
    program.set_lm(dspyc.ScriptedLM(lambda inputs: {"ticket": {"type": "refund", "urgent": True}}))
    with Ledger(tmp_path / "run") as ledger:
        examples = [dspy.Example(text="Money back").with_inputs("text")]
        subject = observe(program, "teacher", identity="x")
        traces = bootstrap(subject, examples, metric=lambda *_: 1, ledger=ledger)
    save_traces(traces, tmp_path / "traces.jsonl")
    (fitted,) = fitted_to(load_traces(tmp_path / "traces.jsonl"), {"self": program})
    assert fitted.steps[0].outputs == {"ticket": Ticket(type="refund", urgent=True)}


def test_a_reply_with_any_line_end_is_one_line(tmp_path: Path) -> None:
    program = dspy.Predict("name -> greeting")
    program.set_lm(dspyc.ScriptedLM(lambda inputs: {"greeting": "one\u2028two\x85three"}))
    with Ledger(tmp_path / "run") as ledger:
        examples = [dspy.Example(name="Ada").with_inputs("name")]
        subject = observe(program, "teacher", identity="x")
        traces = bootstrap(subject, examples, metric=lambda *_: 1, ledger=ledger)
    save_traces(traces, tmp_path / "traces.jsonl")
    (loaded,) = load_traces(tmp_path / "traces.jsonl")
    assert loaded.calls[0].replies == traces[0].calls[0].replies
    assert "\u2028two\x85" in str(loaded.calls[0].replies[0])


@pytest.mark.parametrize("line", ["{", "[]", "{}", json.dumps({"version": 9}), json.dumps({"version": 1, "steps": 3})])
def test_a_line_that_is_no_trace_is_named(recorded: tuple[Path, list[Any]], tmp_path: Path, line: str) -> None:
    path = tmp_path / "traces.jsonl"
    save_traces(recorded[1], path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"traces\.jsonl, line 11: "):
        load_traces(path)
