"""Plain LoRA: several adapters in one step answer as each does alone with peft."""

from pathlib import Path

from dspyc.models import identity
from dspyc.models.generation import Job
from dspyc.models.lora import is_plain
from dspyc.models.sampling import Sampling
from tests.models import single, small

IDS, TOKENS = [5, 6, 7, 8], 8


def agree(base: Path, *worn: Path) -> None:
    """The base and plain adapters, asked together, answer as each does alone; no two the same."""
    assert all(is_plain(adapter) for adapter in worn)
    names = [None, *((identity(base, adapter), adapter) for adapter in worn)]
    expected = [single.answer(base, IDS, TOKENS, adapter) for adapter in (None, *worn)]
    assert single.replies(base, *(Job(IDS, Sampling(TOKENS), name) for name in names)) == expected
    assert len(set(expected)) == len(expected)


def test_patterns_of_alpha_are_read_as_peft_reads_them(tmp_path: Path) -> None:
    base = small.llama(tmp_path / "base", seed=40)
    settings = {"target_modules": ["q_proj", "k_proj", "v_proj"], "alpha_pattern": {"q_proj|k_proj": 64}}
    agree(base, small.lora(base, tmp_path / "worn", seed=1, **settings))


def test_adapters_of_a_layer_that_reads_tokens_without_a_batch_share_a_step(tmp_path: Path) -> None:
    base = small.opt(tmp_path / "base", seed=41)
    worn = [small.lora(base, tmp_path / str(n), seed=n, target_modules=["q_proj", "fc1", "fc2"]) for n in range(2)]
    agree(base, *worn)
    assert single.model(base)._scheduler._token_bytes > 0


def test_adapters_of_the_output_projection_share_a_step(tmp_path: Path) -> None:
    base = small.llama(tmp_path / "base", seed=42)
    settings = {"target_modules": ["q_proj", "lm_head"], "embeddings": False}
    worn = [small.lora(base, tmp_path / str(n), seed=n, **settings) for n in range(2)]
    agree(base, *worn)
    for adapter in worn:
        single.model(base).forget(identity(base, adapter))
    assert single.replies(base, single.greedy(IDS, TOKENS)) == [single.answer(base, IDS, TOKENS)]
    assert not single.model(base)._model._forward_pre_hooks
