"""What a reply is made of in a live batch: constraints, scores, streamed text, and errors that stay with their request."""

import asyncio
import math
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from traceback import walk_tb
from typing import Any

import pytest
import torch
from dspy import lm15
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from dspyc.errors import ModelError
from dspyc.models import AsyncLocalEngine, ChatTokenizer, LocalEngine, identity, load_tokenizer
from dspyc.models.candidates import CandidatesLM, expected
from dspyc.models.generation import Ending, Generation, Job
from dspyc.models.loaded import LoadedModel
from dspyc.models.memory import MemoryPlan, plan
from dspyc.models.opening import Opening
from dspyc.models.sampling import Sampling, choose
from dspyc.models.scheduler import Scheduler
from dspyc.models.streaming import TextStream
from dspyc.models.weights import load_model
from tests.models import single, small

SIZE = len(small.tokenizer())


@pytest.fixture
def quick_turns() -> Iterator[None]:
    """Threads take turns a thousand times as often, so that they meet wherever they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


class Format:
    """A `Constraint`: so many free tokens out of some, between pieces that are fixed."""

    def __init__(self, *pieces: list[int] | set[int], closing: list[int] | None = None) -> None:
        self._pieces = list(pieces)
        self._closing = closing
        self.finished = False

    def forced(self) -> list[int]:
        found: list[int] = []
        while self._pieces and isinstance(self._pieces[0], list):
            found += self._pieces.pop(0)
        self.finished = not self._pieces
        return found

    def allowed(self) -> torch.Tensor | None:
        mask = torch.zeros(SIZE, dtype=torch.bool)
        mask[list(self._pieces[0])] = True
        return mask

    def accept(self, token: int) -> None:
        if token == 99:
            raise ModelError("99 is no token to accept")
        self._pieces.pop(0)

    def closing(self, left: int) -> list[int] | None:
        return self._closing if self._closing is not None and left <= len(self._closing) + 1 else None


def written(folder: Path, *jobs: Job) -> list[list[int]]:
    """The token ids of the replies."""
    found: list[list[int]] = [[] for _ in jobs]
    for job, ids in zip(jobs, found, strict=True):
        job.on_tokens = ids.extend
    single.replies(folder, *jobs)
    return found


def test_what_a_format_fixes_is_read_in_one_pass_with_the_next_token(llama: Path) -> None:
    model = single.model(llama)
    single.replies(llama, single.greedy([5], 1))
    passes: list[int] = []
    hook = model._model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    ids = written(llama, single.greedy([7, 8, 9], 40, constraint=Format([20, 21, 22], {30, 31}, [23, 24], {32}, [25])))
    hook.remove()
    assert ids[0][:3] == [20, 21, 22]
    assert ids[0][3] in (30, 31)
    assert ids[0][4:] == [23, 24, 32, 25]
    assert passes == [6, 3]


def test_constrained_rows_stand_beside_free_ones(llama: Path) -> None:
    free = [single.greedy([7, 8, 9 + i], 12) for i in range(4)]
    held = [
        single.greedy([7, 8, 9 + i], 40, constraint=Format([20] * i, {30 + i}, [23] * 9, {35 + i})) for i in range(4)
    ]
    mixed = [job for pair in zip(free, held, strict=True) for job in pair]
    ids = written(llama, *mixed)
    assert ids[1::2] == [[20] * i + [30 + i] + [23] * 9 + [35 + i] for i in range(4)]
    decode = single.model(llama).chat.decode
    assert [decode(each) for each in ids[::2]] == [single.answer(llama, [7, 8, 9 + i], 12) for i in range(4)]


def test_a_reply_that_is_fixed_from_the_start_asks_no_model(llama: Path) -> None:
    assert written(llama, single.greedy([5, 6], 9, constraint=Format([20, 21])))[0] == [20, 21]


def test_a_reply_that_runs_out_of_tokens_is_closed(llama: Path) -> None:
    constraint = Format({30}, {31}, {32}, {33}, {34}, {35}, closing=[40, 41])
    job = single.greedy([5, 6], 5, constraint=constraint)
    assert written(llama, job)[0] == [30, 31, 40, 41]
    assert job.reply.result().finish_reason == "length"


def test_a_constraint_that_fails_fails_its_own_request_only(llama: Path) -> None:
    failing = single.greedy([7, 8, 9], 10, constraint=Format({99}, {98}))
    other = single.greedy([7, 8, 9], 10)
    futures = single.model(llama).submit(failing, other)
    assert isinstance(futures[0].exception(30), ModelError)
    assert futures[1].result(30).text == single.answer(llama, [7, 8, 9], 10)


def test_an_error_keeps_no_tensors(llama: Path) -> None:
    model = single.model(llama)
    single.replies(llama, single.greedy([4, 5], 1))

    def fails(module: Any, args: Any, output: Any) -> None:
        raise RuntimeError("no such kernel")

    hook = model._model.get_output_embeddings().register_forward_hook(fails)
    error = model.submit(single.greedy([5, 6, 7], 3))[0].exception(60)
    hook.remove()
    assert "no such kernel" in str(error)
    frames = [frame.f_locals for frame, _ in walk_tb(error.__traceback__)]
    assert len(frames) > 3
    assert not any(isinstance(value, torch.Tensor) for names in frames for value in names.values())


def test_scores_are_those_of_the_model(llama: Path) -> None:
    ids = [5, 6, 7, 8]
    jobs = [
        Job(ids, Sampling(6, logprobs=3)),
        Job(ids, Sampling(6, temperature=1.5, seed=1, logprobs=0)),
        single.greedy(ids, 6),
    ]
    found = [future.result(30) for future in single.model(llama).submit(*jobs)]
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    for reply in found[:2]:
        tokens = [score.token for score in reply.scores]
        with torch.no_grad():
            expected = model(torch.tensor([ids + tokens])).logits[0].log_softmax(-1)
        for at, score in enumerate(reply.scores):
            assert score.logprob == pytest.approx(float(expected[len(ids) + at - 1, score.token]), abs=1e-3)
    assert all(score.top[0] == pytest.approx((score.token, score.logprob), abs=1e-5) for score in found[0].scores)
    assert [len(score.top) for score in found[0].scores] == [3] * 6
    assert found[2].scores == ()


def test_log_probabilities_reach_dspy(llama: Path) -> None:
    import dspy

    engine = LocalEngine(llama)
    lm = dspy.LM(engine.model_string, engine=engine, cache=False, max_tokens=4)
    answer = lm("Hello", logprobs=True, top_logprobs=2)[0]
    content = answer["logprobs"].content
    assert "".join(token.token for token in content) == answer["text"]
    assert all(len(token.top_logprobs) == 2 for token in content)
    assert all(token.logprob <= 0 and math.isfinite(token.logprob) for token in content)


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0]).log().repeat(6000, 1)
    expected = torch.tensor([0, 1 / 6, 2 / 6, 0, 3 / 6])
    torch.manual_seed(0)
    for generators in ([None] * 6000, [torch.Generator().manual_seed(seed) for seed in range(6000)]):
        tokens = choose(logits.clone(), [Sampling(1, temperature=1.0)] * 6000, generators)
        shares = torch.bincount(torch.tensor(tokens), minlength=5) / 6000
        assert torch.allclose(shares, expected, atol=0.025)
    for narrow in (Sampling(1, temperature=1.0, top_k=2), Sampling(1, temperature=1.0, top_p=0.6)):
        assert set(choose(logits.clone(), [narrow] * 6000, [None] * 6000)) == {2, 4}


class RunsOut(TorchDispatchMode):
    """Memory runs out once, when a tensor of a vocabulary's size or more is made for the `at`-th time."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        made = func._schema.returns and not func._schema.is_mutable and isinstance(found, torch.Tensor)
        if made and not func.is_view and found.numel() >= SIZE:
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found


def test_a_seed_gives_its_text_wherever_memory_runs_out(llama: Path) -> None:
    chat = ChatTokenizer(load_tokenizer(llama))
    planned = MemoryPlan(free=1 << 30, weights=0, prefixes=0, batch=1 << 30)
    warm = {"max_tokens": 4, "temperature": 1.5}

    def texts(out_of_memory: RunsOut) -> list[str]:
        """Of the replies with a seed, where memory runs out while their second token is computed."""
        torch.manual_seed(0)  # of the requests without one, which would end at other tokens each time
        model, ending = load_model(llama, "cpu", "float32"), Ending(chat.stop_ids, chat.decode, chat.opening)
        scheduler = Scheduler(model, ending, chat.tokenizer.pad_token_id, planned, lambda identity, folder: None)
        seeded = [Job([5, i], Sampling(**warm, seed=i, logprobs=2 if i < 9 else None)) for i in range(8, 11)]
        scheduler.submit([*seeded, Job([5, 6], Sampling(**warm)), Job([5, 7], Sampling(**warm, top_k=20))])
        scheduler.step()
        with out_of_memory:
            scheduler.step()
        while scheduler.live:
            scheduler.step()
        return [job.reply.result().text for job in seeded]

    places = RunsOut(-1)
    expected = texts(places)
    for at in range(1, -places.left):
        out_of_memory = RunsOut(at)
        assert texts(out_of_memory) == expected, at
        assert out_of_memory.left == 0
    assert at > 10


def request(engine: LocalEngine, **config: object) -> lm15.Request:
    return lm15.Request(model=engine.model_string, messages=(lm15.Message.user("Hello"),), config=lm15.Config(**config))


def test_text_is_streamed_while_it_is_written(llama: Path) -> None:
    engine = LocalEngine(llama)
    asked = request(engine, max_tokens=200, temperature=1.5, seed=4)
    events = list(engine.stream(asked))
    assert [event.type for event in events[:2]] == ["start", "delta"]
    assert len(events) > 20
    whole = engine.complete(asked)
    assert lm15.materialize_response(iter(events), asked).text == whole.text

    async def collect() -> list[object]:
        return [event async for event in AsyncLocalEngine(engine).stream(asked)]

    assert lm15.materialize_response(iter(asyncio.run(collect())), asked).text == whole.text


def test_streamed_candidates_draw_by_seeds_of_their_own(llama: Path) -> None:
    """DSPy streams the candidates of a call one after another."""
    engine = LocalEngine(llama)
    lm = CandidatesLM(engine.model_string, engine=engine, cache=False, temperature=1.5, max_tokens=10)
    asked = request(engine, max_tokens=10, temperature=1.5, seed=7)
    whole = lm(messages=[{"role": "user", "content": "Hello"}], n=3, seed=7)

    def streamed() -> list[str]:
        return ["".join(e.delta.text for e in engine.stream(asked) if e.type == "delta") for _ in range(3)]

    async def each() -> list[str]:
        texts = []
        for _ in range(3):
            events = [event async for event in AsyncLocalEngine(engine).stream(asked)]
            texts.append("".join(event.delta.text for event in events if event.type == "delta"))
        return texts

    with expected(3):
        assert streamed() == whole
    with expected(3):
        assert asyncio.run(each()) == whole
    assert len(set(whole)) == 3
    assert len(set(streamed())) == 1  # of three calls


def test_a_stream_that_is_closed_ends_its_work(llama: Path) -> None:
    engine = LocalEngine(llama)
    events: Iterator[object] = engine.stream(request(engine, max_tokens=1500, temperature=2.0, seed=2))
    for _ in range(3):
        next(events)
    events.close()  # type: ignore[attr-defined]
    engine.complete(request(engine, max_tokens=2))
    assert engine._loaded._scheduler.live == 0


def test_a_task_that_is_cancelled_ends_its_work(llama: Path) -> None:
    engine = LocalEngine(llama)
    engine.complete(request(engine, max_tokens=2))

    async def give_up() -> None:
        asked = request(engine, max_tokens=1900, temperature=2.0, seed=2)
        task = asyncio.create_task(AsyncLocalEngine(engine).complete(asked))
        while not engine._loaded._scheduler.live:
            assert not task.done()
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    engine.complete(request(engine, max_tokens=2))
    assert engine._loaded._scheduler.live == 0


@pytest.mark.parametrize("streams", [False, True])
def test_a_task_that_is_cancelled_before_its_work_begins_ends_it(llama: Path, streams: bool) -> None:
    """A first request waits for its tokenizer, and a new signature for its grammar."""
    engine = LocalEngine(llama)
    engine.complete(request(engine, max_tokens=2))
    asked = request(engine, max_tokens=1900, temperature=2.0, seed=2)

    async def ask() -> None:
        with expected(3):
            if streams:
                assert [event async for event in AsyncLocalEngine(engine).stream(asked)]
            else:
                await AsyncLocalEngine(engine).complete(asked)

    async def give_up() -> None:
        with engine._loaded._condition:  # what has begun cannot be submitted
            task = asyncio.create_task(ask())
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(give_up())
    engine.complete(request(engine, max_tokens=2))
    assert engine._loaded._scheduler.live == 0


def test_streamed_text_keeps_back_what_may_not_stay() -> None:
    decode = bytes
    stream = TextStream(lambda ids: decode(ids).decode(errors="replace"), ["END", "stop"], Opening())
    pieces = [stream.add([byte]) for byte in "aé ENs".encode()]
    assert pieces == ["a", "", "é", " ", "", "", "EN"]
    assert stream.add(b"top more") == ""
    assert stream.finish("aé EN") == ""


def test_an_opening_is_held_back_until_it_is_over() -> None:
    opening = Opening("<think>\n\n</think>\n\n")
    replies = [
        "yes\nno",
        "<think>\n\n</think>\n\nyes",
        "<think>\nwell, <b>\n</think>\n\nyes",
        "<think>so</think>yes",
        "<b>",
    ]
    owns = ["yes\nno", "yes", "yes", "yes", "<b>"]
    for reply, own in zip(replies, owns, strict=True):
        stream = TextStream(lambda ids: bytes(ids).decode(), ["no"], opening)
        pieces = [stream.add([byte]) for byte in reply.encode()]
        pieces.append(stream.finish(reply.removesuffix("no")))
        assert "".join(pieces) == own.removesuffix("no") == opening.without(reply).removesuffix("no")
    assert opening.without("<think>\nnever over") == "<think>\nnever over"


def test_stop_strings_count_behind_the_opening() -> None:
    opening = "<think>\n\n</think>\n\n"
    ending = Ending(set(), lambda ids: bytes(ids).decode(), Opening(opening))
    row = Generation(Job([1], Sampling(max_tokens=99, stop=("\n",))), ending)
    for byte in f"{opening}yes\nno".encode():
        if row.finish_reason is None:
            row.take(byte)
    assert (row.reply().text, row.finish_reason) == (opening + "yes", "stop")


def test_memory_is_planned_and_reported(llama: Path) -> None:
    engine = LocalEngine(llama)
    engine.complete(request(engine, max_tokens=1))
    report = engine.memory
    assert report is not None
    assert report.weights == report.plan.weights
    assert report.batch == 0
    assert report.plan.prefixes + report.plan.batch + report.plan.weights < report.plan.free


def test_a_model_that_does_not_fit_is_refused_with_figures(tmp_path: Path) -> None:
    size = 1 << 41
    header = b'{"w":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (size // 4, size)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # a file of holes
    with pytest.raises(
        ModelError, match=r"takes 2048\.00 GiB of memory as torch\.float32, and cpu has [\d.]+ GiB free"
    ):
        plan(tmp_path, "cpu", "float32")


def within(folder: Path, tokens: int, *jobs: Job, prefixes: int = 0) -> float:
    """Have jobs that come together answered where the keys and values of so many tokens are planned for batches, and of so many
    for prefixes; the most of the former that was held, as a share."""
    model, chat = load_model(folder, "cpu", "float32"), ChatTokenizer(load_tokenizer(folder))
    heads, whole = model.config.num_key_value_heads, model.config.hidden_size // model.config.num_attention_heads
    size = getattr(model.config, "head_dim", None) or whole
    a_token = 2 * model.config.num_hidden_layers * heads * size * model.dtype.itemsize
    planned = MemoryPlan(free=1 << 20, weights=0, prefixes=prefixes * a_token, batch=tokens * a_token)
    ending = Ending(chat.stop_ids, chat.decode, chat.opening)
    scheduler = Scheduler(model, ending, chat.tokenizer.pad_token_id, planned, lambda identity, folder: None)
    scheduler.submit(jobs)
    most = 0
    while not all(job.reply.done() for job in jobs):
        assert scheduler.live
        scheduler.step()
        most = max(most, scheduler.memory.batch)
        assert scheduler.memory.prefixes <= planned.prefixes
    assert not scheduler.live
    return most / planned.batch


def test_long_texts_of_longrope_keep_to_the_planned_memory(tmp_path: Path) -> None:
    folder = small.phi3(tmp_path / "phi3", short=64)
    asked = [[5 + i, *range(20, 120)] for i in range(4)]
    jobs = [single.greedy(ids, 10) for ids in asked]
    assert 0.4 < within(folder, 250, *jobs) <= 1  # two at a time
    assert [job.reply.result().text for job in jobs] == [single.answer(folder, ids, 10) for ids in asked]


def test_long_prompts_keep_to_the_planned_memory(llama: Path) -> None:
    """Each of them is worth a prefix, of which one fits; the others wait for room of their own."""
    asked = [[5 + i, *range(20, 170)] for i in range(6)]
    jobs = [single.greedy(ids, 10) for ids in asked]
    assert 0.4 < within(llama, 400, *jobs, prefixes=200) <= 1
    assert [job.reply.result().text for job in jobs] == [single.answer(llama, ids, 10) for ids in asked]


def test_adapters_with_a_batch_of_their_own_keep_to_the_planned_memory(llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(load_model(llama, "cpu", "float32"), LoraConfig(target_modules=["q_proj"], use_dora=True))
    for name in ("one", "other"):
        torch.nn.init.normal_(
            wrapped.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight")
        )
        wrapped.save_pretrained(tmp_path / name)
    worn = [(identity(llama, tmp_path / name), tmp_path / name) for name in ("one", "other")]
    jobs = [Job([5 + i, *range(20, 80)], Sampling(10), adapter) for i in range(6) for adapter in [*worn, None]]
    assert 0.4 < within(llama, 200, *jobs) <= 1
    expected = [single.answer(llama, job.ids, 10, job.adapter and job.adapter[1]) for job in jobs]
    assert [job.reply.result().text for job in jobs] == expected


def test_slots_grow_no_further_than_the_planned_memory(llama: Path) -> None:
    """What is kept for rows and tokens to come is less where the plan has less, down to what is there."""
    asked = [[5 + i, *range(20, 20 + 3 * i)] for i in range(12)]
    jobs = [single.greedy(ids, 30) for ids in asked]
    assert 0.6 < within(llama, 500, *jobs) <= 1
    assert [job.reply.result().text for job in jobs] == [single.answer(llama, ids, 30) for ids in asked]


def test_a_prompt_that_does_not_fit_the_planned_memory_is_refused(llama: Path) -> None:
    jobs = [single.greedy([5, i], 10) for i in range(20)]
    long = single.greedy(list(range(5, 105)), 10)
    within(llama, 60, *jobs, long)
    assert [job.reply.result().text for job in jobs] == [single.answer(llama, [5, i], 10) for i in range(20)]
    with pytest.raises(ModelError, match=r"keys and values take .* are planned for batches"):
        long.reply.result()


def test_a_prompt_that_is_refused_leaves_those_that_came_with_it_alone(llama: Path) -> None:
    short = [[5, 6, 7 + i, *range(20, 26)] for i in range(3)]
    long = [9, *range(30, 102)]  # 73 tokens
    jobs = [single.greedy(ids, 4) for ids in (long, short[0], [*long], short[1], [*long, 8], short[2])]
    within(llama, 60, *jobs)
    for job in jobs:
        if job.ids in short:
            assert job.reply.result().text == single.answer(llama, job.ids, 4)
        else:
            with pytest.raises(ModelError, match="are planned for batches"):
                job.reply.result()


def test_twins_of_which_one_is_refused(llama: Path) -> None:
    ids = list(range(20, 60))
    refused, one, other = single.greedy(ids, 30), single.greedy(ids, 4), single.greedy(ids, 5)
    within(llama, 60, refused, one, other)
    with pytest.raises(ModelError, match="are planned for batches"):
        refused.reply.result()
    assert one.reply.result().text == single.answer(llama, ids, 4)
    assert other.reply.result().text == single.answer(llama, ids, 5)


def test_an_adapter_is_forgotten_once_the_last_request_for_it_is_over(tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "base", seed=16)
    worn = small.lora(folder, tmp_path / "worn", seed=1)
    model, begun = single.model(folder), threading.Event()
    job = Job([5], Sampling(40), (identity(folder, worn), worn), on_tokens=lambda _: begun.set())
    (reply,) = model.submit(job)
    assert begun.wait(30)
    model.forget(identity(folder, worn))  # while it is needed
    assert reply.result(30).tokens > 1
    assert is_free_of_adapters(model)


@pytest.mark.parametrize("thread", ["waits", "has ended"])
def test_an_adapter_is_forgotten_while_there_are_no_requests(tmp_path: Path, thread: str) -> None:
    folder = small.llama(tmp_path / "base", seed=18)
    worn = small.lora(folder, tmp_path / "worn", seed=1)
    model, name = single.model(folder), identity(folder, worn)
    single.replies(folder, Job([5], Sampling(2), (name, worn)))
    assert model.memory is not None
    assert model.memory.adapters > 0
    if thread == "has ended":
        assert model._thread is not None
        model._thread.join(30)
        assert model._thread is None
    model.forget(name)
    assert is_free_of_adapters(model)


def is_free_of_adapters(model: LoadedModel) -> bool:
    """Whether a model has let go of all adapters, within some seconds; nothing else is asked of it."""
    until = time.monotonic() + 30
    while (held := model.memory) is not None and held.adapters and time.monotonic() < until:
        time.sleep(0.01)
    return held is not None and not held.adapters


def test_weights_whose_tokenizer_fails_are_let_go(tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "broken", seed=17)
    (folder / "tokenizer.json").write_text("{}")
    model = single.model(folder)
    (reply,) = model.submit(Job([5], Sampling(1)))
    assert reply.exception(60) is not None
    assert model._model is None


def test_memory_can_be_asked_while_requests_run(tmp_path: Path, quick_turns: None) -> None:
    folder = small.llama(tmp_path / "watched", seed=15)
    worn = small.lora(folder, tmp_path / "worn", seed=1)
    name = identity(folder, worn)
    single.replies(folder, Job([5], Sampling(1), (name, worn)))
    model = single.model(folder)
    adapter, over = model.memory.adapters, threading.Event()
    model.forget(name)

    def watch() -> tuple[int, int, int]:
        """The most that was ever held of prefixes, adapters and batch."""
        most = (0, 0, 0)
        while not over.is_set():
            report = model.memory
            assert report is not None
            most = tuple(map(max, most, (report.prefixes, report.adapters, report.batch)))  # type: ignore[assignment]
        return most

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(watch) for _ in range(2)]
        try:
            for turn in range(20):
                prompts = [[5 + turn, 5 + i, *(5 + j * (turn + 3) % 290 for j in range(130))] for i in range(6)]
                jobs = [Job(ids, Sampling(2), (name, worn) if i % 2 else None) for i, ids in enumerate(prompts)]
                for future in model.submit(*jobs):
                    future.result(60)
                model.forget(name)
        finally:
            over.set()
        for prefixes, adapters, batch in (future.result(30) for future in watching):
            assert 0 < prefixes <= model.memory.plan.prefixes
            assert adapters == adapter > 0
            assert 0 < batch <= model.memory.plan.batch
    single.replies(folder, single.greedy([5], 1))  # after which what was to be forgotten is
    held, scheduler = model.memory, model._scheduler
    assert held.prefixes == sum(prefix.bytes for prefix in scheduler._starts.kept)
    assert model.memory.adapters == 0
