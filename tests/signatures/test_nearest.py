"""Predictors that choose their demos by what they are asked: the same ones in every copy, thread, adapter and row."""

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cloudpickle
import dspy
import numpy as np
import pydantic
import pytest

import dspyc
from dspyc.compiler.withheld import withheld, withhold
from dspyc.errors import ConfigError
from dspyc.evaluation import metric_fingerprint
from dspyc.signatures import adapt, copy_program, program_fingerprint, row
from dspyc.signatures.mixins import written_class
from dspyc.signatures.nearest import Nearest, choose_nearest

QUESTIONS = {
    "Where is my parcel?": "delivery",
    "My parcel is late, where is it?": "delivery",
    "I want my money back.": "refund",
    "Please give me the money back for this.": "refund",
    "I forgot my password.": "login",
    "The password is not accepted.": "login",
}
POOL = [dspy.Example(question=q, topic=topic) for q, topic in QUESTIONS.items()]
COUNTED = ("parcel", "money", "password")


def answer(inputs: dict[str, str]) -> dict[str, str]:
    return {"topic": "x"}


class Spicy(dspy.Predict):  # type: ignore[misc]
    """A subclass of the user's."""


def predictor(k: int = 2, vectorizer: dspy.Embedder | None = None, kind: type = dspy.Predict) -> dspy.Predict:
    made = kind(Sort)
    made.demos = [demo.copy() for demo in POOL]
    choose_nearest(made, Nearest(k, vectorizer))
    return made


def shown(of: dspy.Predict, question: str, call: Callable[..., Any] | None = None) -> list[str]:
    """The questions of the demos in the prompt that was sent, in their order."""
    lm = dspyc.ScriptedLM(answer, cache=False)
    with suppress(dspy.utils.exceptions.AdapterParseError):  # the scripted reply is ChatAdapter's
        (call or of)(question=question, lm=lm)
    sent = json.dumps(lm.history[-1]["messages"])
    return sorted((q for q in QUESTIONS if q in sent and q != question), key=sent.index)


class Sort(dspy.Signature):  # type: ignore[misc]
    question: str = dspy.InputField()
    topic: str = dspy.OutputField()


def count_words(texts: list[str]) -> Any:
    return np.array([[text.lower().count(word) + 0.01 for word in COUNTED] for text in texts], dtype=np.float32)


def test_the_most_alike_are_shown_and_the_likest_stands_last() -> None:
    alike = ["My parcel is late, where is it?", "Where is my parcel?"]  # one more word in common, and fewer of its own
    assert shown(predictor(), "where is the parcel of mine?") == alike
    assert shown(predictor(3), "My pasword is forgotten")[-1] == "I forgot my password."
    assert len(shown(predictor(6), "anything")) == 6


def test_an_embedder_chooses_what_dspys_knn_chooses() -> None:
    vectorizer = dspy.Embedder(count_words, caching=False)
    examples = [demo.with_inputs("question") for demo in POOL]
    for question in ("A parcel", "password, password, parcel", "money"):
        theirs = [found.question for found in dspy.KNN(2, examples, vectorizer)(question=question)]
        assert set(shown(predictor(2, vectorizer), question)) == set(theirs)


def test_a_demo_with_the_inputs_of_the_call_is_never_shown() -> None:
    for question in QUESTIONS:
        assert len(shown(predictor(5), question)) == 5
        assert question not in [
            demo.question for demo in predictor(6).nearest.choose(predictor(6), {"question": question})
        ]


def test_a_callers_own_demos_win() -> None:
    chosen = predictor()
    assert shown(chosen, "money", lambda **given: chosen(**given, demos=POOL[:1])) == ["Where is my parcel?"]


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "dspy": lambda p: p.deepcopy(),
    "program": copy_program,
    "cloudpickle": lambda p: cloudpickle.loads(cloudpickle.dumps(p)),
    "pickle": lambda p: pickle.loads(pickle.dumps(p)),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", [dspy.Predict, Spicy])
@pytest.mark.parametrize("order", ["plain", "adapted before", "adapted after"])
def test_copies_choose_the_same(make: Any, kind: type, order: str) -> None:
    original = kind(Sort)
    original.demos = [demo.copy() for demo in POOL]
    if order == "adapted before":
        adapt(original, dspy.JSONAdapter())
    choose_nearest(original, Nearest(2))
    if order == "adapted after":
        adapt(original, dspy.JSONAdapter())
    copied = make(original)
    assert (type(copied) is type(original), written_class(type(copied))) == (True, kind)
    assert shown(copied, "no parcel") == shown(original, "no parcel")
    assert program_fingerprint(copied) == program_fingerprint(original)


def test_a_reset_predictor_shows_all_its_demos_again() -> None:
    again = predictor().reset_copy()
    again.demos = POOL
    assert len(shown(again, "parcel")) == 6
    assert "nearest" not in again.dump_state()


def test_how_it_chooses_is_part_of_what_a_program_is() -> None:
    same, vectorizer = [predictor(), predictor()], dspy.Embedder(count_words)
    plain = copy.deepcopy(same[0])
    plain.nearest = None
    prints = [program_fingerprint(p) for p in (*same, plain, predictor(3), predictor(2, vectorizer))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_how_a_judge_chooses_is_part_of_what_a_metric_is() -> None:
    def judged(by: dspy.Predict) -> str:
        return metric_fingerprint(lambda example, prediction, trace=None: by(question=prediction.a).topic)

    plain = predictor()
    plain.nearest = None
    assert judged(predictor()) == judged(predictor())
    assert len({judged(plain), judged(predictor()), judged(predictor(3))}) == 3


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter(), dspyc.TerseAdapter()])
def test_a_row_of_training_has_the_prompt_that_inference_sends(adapter: dspy.Adapter, k: int) -> None:
    chosen = predictor(k)
    adapt(chosen, adapter)
    chosen.lm = dspyc.ScriptedLM(answer, cache=False)
    for question in ("Where is my parcel?", "something new about money"):
        before = len(chosen.lm.history)
        with suppress(dspy.utils.exceptions.AdapterParseError):  # the scripted reply is ChatAdapter's
            chosen(question=question)
        sent = chosen.lm.history[before]["messages"]
        made = row(chosen, {"question": question}, {"topic": "refund"}, adapter=adapter, lm=chosen.lm)
        assert made["messages"][:-1] == sent
        assert sum(q in str(sent) for q in QUESTIONS if q != question) == k


def test_async_calls_threads_and_evaluation_choose_each_for_their_own_question() -> None:
    chosen = predictor(1)
    questions = [f"{word} number {i}?" for i in range(8) for word in COUNTED]
    alone = [shown(chosen, question) for question in questions]

    async def together() -> list[list[str]]:
        async def one(question: str) -> list[str]:
            lm = dspyc.ScriptedLM(answer, cache=False)
            await chosen.acall(question=question, lm=lm)
            return [q for q in QUESTIONS if q in json.dumps(lm.history[-1]["messages"])]

        return list(await asyncio.gather(*map(one, questions)))

    assert asyncio.run(together()) == alone
    told = predictor(1)
    told.lm = dspyc.ScriptedLM(lambda inputs: {"topic": inputs["question"]}, cache=False)
    devset = [dspy.Example(question=question).with_inputs("question") for question in questions]
    with dspy.context(lm=told.lm):
        dspy.Evaluate(devset=devset, metric=lambda e, p: 1.0, num_threads=8, display_progress=False)(told)
    sent = {call["messages"][-1]["content"].split("\n")[1]: str(call["messages"]) for call in told.lm.history}
    found = [[q for q in QUESTIONS if q in next(s for k, s in sent.items() if question in s)] for question in questions]
    assert found == alone


def test_an_example_that_is_withheld_from_a_run_is_not_chosen() -> None:
    chosen = predictor(1)
    withhold(chosen)
    hidden = POOL[0]
    with dspy.context(**withheld(hidden)):
        assert shown(chosen, "where is my parcel") == ["My parcel is late, where is it?"]
        assert shown(pickle.loads(pickle.dumps(chosen)), "where is my parcel") == ["My parcel is late, where is it?"]
    assert shown(chosen, "where is my parcel") == ["Where is my parcel?"]


def test_copies_share_what_was_computed_of_their_pool() -> None:
    texts: list[int] = []

    def embed(batch: list[str]) -> Any:
        texts.append(len(batch))
        return count_words(batch)

    chosen = predictor(2, dspy.Embedder(embed, caching=False))
    for one in (chosen, copy.deepcopy(chosen), copy_program(chosen)):
        shown(one, "money")
    assert texts == [6, 1, 1, 1]
    chosen.demos = chosen.demos[:3]
    assert shown(chosen, "password")
    assert texts[4:] == [3, 1]


class Place(pydantic.BaseModel):
    city: str


class Ask(dspy.Signature):  # type: ignore[misc]
    place: Place = dspy.InputField()
    tags: list[str] = dspy.InputField()
    topic: str = dspy.OutputField()


def test_inputs_of_any_type_are_compared_after_they_were_saved_too(tmp_path: Any) -> None:
    program = dspy.Predict(Ask)
    program.demos = [
        dspy.Example(place=Place(city=city), tags=[city[:2]], topic=city) for city in ("Bern", "Zurich", "Bergen")
    ]
    choose_nearest(program, Nearest(1))
    dspyc.save(program, tmp_path / "saved")
    for one in (program, dspyc.load(tmp_path / "saved", program=dspy.Predict(Ask))):
        (demo,) = one.nearest.choose(one, {"place": Place(city="Bern"), "tags": ["Be"]})
        assert demo["topic"] == "Bergen"


@pytest.mark.parametrize(
    "vectorizer", [None, dspy.Embedder("openai/some-model", batch_size=7, api_key="sk-secret-0123456789")]
)
def test_an_artifact_holds_the_pool_and_how_it_is_chosen_from(tmp_path: Any, vectorizer: Any) -> None:
    saved = predictor(2, vectorizer)
    adapt(saved, dspy.JSONAdapter())
    dspyc.save(saved, tmp_path / "artifact")
    assert "sk-secret" not in "".join(p.read_text() for p in (tmp_path / "artifact").iterdir())
    loaded = dspyc.load(tmp_path / "artifact")
    assert loaded.nearest.state() == saved.nearest.state()
    assert [dict(demo) for demo in loaded.demos] == [dict(demo) for demo in saved.demos]
    if vectorizer is None:
        assert shown(loaded, "no money") == shown(saved, "no money")
    else:
        assert (loaded.nearest.vectorizer.model, loaded.nearest.vectorizer.batch_size) == ("openai/some-model", 7)


def test_a_function_that_chooses_is_passed_when_an_artifact_is_loaded(tmp_path: Any) -> None:
    vectorizer = dspy.Embedder(count_words)
    saved = predictor(2, vectorizer)
    dspyc.save(saved, tmp_path / "artifact")
    with pytest.raises(ConfigError, match=r"`count_words`.*vectorizer="):
        dspyc.load(tmp_path / "artifact")
    loaded = dspyc.load(tmp_path / "artifact", vectorizer=vectorizer)
    assert shown(loaded, "no money") == shown(saved, "no money")
    saved.save(tmp_path / "state.json")
    again = predictor(1, vectorizer)
    again.load(tmp_path / "state.json")
    assert (again.nearest.k, again.nearest.vectorizer) == (2, vectorizer)


def test_what_cannot_choose_is_refused() -> None:
    for k in (0, -1, 2.0, True):
        with pytest.raises(ConfigError, match="`k`"):
            Nearest(k)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"dspy\.Embedder\(function\)"):
        Nearest(1, count_words)  # type: ignore[arg-type]
