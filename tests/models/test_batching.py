"""Continuous batches: whatever stands beside a request, its answer is the one that it has alone."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspyc.models import identity
from dspyc.models.generation import Job
from dspyc.models.sampling import Sampling
from dspyc.models.store import Store
from tests.models import single, small

KINDS = ("llama", "qwen3", "qwen3_moe", "gpt2")
MORE = {"mistral": {"window": 12}, "mamba": {}}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("kinds")
    made = {kind: getattr(small, kind)(home / kind, seed=3) for kind in KINDS}
    return made | {kind: getattr(small, kind)(home / kind, seed=3, **more) for kind, more in MORE.items()}


tokens = st.integers(4, 300)
prompts = st.tuples(
    st.lists(tokens, min_size=40, max_size=90),  # what they share
    st.lists(
        st.tuples(st.integers(0, 90), st.lists(tokens, min_size=1, max_size=40), st.integers(1, 9)),
        min_size=2,
        max_size=6,
    ),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=prompts, cut=st.integers(0, 5))
def test_batched_text_is_that_of_one_prompt_alone(kind: str, folders: dict[str, Path], drawn, cut: int) -> None:
    shared, ends = drawn
    asked = [(shared[:length] + end, most) for length, end, most in ends]
    jobs = [single.greedy(ids, most) for ids, most in asked]
    model = single.model(folders[kind])
    first = model.submit(*jobs[:cut])
    time.sleep(0.002)  # so that the others join a batch that is under way
    found = [future.result(60).text for future in [*first, *model.submit(*jobs[cut:])]]
    assert found == [single.answer(folders[kind], ids, most) for ids, most in asked]


@pytest.mark.parametrize("kind", MORE)
def test_models_whose_cache_is_more_than_keys_and_values_run_their_own_way(kind: str, folders: dict[str, Path]) -> None:
    asked = [([7 + 3 * i] * (4 + 5 * i) + [9, 11], 3 + 2 * i) for i in range(5)]
    found = single.replies(folders[kind], *(single.greedy(ids, most) for ids, most in asked))
    assert found == [single.answer(folders[kind], ids, most) for ids, most in asked]
    assert single.model(folders[kind])._scheduler._token_bytes == 0


def test_padding_pushes_no_row_beyond_the_context(tmp_path: Path) -> None:
    """The model's own mask is as wide as its context: a short prompt beside a long one could not write as much as alone."""
    folder = small.gpt_neo(tmp_path / "neo", context=64)
    asked = [([7] * 50, 2), ([9, 11], 60), ([13], 60)]
    found = single.replies(folder, *(single.greedy(ids, most) for ids, most in asked))
    assert found == [single.answer(folder, ids, most) for ids, most in asked]


def test_rows_of_sliding_windows_share_a_batch_though_padding_goes_beyond_the_context(tmp_path: Path) -> None:
    folder = small.mistral(tmp_path / "mistral", window=12, context=64)
    asked = [([7] * 20, 44), ([9, 11], 62)]
    expected = [single.answer(folder, ids, most) for ids, most in asked]
    single.replies(folder, single.greedy([5, 6], 1))
    model, rows = single.model(folder), []
    model._model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert single.replies(folder, *(single.greedy(ids, most) for ids, most in asked)) == expected
    assert rows[0] == 2
    assert len(rows) == 62


@pytest.mark.parametrize("kind", KINDS)
def test_attention_models_qualify_for_live_batches(kind: str, folders: dict[str, Path]) -> None:
    single.replies(folders[kind], single.greedy([5, 6, 7], 1))
    assert single.model(folders[kind])._scheduler._token_bytes > 0


def test_long_prompts_are_read_in_several_passes(folders: dict[str, Path]) -> None:
    asked = [[(i * j) % 290 + 5 for j in range(1900)] for i in (1, 2, 3)]  # more tokens than a pass takes
    found = single.replies(folders["llama"], *(single.greedy(ids, 4) for ids in asked))
    assert found == [single.answer(folders["llama"], ids, 4) for ids in asked]


def test_long_texts_of_longrope_leave_short_ones_as_they_are(tmp_path: Path) -> None:
    folder = small.phi3(tmp_path / "phi3", short=64)
    # Short throughout, long from the start, long on the way, and at the very limit; some share their first tokens.
    asked = [
        ([5 + i % 200 for i in range(length)], most) for length, most in ((13, 9), (229, 9), (60, 20), (64, 3), (55, 9))
    ]
    expected = [single.answer(folder, ids, most) for ids, most in asked]
    for _ in range(2):  # the second time behind what the first one has left
        assert single.replies(folder, *(single.greedy(ids, most) for ids, most in asked)) == expected
    for (ids, most), text in zip(asked, expected, strict=True):
        assert single.replies(folder, single.greedy(ids, most)) == [text]
    assert single.model(folder)._scheduler._token_bytes > 0


def test_threads_adapters_seeds_and_lengths_are_never_mixed_up(llama: Path, adapters: list[Path]) -> None:
    worn = [None, *((identity(llama, folder), folder) for folder in adapters)]

    def job(at: int) -> Job:
        ids = [5 + at % 7] * 60 + [11 + at % 5, 13 + at % 3]
        seed = at % 4 or None
        sampling = Sampling(max_tokens=1 + at % 6, temperature=1.2 if seed else None, seed=seed)
        return Job(ids, sampling, worn[at % 3])

    kinds = 7 * 5 * 3 * 4  # a number of distinct requests
    model = single.model(llama)
    alone = {at: model.submit(job(at))[0].result(60).text for at in range(0, kinds, 11)}

    def ask(thread: int) -> list[tuple[int, str]]:
        numbers = [(thread * 50 + turn) * 11 % kinds for turn in range(50)]
        return [(at, model.submit(job(at))[0].result(60).text) for at in numbers]

    with ThreadPoolExecutor(32) as pool:
        answers = [pair for thread in pool.map(ask, range(32)) for pair in thread]
    assert len(answers) == 32 * 50
    assert {at for at, _ in answers} == set(range(kinds))
    assert all(text == alone[at] for at, text in answers if at in alone)
    per_request: dict[int, set[str]] = {}
    for at, text in answers:
        per_request.setdefault(at, set()).add(text)
    assert all(len(texts) == 1 for texts in per_request.values())
    assert len({text for texts in per_request.values() for text in texts}) > 100


def test_a_request_that_is_cancelled_leaves_the_batch(llama: Path) -> None:
    started = threading.Event()
    endless = Job([5, 6, 7], Sampling(max_tokens=1500, temperature=2.0, seed=1), on_tokens=lambda _: started.set())
    model = single.model(llama)
    future, other = model.submit(endless, single.greedy([5, 6, 8], 20))
    assert started.wait(30)
    assert future.cancel()
    assert other.result(30).text == single.answer(llama, [5, 6, 8], 20)
    assert single.replies(llama, single.greedy([9, 9], 3)) == [single.answer(llama, [9, 9], 3)]
    assert model._scheduler.live == 0


def test_rows_that_leave_make_room_for_those_that_wait(llama: Path) -> None:
    asked = [([5 + i % 50, 7, 9 + i % 3], 1 + i % 4) for i in range(150)]  # more than a batch has rows
    found = single.replies(llama, *(single.greedy(ids, most) for ids, most in asked))
    assert found == [single.answer(llama, ids, most) for ids, most in asked]


def test_slots_at_the_limit_are_not_copied_at_every_token() -> None:
    store, limit, copies = Store(), 420, 0
    store.reserve(4, 10, 0, limit)
    first = store.layer(0, torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)).keys[:, :, :10].normal_().clone()
    for needed in range(11, 300):
        before = store.layers[0]
        store.reserve(4, needed, 4, limit)
        copies += store.layers[0] is not before
        assert store.room >= needed
        assert 4 * store.room <= (limit if 4 * needed <= limit else 4 * (needed + 31))
    assert copies < 15
    assert torch.equal(store.layers[0].keys[:, :, :10], first)


def test_out_of_memory_splits_the_batch(tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "narrow", seed=8)
    single.replies(folder, single.greedy([4, 5], 1))
    model = single.model(folder)
    refused = []

    def limit(_: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].shape[1] > 40:
            refused.append(kwargs["input_ids"].shape[1])
            raise torch.OutOfMemoryError("no more than 40 tokens at once")

    hook = model._model.register_forward_pre_hook(limit, with_kwargs=True)
    asked = [[5 + i] * 12 for i in range(16)]
    found = single.replies(folder, *(single.greedy(ids, 4) for ids in asked))
    too_long = model.submit(single.greedy([9] * 41, 2))[0]
    assert isinstance(too_long.exception(30), torch.OutOfMemoryError)
    hook.remove()
    assert refused[0] == 16 * 12
    assert found == [single.answer(folder, ids, 4) for ids in asked]


def test_closing_frees_all_and_leaves_no_thread(tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "closed", seed=9)
    model = single.model(folder)
    adapter = small.lora(folder, tmp_path / "adapter", seed=3)
    single.replies(folder, Job([5, 6], Sampling(3), (identity(folder, adapter), adapter)))
    weights = weakref.ref(model._model.get_input_embeddings().weight)
    futures = model.submit(*(single.greedy([5, i], 10) for i in range(5, 15)))
    gc.disable()  # what only cycles hold goes all the same
    try:
        model.close()
    finally:
        gc.enable()
    assert weights() is None
    assert all(future.done() for future in futures)
    assert model._model is None
    assert model.memory is None
    assert not [thread for thread in threading.enumerate() if thread.name == "dspyc closed"]
    assert single.replies(folder, single.greedy([5, 6], 3)) == [single.answer(folder, [5, 6], 3)]


def test_a_lone_request_does_not_wait_for_others(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, waits, wait_for_it = single.model(llama), [], threading.Condition.wait

    def noted(condition: threading.Condition, timeout: float | None = None) -> bool:
        if condition is model._condition and timeout is not None and timeout < 0.01:  # one for work is of seconds
            waits.append(timeout)
        return wait_for_it(condition, timeout)

    single.replies(llama, single.greedy([5, 6], 1))
    monkeypatch.setattr(threading.Condition, "wait", noted)  # Python's
    for _ in range(5):
        wait(model.submit(single.greedy([5, 6], 1)))
    assert waits == []
    assert model._together <= 1
    single.replies(llama, *(single.greedy([5, i], 1) for i in range(6, 14)))
    single.replies(llama, single.greedy([5, 6], 1))
    assert waits  # those that were answered together may come together again
