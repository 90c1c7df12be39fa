"""Long prompts of their own: computed in their slots, kept for the next one, and in a batch that is as wide as they are."""

import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspyc.models.generation import Ending
from dspyc.models.loaded import LoadedModel
from dspyc.models.memory import MemoryPlan
from dspyc.models.scheduler import Scheduler
from dspyc.models.store import Layer, Prefix, Store
from dspyc.models.weights import load_model, load_tokenizer
from tests.models import single, small

SYSTEM = [5 + i * 7 % 290 for i in range(60)]


def document(seed: int, length: int = 160) -> list[int]:
    return random.Random(seed).choices(range(4, 300), k=length)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("starts") / "llama", seed=8)


@pytest.fixture
def fresh(folder: Path) -> LoadedModel:
    """The model without what other tests left."""
    single.model(folder).close()
    single.replies(folder, single.greedy([4, 5], 1))
    return single.model(folder)


class Watched:
    """How many tokens each forward pass reads, and behind how many prefixes its rows stand."""

    def __init__(self, model: LoadedModel) -> None:
        self.tokens: list[int] = []
        self.groups: list[int] = []
        self._hook = model._model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs) -> None:
        self.tokens.append(kwargs["input_ids"].numel())
        self.groups.append(len(kwargs["step"].groups))

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def test_documents_are_computed_together_and_once(folder: Path, fresh: LoadedModel) -> None:
    asked = [[*SYSTEM, *document(i), 7, 9] for i in range(9)]
    expected = [single.answer(folder, ids, 6) for ids in asked]
    jobs = [single.greedy(ids, 6) for ids in asked]
    with Watched(fresh) as seen:
        assert [future.result(60).text for future in fresh.submit(*jobs)] == expected
    assert seen.tokens == [len(SYSTEM), 9 * 162, 9, 9, 9, 9, 9]
    assert max(seen.groups) == 1  # all behind what they share
    with Watched(fresh) as seen:
        replies = [future.result(60) for future in fresh.submit(*(single.greedy(ids, 6) for ids in asked))]
    assert [reply.text for reply in replies] == expected
    assert {reply.cached for reply in replies} == {len(asked[0]) - 1}
    assert seen.tokens == [9] * 6
    assert max(seen.groups) == 2  # one stands behind what was kept of it, and the others have copies


def test_one_document_asked_by_many_is_one_prefix(folder: Path, fresh: LoadedModel) -> None:
    asked = [[*document(1), 7, 9 + i] for i in range(6)]
    expected = [single.answer(folder, ids, 6) for ids in asked]
    with Watched(fresh) as seen:
        assert single.replies(folder, *(single.greedy(ids, 6) for ids in asked)) == expected
        assert single.replies(folder, *(single.greedy(ids, 6) for ids in asked)) == expected
    assert max(seen.groups) == 1
    assert seen.tokens[:2] == [161, 6]


def test_a_conversation_goes_on_from_where_it_was(folder: Path, fresh: LoadedModel) -> None:
    talks = [[*SYSTEM, *document(i, 150)] for i in range(7)]
    for turn in range(3):
        expected = [single.answer(folder, ids, 4) for ids in talks]
        replies = [future.result(60) for future in fresh.submit(*(single.greedy(ids, 4) for ids in talks))]
        assert [reply.text for reply in replies] == expected
        if turn:
            assert all(reply.cached >= 209 for reply in replies)
        talks = [[*ids, *document(100 * turn + i, 20)] for i, ids in enumerate(talks)]


def test_a_wide_row_does_not_widen_the_slots_of_short_ones(folder: Path, fresh: LoadedModel) -> None:
    short = [[5 + i, 6, 7] for i in range(8)]
    jobs = [single.greedy(document(3, 1500), 8), *(single.greedy(ids, 8) for ids in short)]
    expected = [single.answer(folder, job.ids, 8) for job in jobs]
    with Watched(fresh) as seen:
        assert single.replies(folder, *jobs) == expected
    assert seen.tokens == [1500, 24, *[9] * 7]  # what was kept of it lets it go on among the others
    assert max(seen.groups) == 2
    with Watched(fresh) as seen:  # where there are many, that would be too many prefixes: they share a batch
        jobs = [
            *(single.greedy(document(10 + i, 400 + i), 3) for i in range(4)),
            *(single.greedy(ids, 3) for ids in short),
        ]
        expected = [single.answer(folder, job.ids, 3) for job in jobs]
        assert single.replies(folder, *jobs) == expected
    assert seen.tokens == [1609, 21, 5, 7, 5, 7]  # one short row leaves less empty than the weights take


def test_slots_shrink_where_a_long_row_has_left() -> None:
    store = Store(1, 1000)
    store.layer(0, torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
    store.layers[0].keys[0, :, :5] = torch.arange(5.0)[:, None]
    store.reserve(8, 20, 1)
    assert (store.slots, store.room) == (12, 32)
    assert store.layers[0].keys[0, 0, :5, 0].tolist() == [0, 1, 2, 3, 4]


def test_what_is_copied_is_what_was_there() -> None:
    base = Prefix([1, 2, 3], None, [Layer(torch.randn(2, 3, 4), torch.randn(2, 3, 4))])
    store = Store(2, 8)
    store.fill(1, base, 1, 3)
    (layer,) = store.taken(1, 2, base, 1)
    assert torch.equal(layer.keys, base.layers[0].keys)
    assert torch.equal(layer.values, base.layers[0].values)
    store.layers[0].keys.zero_()
    assert torch.equal(layer.keys, base.layers[0].keys)


pieces = st.lists(st.integers(0, 3), min_size=1, max_size=3)
arrivals = st.lists(
    st.tuples(pieces, st.integers(0, 2), st.integers(1, 12), st.integers(0, 6)), min_size=4, max_size=24
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(arrivals=arrivals, room=st.sampled_from([700, 3000, 100_000]), kept=st.sampled_from([0, 400, 100_000]))
def test_rows_that_come_and_go_say_what_each_says_alone(folder: Path, arrivals, room: int, kept: int) -> None:
    """Prompts of some documents in a row, in waves, some of them cancelled, in much memory and in little."""
    model, tokenizer = load_model(folder, "cpu", "float32"), load_tokenizer(folder)
    a_token = 2 * 2 * model.config.num_key_value_heads * 8 * 4
    ending = Ending({tokenizer.eos_token_id}, tokenizer.decode)
    plan = MemoryPlan(1 << 30, 0, kept * a_token, room * a_token)
    scheduler = Scheduler(model, ending, tokenizer.pad_token_id, plan, lambda identity, folder: None)
    scheduler._slotted._apart = 300 * a_token  # as a larger model's weights would be beside such rows
    jobs, cancelled, written = [], set(), defaultdict(list)
    for parts, end, tokens, wait in arrivals:
        ids = [token for part in parts for token in document(part, 130 + part)] + [5 + end]
        jobs.append(single.greedy(ids, tokens, on_tokens=written[len(jobs)].extend))
        scheduler.submit([jobs[-1]])
        for _ in range(wait // 2):
            scheduler.step()
        if wait == 5:
            cancelled.add(len(jobs) - 1)
            jobs[-1].reply.cancel()
        assert scheduler.memory.prefixes <= plan.prefixes
        assert scheduler.memory.batch <= plan.batch
    while scheduler.live:
        scheduler.step()
    for at, job in enumerate(jobs):
        if at not in cancelled:
            assert job.reply.result(0).tokens == len(written[at])
            assert single.is_greedy(folder, job.ids, written[at])
    assert all(not prefix.users and not prefix.rows for prefix in scheduler._starts.kept)
    assert all(not len(batch) for batch in scheduler._slotted)
