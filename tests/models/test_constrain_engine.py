"""Constrained replies through the engine: batched, asynchronous, sampled, and beside free ones."""

import asyncio
from typing import Literal

import dspy
import pytest
from dspy.lm15 import Config, Message, Request
from pydantic import BaseModel
from transformers import AddedToken

import dspyc
from dspyc.models import load_tokenizer
from tests.models import small

ADAPTERS = [dspy.ChatAdapter(use_json_adapter_fallback=False), dspy.JSONAdapter(), dspyc.TerseAdapter()]


class Order(BaseModel):
    item: str
    count: int


class Triage(dspy.Signature):
    """Sort a ticket."""

    ticket: str = dspy.InputField()
    kind: Literal["refund", "delivery", "other"] = dspy.OutputField()
    urgent: bool = dspy.OutputField()
    orders: list[Order] = dspy.OutputField()
    answer: str = dspy.OutputField()


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return dspyc.LocalLM(small.llama(tmp_path_factory.mktemp("m") / "llama", context=4096), cache=False, max_tokens=260)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_an_untrained_student_answers_every_ticket(lm, adapter):
    program = dspy.ChainOfThought(Triage)
    program.set_lm(lm)
    tickets = [f"Where is parcel {i}?" for i in range(24)]
    with dspy.context(adapter=adapter):
        calls = [
            (program, {"ticket": ticket, "config": {"temperature": i % 3 * 0.7}}) for i, ticket in enumerate(tickets)
        ]
        answers = dspy.Parallel(num_threads=12, max_errors=1)(calls)
    assert len(answers) == len(tickets)
    assert {answer.kind for answer in answers} <= {"refund", "delivery", "other"}
    assert all(isinstance(answer.urgent, bool) and isinstance(answer.answer, str) for answer in answers)
    assert all(isinstance(order, Order) for answer in answers for order in answer.orders)


def test_tasks_and_many_answers_to_one_prompt(lm):
    program = dspy.Predict(Triage, n=3, temperature=1.0)
    program.set_lm(lm)

    async def ask():
        return await asyncio.gather(*(program.acall(ticket=f"{i}?") for i in range(6)))

    for answer in asyncio.run(ask()):
        assert len(answer.completions.kind) == 3


def test_a_free_lm_is_not_constrained_and_shares_no_answer_with_a_constrained_one(lm):
    free = dspyc.LocalLM(lm.engine.path, constrained=False, max_tokens=20)
    predictor = dspy.Predict("ticket -> kind: Literal['refund', 'delivery']")
    with dspy.context(adapter=dspyc.TerseAdapter()):
        with dspy.context(lm=lm.copy(cache=True)):
            assert predictor(ticket="apart").kind in ("refund", "delivery")
        with dspy.context(lm=free), pytest.raises(dspy.utils.exceptions.AdapterParseError):
            predictor(ticket="apart")


def test_a_reply_without_room_names_its_field_and_harms_no_other(lm):
    predictor = dspy.Predict(Triage)
    predictor.lm = lm
    calls = [(predictor, {"ticket": f"{i}?", "config": {"max_tokens": 5 if i == 3 else 200}}) for i in range(8)]

    def ask(call):
        try:
            return call[0](**call[1]).kind
        except dspy.utils.exceptions.LMError as error:
            return str(error)

    answers = dspy.Parallel(num_threads=8)([(ask, (call,)) for call in calls])
    assert "field `kind` cannot be finished within max_tokens=5" in answers.pop(3)
    assert {*answers} <= {"refund", "delivery", "other"}


def test_what_outgrows_the_context_ends_with_it(tmp_path):
    short = dspyc.LocalLM(small.llama(tmp_path / "short", context=900), cache=False)
    predictor = dspy.Predict("ticket -> notes: list[str], kind: Literal['refund', 'delivery']")
    predictor.lm = short
    assert predictor(ticket="?").kind in ("refund", "delivery")


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_a_thought_that_the_template_opens_is_no_part_of_a_streamed_reply(tmp_path, adapter):
    thinking = small.llama(tmp_path / "thinking", template=small.THINKING)
    lm = dspyc.LocalLM(thinking, cache=False, temperature=1.0, seed=1, max_tokens=150)
    program = dspy.Predict("ticket -> count: int, kind: Literal['refund', 'delivery']")

    async def streamed():
        return [item async for item in dspy.streamify(program)(ticket="?")]

    with dspy.context(lm=lm, adapter=adapter):
        expected = program(ticket="?")
        *chunks, found = asyncio.run(streamed())
    assert found.toDict() == expected.toDict()
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text
    assert "think>" not in text
    request = Request(model=lm.model, messages=(Message.user("?"),), config=Config(max_tokens=9))
    assert "".join(event.delta.text for event in lm.engine.stream(request) if event.type == "delta")


def test_a_prompt_that_leaves_too_little_room_is_dspys_context_error(tmp_path):
    short = dspyc.LocalLM(small.llama(tmp_path / "short", context=900), cache=False)
    predictor = dspy.Predict("ticket -> kind: Literal['refund', 'delivery']")
    predictor.lm = short

    def fails(words):
        try:
            predictor(ticket="x " * words)
        except dspy.ContextWindowExceededError as error:
            return str(error)
        return ""

    least = next(words for words in range(1, 900) if fails(words))
    assert "leaves" in fails(least)
    assert "holds 900" in fails(least)
    with pytest.raises(dspy.utils.exceptions.LMError, match="Set max_tokens to"):
        predictor(ticket="x", config={"max_tokens": 3})


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_a_stop_string_in_what_the_format_fixes_is_refused(lm, adapter):
    predictor = dspy.Predict("ticket -> answer: str, count: int")
    with dspy.context(lm=lm, adapter=adapter):
        with pytest.raises(
            dspy.utils.exceptions.LMError, match=r"stop string '\\n' is part of .* which the reply's format"
        ):
            predictor(ticket="?", config={"stop": ["\n"]})
        assert isinstance(predictor(ticket="?", config={"stop": ["[[ ## completed ## ]]"]}).count, int)
    with dspy.context(lm=lm, adapter=dspyc.TerseAdapter()):
        found = dspy.Predict("ticket -> answer: str")(
            ticket="?", config={"stop": ["\n"], "temperature": 1.0, "seed": 1}
        )
    assert "\n" not in found.answer


def test_no_more_tokens_are_cached_than_the_prompt_has(lm):
    predictor = dspy.Predict(Triage)
    with dspy.context(lm=lm.copy()):
        for _ in range(2):
            predictor(ticket="Where is it? " * 60)
        usage = dspy.settings.lm.history[-1]["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


def test_direct_calls_are_free(lm):
    (text,) = lm("hello", max_tokens=12)
    assert not text.startswith("[[ ##")


def test_a_tokenizer_may_have_tokens_that_the_model_does_not_score(tmp_path):
    """As Gemma 3 has for pictures in its models that see none."""
    folder = small.llama(tmp_path / "small")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(AddedToken("<image_soft_token>", special=True))
    tokenizer.save_pretrained(folder)
    with dspy.context(
        lm=dspyc.LocalLM(str(folder), device="cpu", cache=False, max_tokens=60), adapter=dspy.ChatAdapter()
    ):
        assert dspy.Predict("ticket -> urgent: bool")(ticket="It burns!").urgent in (True, False)
