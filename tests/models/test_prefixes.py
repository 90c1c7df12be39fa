"""Prefixes: computed once, found by their content, dropped under the memory limit; and what usage says of them."""

import asyncio
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
import torch
from dspy import lm15
from hypothesis import given
from hypothesis import strategies as st

import dspyc
from dspyc.errors import ConfigError
from dspyc.models import AsyncLocalEngine, identity
from dspyc.models.candidates import CandidatesLM
from dspyc.models.engine import LocalEngine
from dspyc.models.generation import Job
from dspyc.models.loaded import LoadedModel
from dspyc.models.prefixes import Overlaps, PrefixCache, common, is_long, shared_length
from dspyc.models.sampling import Sampling
from dspyc.models.store import Layer, Prefix
from tests.models import single, small

SYSTEM = [5 + i * 7 % 290 for i in range(200)]


def prefix(ids: list[int], adapter: str | None = None) -> Prefix:
    """A prefix that takes 8 bytes a token."""
    return Prefix(ids, adapter, [Layer(torch.zeros(1, len(ids), 1), torch.zeros(1, len(ids), 1))])


def array(*ids: int) -> Any:
    return np.array(ids)


class Counted:
    """The tokens that reach a model, forward pass by forward pass."""

    def __init__(self, model: LoadedModel) -> None:
        self.passes: list[int] = []
        self._hook = model._model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.passes.append(kwargs["input_ids"].numel())

    def stop(self) -> list[int]:
        self._hook.remove()
        return self.passes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = small.llama(tmp_path / "fresh", seed=6)
    single.model(made).close()  # the same weights were in use by the test before
    single.replies(made, single.greedy([4, 5], 1))
    return made


def test_the_longest_common_beginning_is_found_whatever_prefix_it_stands_in() -> None:
    kept = PrefixCache()
    first, second = prefix([1, 2, 3, 4]), prefix([1, 2, 9, 9, 9, 9])
    kept.keep(first)
    kept.keep(second)
    assert kept.match(None, array(1, 2, 3, 7)) == (first, 3)
    assert kept.match(None, array(1, 2, 9, 9)) == (second, 3)  # a prompt's last token is always computed
    assert kept.match(None, array(2, 1)) == (None, 0)


def test_prefixes_belong_to_an_adapter() -> None:
    kept = PrefixCache()
    kept.keep(prefix([1, 2, 3], "a"))
    assert kept.match("b", array(1, 2, 3, 4)) == (None, 0)
    assert kept.match("a", array(1, 2, 3, 4))[1] == 3
    kept.forget("a")
    assert len(kept) == 0


def test_the_least_recently_used_prefix_goes_first_and_never_one_in_use() -> None:
    kept = PrefixCache()
    one, two, three = (prefix([n, 1, 1, 1]) for n in (1, 2, 3))  # 32 bytes each
    for each in (one, two, three):
        kept.keep(each)
    kept.match(None, array(1, 1, 1, 1, 1))
    three.users = 1
    assert kept.shrink(64)
    assert kept.match(None, array(2, 1, 1, 1, 1)) == (None, 0)
    assert kept.shrink(0)
    assert kept.bytes == three.bytes
    assert kept.match(None, array(3, 1, 1)) == (three, 2)


def test_what_is_worth_a_prefix() -> None:
    assert common(np.arange(400), np.arange(300)) == 300
    assert shared_length(399, [90] * 3, matched=0) == 90
    assert shared_length(399, [90] * 3, matched=80) == 0  # ten tokens more are not
    assert shared_length(399, [90], matched=0) == 0  # nor is what two short prompts share
    assert shared_length(399, [300, 200, 200, 200], matched=0) == 200  # most in all
    assert shared_length(399, [400, 400], matched=0) == 399  # the last token of equal prompts is computed
    assert is_long(399, matched=0)
    assert not is_long(399, matched=300)
    assert not is_long(39, matched=0)


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "a", "b"]), st.lists(st.integers(0, 2), min_size=1, max_size=6)),
        min_size=1,
        max_size=12,
    )
)
def test_what_prompts_share_is_what_each_shares_with_each(prompts: list[tuple[str | None, list[int]]]) -> None:
    asked = [(adapter, np.array(ids)) for adapter, ids in prompts]
    overlaps = Overlaps(asked)
    for at, (adapter, ids) in enumerate(asked):
        others = [other for i, other in enumerate(asked) if i != at]
        found = [common(ids, others_ids) if other == adapter else 0 for other, others_ids in others]
        assert list(overlaps.of(at)) == sorted(found, reverse=True)


few = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "a"]), few), max_size=12, unique_by=lambda each: (each[0], tuple(each[1]))
    ),
    few,
)
def test_no_kept_prefix_has_more_in_common_than_the_one_that_is_found(
    kept: list[tuple[str | None, list[int]]], asked: list[int]
) -> None:
    cache, ids = PrefixCache(), np.array(asked)
    for adapter, tokens in kept:
        cache.keep(prefix(tokens, adapter))
    for adapter in (None, "a"):
        lengths = {tuple(tokens): common(np.array(tokens), ids[:-1]) for other, tokens in kept if other == adapter}
        found, length = cache.match(adapter, ids)
        assert length == max(lengths.values(), default=0)
        if found is not None:
            whole = [tokens for tokens, n in lengths.items() if n == length == len(tokens)]
            assert found.adapter == adapter
            assert lengths[tuple(found.ids)] == length
            assert not whole or [tuple(found.ids)] == whole
    cache.shrink(0)
    assert (len(cache), cache.bytes, cache.match(None, ids)) == (0, 0, (None, 0))


def test_rows_stand_where_others_do() -> None:
    cache = PrefixCache()
    long, other, made = prefix([1, 2, 3, 4, 5, 6]), prefix([1, 2, 3, 9, 9, 9]), prefix([1, 2, 3])
    for each in (long, other, made):
        cache.keep(each)
    assert cache.standing(None, array(1, 2, 3, 9, 9, 7)) == (None, 0)
    long.users = 1
    assert cache.standing(None, array(1, 2, 3, 9, 9, 7)) == (long, 3)
    made.several = True
    assert cache.standing(None, array(1, 2, 3, 9, 9, 7)) == (made, 3)
    assert cache.standing(None, array(1, 2, 3, 4, 9, 7)) == (long, 4)


def test_a_prefix_is_computed_once_for_all_that_share_it(folder: Path) -> None:
    asked = [[*SYSTEM, 5 + i, 7, 9] for i in range(12)]
    model = single.model(folder)
    counted = Counted(model)
    together = model.submit(*(single.greedy(ids, 4) for ids in asked))
    replies = [future.result(60) for future in together]
    first = counted.stop()
    assert sum(first) == len(SYSTEM) + 12 * 3 + 3 * 12
    assert [reply.text for reply in replies] == [single.answer(folder, ids, 4) for ids in asked]
    assert [reply.cached for reply in replies] == [0, *[len(SYSTEM)] * 11]
    counted = Counted(model)
    later = model.submit(single.greedy([*SYSTEM, 70, 71], 3))[0].result(60)
    assert sum(counted.stop()) == 2 + 2
    assert later.cached == len(SYSTEM)
    assert later.text == single.answer(folder, [*SYSTEM, 70, 71], 3)


def test_adapters_have_prefixes_of_their_own(folder: Path, tmp_path: Path) -> None:
    worn = [small.lora(folder, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    names = [None, *((identity(folder, each), each) for each in worn)]
    jobs = [Job([*SYSTEM, 5, 6], Sampling(6), adapter) for adapter in names for _ in range(3)]
    found = single.replies(folder, *jobs)
    expected = [single.answer(folder, [*SYSTEM, 5, 6], 6, each) for each in (None, *worn)]
    assert found == [text for text in expected for _ in range(3)]
    assert len(set(expected)) == 3


def test_an_adapter_can_go_and_come_while_requests_run(folder: Path, tmp_path: Path) -> None:
    worn = small.lora(folder, tmp_path / "worn", seed=5)
    name = identity(folder, worn)
    model = single.model(folder)
    running = model.submit(*(single.greedy([5, i], 60) for i in range(10, 14)))
    for i in range(4):
        future = model.submit(Job([8, 9, i + 5], Sampling(5), (name, worn)))[0]
        assert future.result(30).text == single.answer(folder, [8, 9, i + 5], 5, worn)
        model.forget(name)
    assert [future.result(30).text for future in running] == [single.answer(folder, [5, i], 60) for i in range(10, 14)]
    single.replies(folder, single.greedy([5], 1))
    assert name not in model._scheduler._adapters
    assert model.memory.adapters == 0


def test_an_adapter_that_is_more_than_two_factors_a_layer_runs_beside_the_others(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    wrapped.save_pretrained(tmp_path / "dora")
    plain = small.lora(folder, tmp_path / "plain", seed=3)
    worn = [None, tmp_path / "dora", plain]
    jobs = [Job([5, 6, 7 + i], Sampling(8), each and (identity(folder, each), each)) for i in range(3) for each in worn]
    expected = [single.answer(folder, [5, 6, 7 + i], 8, each) for i in range(3) for each in worn]
    assert single.replies(folder, *jobs) == expected
    assert len(set(expected[:3])) == 3
    model = single.model(folder)
    scheduler = model._scheduler
    held = model.memory
    assert held.weights == held.plan.weights
    assert held.adapters == scheduler._adapters.bytes + scheduler._special.bytes
    assert min(scheduler._adapters.bytes, scheduler._special.bytes) > 0
    for each in worn[1:]:
        model.forget(identity(folder, each))
    single.replies(folder, single.greedy([5], 1))
    assert model.memory.adapters == 0


def test_candidates_share_one_prefill_and_are_drawn_apart(folder: Path) -> None:
    engine = LocalEngine(folder)
    lm = CandidatesLM(engine.model_string, engine=engine, cache=False, temperature=1.5, max_tokens=10)
    question = "Hello there, how are you today? " * 12
    prompt = len(engine.chat.prompt_ids([{"role": "user", "content": question}]))
    counted = Counted(engine._loaded)
    texts = lm(question, n=8)
    passes = counted.stop()
    assert sum(passes[:2]) == prompt
    assert len(passes) <= 12
    assert len(set(texts)) > 4
    assert engine.calls == 8
    assert lm("Hello", n=3, seed=5) == lm("Hello", n=3, seed=5)
    assert lm("Hello", n=3, seed=5)[:1] == lm("Hello", seed=5)
    assert len(set(lm("Hello", n=3, seed=5))) > 1


@pytest.mark.parametrize("temperature", [None, 0, 1e-6])
def test_candidates_that_would_all_be_the_same_are_refused(folder: Path, temperature: float | None) -> None:
    engine = LocalEngine(folder)
    lm = CandidatesLM(engine.model_string, engine=engine, cache=False, temperature=temperature, max_tokens=4, n=8)
    with pytest.raises(ConfigError, match=r"n=8 replies at temperature .*, which are 8 times the same one") as found:
        lm("Hello")
    with pytest.raises(ConfigError, match="n=3 replies"):
        asyncio.run(lm.copy(async_engine=AsyncLocalEngine(engine)).acall("Hello", n=3))
    assert "temperature=0.7" in found.value.hint
    assert engine.calls == 0
    assert len(lm("Hello", n=None)) == len(lm("Hello", n=1)) == 1
    assert lm(lm15.Request(model=lm.model, messages=(lm15.Message.user("Hello"),))).text is not None
    with dspy.context(lm=lm, adapter=dspyc.TerseAdapter()):
        dspy.Predict("question -> answer")(question="Hello")  # at a temperature of its own
    assert engine.calls == 3 + 8


def test_usage_names_cached_tokens(folder: Path) -> None:
    engine = LocalEngine(folder)
    lm = dspy.LM(engine.model_string, engine=engine, cache=False, max_tokens=3)
    question = "0123456789 " * 40
    lm(question + "a")
    lm(question + "b")
    usage = lm.history[-1]["usage"]
    assert usage["prompt_tokens"] - 40 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
