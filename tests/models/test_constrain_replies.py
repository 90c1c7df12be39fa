"""What is written under a constraint: every reply is read, and a student that knows the answer may give it."""

import itertools
from typing import Any

import dspy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dspyc
from dspyc.errors import ModelError
from dspyc.models import ChatTokenizer, load_model, load_tokenizer
from dspyc.models.constraints import Constraint, constraint_of
from dspyc.signatures.grammar import reply_grammar
from dspyc.signatures.values import same
from tests.models import small, writing
from tests.signatures.random_signatures import signatures

ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspyc.TerseAdapter()]
SMALL = ChatTokenizer(small.tokenizer())
PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def tiny() -> ChatTokenizer:
    from dspyc.models import resolve

    return ChatTokenizer(load_tokenizer(resolve("dspyc/tiny")))


def constrain(signature, adapter, chat: ChatTokenizer, max_tokens: int) -> Constraint:
    grammar = reply_grammar(signature, adapter)
    assert grammar is not None
    return constraint_of(grammar, chat, max_tokens=max_tokens)


def fewest(signature, adapter, chat: ChatTokenizer) -> int:
    try:
        constrain(signature, adapter, chat, 1)
    except ModelError as error:
        return int(error.hint.split("max_tokens to ")[1].split()[0])
    return 1


@PROPERTY
@given(signatures(), st.sampled_from(ADAPTERS), st.integers(0, 99), st.integers(0, 200))
def test_what_chance_writes_is_read_however_few_tokens_there_are(signature, adapter, seed, more):
    least = fewest(signature, adapter, SMALL)
    for room in (least, least + more // 20, least + more):
        ids = writing.write(constrain(signature, adapter, SMALL, room), room, writing.by_chance(seed))
        assert len(ids) <= room
        read = adapter.parse(signature, SMALL.decode(ids))
        assert read.keys() == signature.output_fields.keys()


@PROPERTY
@given(signatures(), st.sampled_from(ADAPTERS), st.integers(0, 99), st.integers(0, 60))
def test_a_student_may_write_what_a_training_row_teaches_token_for_token(tiny, signature, adapter, seed, more):
    least = fewest(signature, adapter, tiny)
    ids = writing.write(constrain(signature, adapter, tiny, least + more), least + more, writing.by_chance(seed))
    values = adapter.parse(signature, tiny.decode(ids))
    answer = adapter.format_assistant_message_content(signature, values)
    if not survives(signature, adapter, values, answer):
        return  # DSPy itself cannot read back what it writes here, so no row teaches it
    row, prompt = tiny.row_ids([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}])
    taught = iter(row[prompt:])

    def student(ids: list[int], mask: torch.Tensor) -> int:
        assert ids == list(row[prompt : prompt + len(ids)])
        token = row[prompt + len(ids)]
        assert mask[token], (tiny.decode(ids), tiny.decode([token]))
        return token

    written = writing.write(constrain(signature, adapter, tiny, 10_000), 10_000, student)
    assert written == list(itertools.islice(taught, len(written)))
    assert adapter.parse(signature, tiny.decode(written)).keys() == values.keys()


def survives(signature, adapter, values, answer: str) -> bool:
    try:
        read = adapter.parse(signature, answer)
    except Exception:
        return False
    odd = (Any, int | str, str | int)  # free text in a wider type must begin with a letter
    fields = signature.output_fields.items()
    return all(
        field.annotation not in odd and same(values[name], read[name], field.annotation) for name, field in fields
    )


@pytest.mark.parametrize("kind", [small.llama, small.gpt2])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_random_weights_give_answers_that_are_read(tmp_path, kind, adapter):
    folder = kind(tmp_path / "model")
    model, chat = load_model(folder, "cpu", "float32"), ChatTokenizer(load_tokenizer(folder))
    signature = dspy.Signature(
        "text -> reasoning: str, label: Literal['card', 'card payment', 'cash'], sure: bool, amount: float, tags: list[str]"
    )
    prompt = chat.prompt_ids([{"role": "user", "content": "Where is my card?"}])
    for seed, (temperature, room) in enumerate(itertools.product((0.0, 1.0, 2.0), (110, 160, 400))):
        choose = writing.by_model(model, prompt, temperature, seed)
        ids = writing.write(constrain(signature, adapter, chat, room), room, choose)
        read = adapter.parse(signature, chat.decode(ids))
        assert read["label"] in ("card", "card payment", "cash")
        assert isinstance(read["tags"], list)
