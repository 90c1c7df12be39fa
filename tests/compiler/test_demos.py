"""Demos that fit the context of their reader, and demos unlike each other."""

import logging
import random
import sys
from typing import Any

import dspy
import pytest
from dspy import lm15

import dspyc
from dspyc.compiler.demos import labelled, spread
from dspyc.compiler.fitting import fitted, prompt_limit, token_counter
from dspyc.errors import ConfigError, RenderError
from dspyc.models import LocalEngine
from dspyc.models.messages import messages_of
from dspyc.models.scripted import ScriptedEngine
from dspyc.signatures import prompt
from dspyc.signatures.likeness import Likenesses


def example(question: str, answer: str = "yes") -> dspy.Example:
    return dspy.Example(question=question, answer=answer).with_inputs("question")


def tiny(**settings: Any) -> dspy.LM:
    return dspyc.LocalLM("dspyc/tiny", cache=False, **settings)


def local_predictor(demos: list[dspy.Example], **settings: Any) -> dspy.Predict:
    predictor = dspy.Predict("question -> answer")
    predictor.lm, predictor.demos = tiny(**settings), demos
    return predictor


def test_demos_fit_a_local_students_context_by_its_own_tokenizer(caplog: pytest.LogCaptureFixture) -> None:
    train = [example(f"question {i} " + "word " * 40) for i in range(200)]
    predictor = local_predictor([], max_tokens=32)
    context = LocalEngine("dspyc/tiny").max_length
    assert context is not None
    with caplog.at_level(logging.WARNING):
        kept = fitted("answer", predictor, train, [train[0].inputs()], True)
    assert 0 < len(kept) < 200
    assert f"{200 - len(kept)} of 200 demos of `answer` are left out" in caplog.text

    predictor.demos = kept
    predictor(question=train[0].question)  # the engine refuses a prompt that is too long
    made = prompt(predictor, {"question": train[0].question}, adapter=dspy.ChatAdapter(), lm=predictor.lm)
    assert predictor.lm.history[-1]["usage"]["prompt_tokens"] == token_counter(predictor.lm)(made)
    more = [*kept, train[len(kept)]]
    longer = prompt(predictor, {"question": train[0].question}, adapter=dspy.ChatAdapter(), lm=predictor.lm, demos=more)
    count = token_counter(predictor.lm)
    assert count(made) <= context - 32 < count(longer)


def test_one_demo_that_is_too_long_is_left_out_and_those_behind_it_stay() -> None:
    demos = [example("short"), example("long " * 400), example("short too")]
    kept = fitted("answer", local_predictor([]), demos, [{"question": "short"}], 400)
    assert [demo.question for demo in kept] == ["short", "short too"]


def test_the_longest_inputs_have_to_fit_beside_the_demos() -> None:
    demos, predictor = [example(f"question {i} of some length") for i in range(10)], local_predictor([])
    few = fitted("answer", predictor, demos, [{"question": "short"}, {"question": "long " * 100}], 500)
    many = fitted("answer", predictor, demos, [{"question": "short"}], 500)
    assert len(few) < len(many)


def test_where_no_context_is_known_all_demos_stay() -> None:
    predictor, demos = dspy.Predict("question -> answer"), [example("long " * 10_000)]
    assert fitted("answer", predictor, demos, [], True) == demos
    predictor.lm = dspyc.ScriptedLM(lambda inputs: "")
    assert prompt_limit(predictor.lm) is None
    assert fitted("answer", predictor, demos, [], True) == demos


def test_the_context_of_a_known_model_is_litellms() -> None:
    limit = prompt_limit(dspy.LM("openai/gpt-4", max_tokens=1000))
    assert limit == 8192 - 1000
    assert prompt_limit(dspy.LM("openai/gpt-4", max_tokens=100_000)) == 4096
    made = prompt(
        dspy.Predict("question -> answer"), {"question": "a"}, adapter=dspy.ChatAdapter(), lm=dspy.LM("openai/gpt-4")
    )
    assert token_counter(dspy.LM("openai/gpt-4"))(made) > 50


def test_optimizers_leave_out_what_does_not_fit_when_asked_to() -> None:
    student = local_predictor([])
    train = [example(f"question {i} " + "word " * 30) for i in range(40)]
    assert len(dspyc.LabeledFewShot(40, fit_context=False).compile(student, trainset=train).demos) == 40
    fits = dspyc.LabeledFewShot(40, fit_context=600).compile(student, trainset=train).demos
    assert 0 < len(fits) < 40
    teacher = {"lm": dspyc.ScriptedLM(lambda inputs: {"answer": "yes"})}
    for fit, number in ((False, 12), (600, len(fits))):
        optimizer = dspyc.BootstrapFewShot(None, None, teacher, 2, 12, fit_context=fit)
        demos = optimizer.compile(student, trainset=train).demos
        assert min(12, number) - 2 <= len(demos) <= min(12, number)
        assert [demo.get("augmented", False) for demo in demos[:3]] == [True, True, False]


def few_shot_optimizers(train: list[dspy.Example], folder: Any, **settings: Any) -> list[Any]:
    def good(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return True

    teacher = {"lm": dspyc.ScriptedLM(lambda inputs: {"answer": "yes"})}
    return [
        dspyc.LabeledFewShot(16, **settings),
        dspyc.BootstrapFewShot(good, teacher_settings=teacher, run_dir=folder / "b", **settings),
        dspyc.KNNFewShot(16, train, **settings),
        dspyc.KNNFewShot(16, train, metric=good, teacher_settings=teacher, run_dir=folder / "k", **settings),
        dspyc.BootstrapFewShotWithRandomSearch(
            good, teacher, num_candidate_programs=1, race=False, run_dir=folder / "r", **settings
        ),
    ]


@pytest.mark.parametrize("which", range(5))
def test_a_student_of_this_machine_is_given_what_it_can_read(tmp_path: Any, which: int) -> None:
    train = [example(f"question {i} " + "word " * 120) for i in range(40)]  # a search learns from 16 of them
    compiled = few_shot_optimizers(train, tmp_path)[which].compile(local_predictor([], max_tokens=8), trainset=train)
    made = {found["seed"]: found["program"] for found in compiled.candidate_programs} if which == 4 else {0: compiled}
    for number, program in made.items():
        assert (0 if number == -3 else 1) <= len(program.demos) < 16  # -3 is the candidate without demos
        program(question=train[0].question)  # the engine refuses a prompt that is too long
    assert len(made) == (4 if which == 4 else 1)


def test_without_a_limit_it_is_given_what_dspy_gives_it(tmp_path: Any) -> None:
    train = [example(f"question {i} " + "word " * 120) for i in range(20)]
    for optimizer in few_shot_optimizers(train, tmp_path, fit_context=False)[:2]:
        compiled = optimizer.compile(local_predictor([], max_tokens=8), trainset=train)
        assert len(compiled.demos) == 16
        with pytest.raises(dspy.ContextWindowExceededError):
            compiled(question=train[0].question)


def test_models_elsewhere_are_not_counted_unless_asked_to(tmp_path: Any) -> None:
    student = dspy.Predict("question -> answer")
    student.lm = dspy.LM("openai/gpt-4")
    train = [example(f"question {i} " + "word " * 1000) for i in range(16)]
    assert len(dspyc.LabeledFewShot().compile(student, trainset=train).demos) == 16
    assert len(dspyc.LabeledFewShot(fit_context=True).compile(student, trainset=train).demos) < 16


class Counting(ScriptedEngine):
    """Remembers how many demos each request shows."""

    def __init__(self, answer: Any) -> None:
        super().__init__(answer)
        self.shown: list[int] = []

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.shown.append(sum(message["role"] == "user" for message in messages_of(request)[0]) - 1)
        return super().complete(request)


@pytest.mark.parametrize(("fit", "most"), [(None, 15), (7000, 15), (False, 15), (True, 6)])
def test_a_teachers_labelled_demos_fit_its_own_context_by_the_same_setting(fit: Any, most: int, tmp_path: Any) -> None:
    student, train = dspy.Predict("question -> answer"), [example(f"question {i} " + "word " * 1000) for i in range(16)]
    student.lm = dspyc.ScriptedLM(lambda inputs: {"answer": "yes"})
    engine = Counting(lambda inputs: {"answer": "yes"})
    teacher = dspy.LM("openai/gpt-4", engine=engine, cache=False)  # of 8,192 tokens
    settings = {"teacher_settings": {"lm": teacher}, "max_bootstrapped_demos": 1, "run_dir": tmp_path}
    dspyc.BootstrapFewShot(**settings, fit_context=fit, num_threads=1).compile(student, trainset=train)
    assert engine.shown == [most] if most == 15 else 0 < engine.shown[0] <= most


def test_what_cannot_be_written_is_left_as_it_is_unless_it_was_asked_for() -> None:
    """A predictor's history is in no example: its prompt cannot be counted beforehand."""
    student = dspy.Predict("question, history: dspy.History -> answer")
    student.lm = tiny()
    assert len(dspyc.LabeledFewShot(4).compile(student, trainset=[example("q")] * 4).demos) == 4
    with pytest.raises(RenderError, match="cannot be written"):
        dspyc.LabeledFewShot(4, fit_context=True).compile(student, trainset=[example("q")] * 4)


# ------------------------------------------------------------------------------------------------------------------ diversity

TOPICS = ("refund my money please", "where is the parcel", "reset a password")


def topics(demos: list[dspy.Example]) -> list[int]:
    return [next(i for i, topic in enumerate(TOPICS) if topic in demo.question) for demo in demos]


def crowd() -> list[dspy.Example]:
    """Thirty of one topic, one of each other."""
    made = [example(f"{TOPICS[0]} {i}") for i in range(30)]
    return [*made, example(TOPICS[1]), example(TOPICS[2])]


@pytest.mark.parametrize("seed", range(5))
def test_diverse_demos_are_of_every_topic(seed: int) -> None:
    chosen = labelled(dspy.Predict("question -> answer"), crowd(), 3, random.Random(seed), diverse=True)
    assert sorted(topics(chosen)) == [0, 1, 2]


def test_diverse_demos_are_unlike_those_they_stand_beside() -> None:
    beside = [example(f"{TOPICS[1]} now"), example(f"{TOPICS[2]} now")]
    predictor = dspy.Predict("question -> answer")
    assert topics(labelled(predictor, crowd(), 1, random.Random(0), diverse=True, beside=beside)) == [0]


def test_diverse_demos_are_no_fewer_and_none_twice() -> None:
    train = [example("the same") for _ in range(4)] + [example("other")]
    for number in range(6):
        chosen = labelled(dspy.Predict("question -> answer"), train, min(number, 5), random.Random(0), diverse=True)
        assert len(chosen) == min(number, 5)
    assert [demo.question for demo in chosen].count("other") == 1
    blank = [example("…") for _ in range(4)]
    assert len(labelled(dspy.Predict("question -> answer"), blank, 2, random.Random(0), diverse=True)) == 2


def test_diversity_is_by_what_each_predictor_is_asked(tmp_path: Any) -> None:
    compiled = dspyc.BootstrapFewShot(
        None, None, {"lm": dspyc.ScriptedLM(lambda inputs: {"answer": "x"})}, 1, 3, diverse=True, run_dir=tmp_path
    ).compile(dspy.Predict("question -> answer"), trainset=crowd())
    assert sorted(topics(compiled.demos)) == [0, 1, 2]


def test_a_teacher_is_tried_on_examples_unlike_each_other_first(tmp_path: Any) -> None:
    asked: list[str] = []

    def teach(inputs: dict[str, str]) -> dict[str, str]:
        asked.append(inputs["question"])
        return {"answer": "yes" if len(asked) > 1 else "not at first"}

    def good(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return bool(prediction.answer == "yes")

    optimizer = dspyc.BootstrapFewShot(
        good, None, {"lm": dspyc.ScriptedLM(teach, cache=False)}, 3, 0, diverse=True, run_dir=tmp_path, num_threads=1
    )
    train = [*crowd(), example(f"{TOPICS[1]} today"), example(f"{TOPICS[2]} again")]
    compiled = optimizer.compile(dspy.Predict("question -> answer"), trainset=train)
    assert sorted(topics(compiled.demos)) == [0, 1, 2]
    assert len(asked) <= 5
    assert {e.question for e in spread(train, 3)} == {e.question for e in train}


def test_texts_that_were_compared_before_are_compared_anew_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    likeness, predictor = Likenesses(), dspy.Predict("question -> answer")

    def found(train: list[dspy.Example], **compared_by: Any) -> Any:
        chosen = labelled(predictor, train[2:], 3, random.Random(0), diverse=True, beside=train[:2], **compared_by)
        return topics(chosen), topics(spread(train, 1, first=3, **compared_by))

    train = [*crowd(), *crowd()[:2]]
    orders = [random.Random(seed).sample(train, len(train)) for seed in range(4)]
    expected = [found(order) for order in orders]
    assert found(orders[0], likeness=likeness) == expected[0]
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)  # nothing can be fitted any more
    assert [found(order, likeness=likeness) for order in orders] == expected
    with pytest.raises(ConfigError, match="scikit-learn"):
        found(train[1:], likeness=likeness)


def test_a_search_makes_its_candidates_so_when_asked_to(tmp_path: Any) -> None:
    lm = dspyc.ScriptedLM(lambda inputs: {"answer": "yes"}, cache=False)
    student = dspy.Predict("question -> answer")
    student.set_lm(lm)
    made = dspyc.BootstrapFewShotWithRandomSearch(
        lambda e, p, trace=None: True,
        None,
        3,
        3,
        1,
        3,
        2,
        diverse=True,
        fit_context=10_000,
        race=False,
        run_dir=tmp_path,
    ).compile(student, trainset=crowd(), valset=crowd()[:2])
    by_number = {found["seed"]: topics(found["program"].demos) for found in made.candidate_programs}
    assert sorted(by_number[-2]) == [0, 1, 2]
    assert all(len(set(found)) == len(found) for number, found in by_number.items() if number >= -1)


def test_without_scikit_learn_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)  # as Python has it for what is not there
    student = dspy.Predict("question -> answer")
    assert len(dspyc.LabeledFewShot(2).compile(student, trainset=crowd()).demos) == 2
    with pytest.raises(ConfigError, match=r"dspyc\[search\]"):
        dspyc.LabeledFewShot(2, diverse=True).compile(student, trainset=crowd())
