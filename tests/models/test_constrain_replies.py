"""What is written under a constraint: every reply is read, and a student that knows the answer may give it."""

import itertools
from typing import Any

import dspy
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dspyc
from dspyc.errors import ModelError
from dspyc.models import ChatTokenizer, load_model, load_tokenizer
from dspyc.models.constraints import Constraint, constraint_of
from dspyc.models.generation import Job
from dspyc.models.sampling import Sampling
from dspyc.signatures.grammar import reply_grammar
from dspyc.signatures.values import same
from tests.models import single, small, writing
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


TICKETS = range(30)
SORT = dspy.Signature("ticket -> kind: Literal['refund', 'delivery', 'other'], urgent: bool, count: int, note: str")


def asked(adapter, at: int) -> list[dict[str, str]]:
    """A ticket of three letters, which say all that the answer depends on, and the format that is asked for."""
    return [{"role": "user", "content": f"{type(adapter).__name__[0]} {'rdo'[at % 3]}{'!.'[at % 2]}{at % 5}"}]


def taught(adapter, at: int) -> dict[str, str]:
    kind, note = ("refund", "delivery", "other")[at % 3], ("Wait.", "Hi!\n\nBye.")[at % 2]
    values = {"kind": kind, "urgent": at % 2 == 0, "count": at % 5, "note": note}
    return {"role": "assistant", "content": adapter.format_assistant_message_content(SORT, values)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A student that has learned three tickets in four, in every format; and its tokenizer."""
    shape = {"initializer_range": 0.05, "hidden_size": 64, "intermediate_size": 128}
    folder = small.llama(tmp_path_factory.mktemp("trained") / "student", **shape)
    chat, model = SMALL, transformers.AutoModelForCausalLM.from_pretrained(folder)
    rows = [chat.row_ids([*asked(a, at), taught(a, at)]) for a in ADAPTERS for at in TICKETS if at % 4]
    ids = torch.zeros(len(rows), max(len(row) for row, _ in rows), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for place, (row, prompt) in enumerate(rows):
        ids[place, : len(row)] = labels[place, : len(row)] = torch.tensor(row)
        labels[place, :prompt] = -100
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=5e-3), torch.Generator().manual_seed(0)
    for _ in range(160):
        batch = torch.randint(len(ids), (12,), generator=draw)
        model(input_ids=ids[batch], labels=labels[batch]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder, chat


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_a_trained_student_answers_as_it_would_have_without_a_constraint(trained, adapter):
    folder, chat = trained
    jobs, grammar = [], reply_grammar(SORT, adapter)
    for at in TICKETS:
        prompt = chat.prompt_ids(asked(adapter, at))
        jobs.append(Job(prompt, Sampling(160)))
        jobs.append(Job(prompt, Sampling(160), constraint=constraint_of(grammar, chat, max_tokens=160)))
    texts = single.replies(folder, *jobs)
    pairs = [pair for pair in zip(texts[::2], texts[1::2], strict=True) if is_own(adapter, pair[0])]
    assert len(pairs) >= 20, texts[::2]  # of its 30 answers
    assert len({free for free, _ in pairs}) >= 3
    assert all(free == held for free, held in pairs)


def is_own(adapter, reply: str) -> bool:
    """Whether a reply is as the adapter itself writes it; one that it only reads may be laid out in another way."""
    try:
        read = adapter.parse(SORT, reply)
    except dspy.utils.exceptions.AdapterParseError:
        return False
    return reply == adapter.format_assistant_message_content(SORT, read)
