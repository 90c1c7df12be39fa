"""Adapters that peft wears: they answer as peft alone does, and leave the base and each other as they are."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from dspyc.errors import ModelError
from dspyc.models import identity
from dspyc.models.generation import Job
from dspyc.models.sampling import Sampling
from tests.models import single, small

IDS, TOKENS = [5, 6, 7, 8], 8


def job(base: Path, adapter: Path | None) -> Job:
    return Job(IDS, Sampling(TOKENS), adapter and (identity(base, adapter), adapter))


def answers(base: Path, *adapters: Path | None) -> list[str]:
    return single.replies(base, *(job(base, adapter) for adapter in adapters))


def alone(base: Path, *adapters: Path | None) -> list[str]:
    return [single.answer(base, IDS, TOKENS, adapter) for adapter in adapters]


def refused(base: Path, adapter: Path, match: str) -> None:
    """The adapter is refused, and the base and a plain adapter answer as before."""
    plain = small.lora(base, adapter.parent / "plain", seed=7)
    with pytest.raises(ModelError, match=match):
        answers(base, adapter)
    assert answers(base, None, plain) == alone(base, None, plain)


def keep_apart(base: Path, *worn: Path) -> None:
    """The base and all adapters answer differently, and each as alone, whichever was loaded first."""
    expected = alone(base, None, *worn)
    assert len(set(expected)) == 1 + len(worn)
    assert answers(base, *worn, None) == [*expected[1:], expected[0]]
    assert answers(base, None, *worn) == expected


@pytest.mark.parametrize("depths", [(2, 3), (3, 2)])
def test_an_adapter_of_another_depth_is_refused(depths: tuple[int, int], tmp_path: Path) -> None:
    base, other = (small.llama(tmp_path / str(n), seed=20 + n, num_hidden_layers=n) for n in depths)
    refused(base, small.lora(other, tmp_path / "dora", seed=1, use_dora=True), "is in one of them only")


def test_an_adapter_of_another_width_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    base = small.llama(tmp_path / "base", seed=23)
    wider = small.llama(tmp_path / "wider", intermediate_size=96)
    refused(base, small.lora(wider, tmp_path / "dora", seed=1, use_dora=True), "does not fit")
    assert single.model(base)._scheduler._special.bytes == 0


def test_an_adapter_of_a_resized_vocabulary_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    base, resized = small.llama(tmp_path / "base", seed=24), tmp_path / "resized"
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(resized)
    refused(base, small.lora(resized, tmp_path / "head", seed=1, modules_to_save=["lm_head"]), "does not fit")


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"alora_invocation_tokens": [5], "task_type": "CAUSAL_LM"}, "aLoRA"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeats"),
    ],
)
def test_adapters_that_are_not_of_the_whole_prompt_or_of_these_layers_are_refused(
    setting: dict[str, Any], match: str, tmp_path: Path
) -> None:
    base = small.llama(tmp_path / "base", seed=25)
    refused(base, small.lora(base, tmp_path / "other", seed=1, **setting), match)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_belong_to_their_adapter(bias: str, tmp_path: Path) -> None:
    base = small.gpt2(tmp_path / "gpt2", seed=26)
    settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    worn = [small.lora(base, tmp_path / str(n), seed=n, bias=bias, **settings) for n in range(2)]
    worn.append(small.lora(base, tmp_path / "plain", seed=2, **settings))
    keep_apart(base, *worn)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_replaces_weights_does_so_for_its_adapter_only(start: str, tmp_path: Path) -> None:
    base = small.llama(tmp_path / "base", seed=27)
    worn = [small.lora(base, tmp_path / str(n), seed=n, init_lora_weights=start) for n in range(2)]
    worn.append(small.lora(base, tmp_path / "dora", seed=2, use_dora=True))
    worn.append(small.lora(base, tmp_path / "plain", seed=3))
    keep_apart(base, *worn)


@pytest.mark.parametrize("kind", ["mamba", "phi3"])
def test_batches_of_a_model_that_runs_its_own_way_wear_them_too(kind: str, tmp_path: Path) -> None:
    base = (
        small.mamba(tmp_path / "base", seed=30) if kind == "mamba" else small.phi3(tmp_path / "base", short=6, seed=30)
    )
    targets = ["in_proj"] if kind == "mamba" else ["qkv_proj"]
    worn = small.lora(base, tmp_path / "dora", seed=1, use_dora=True, target_modules=targets)
    expected = alone(base, None, worn)
    assert len(set(expected)) == 2
    assert answers(base, worn, None) == expected[::-1]


def test_embeddings_that_were_saved_belong_to_their_adapter(tmp_path: Path) -> None:
    base = small.llama(tmp_path / "base", seed=28, tie_word_embeddings=True)
    worn = small.lora(base, tmp_path / "inside", seed=1, target_modules=["embed_tokens", "q_proj"])
    changed: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), worn)
    changed.get_input_embeddings().base_layer.weight.data += 1  # as where it was trained on another base
    changed.save_pretrained(worn)
    expected = alone(base, worn, None)
    assert len(set(expected)) == 2
    assert answers(base, worn, None) == expected


def test_an_adapter_that_is_dropped_is_freed(tmp_path: Path) -> None:
    base = small.llama(tmp_path / "base", seed=29)
    worn = small.lora(base, tmp_path / "head", seed=1, use_dora=True, modules_to_save=["lm_head"])
    assert answers(base, worn) == alone(base, worn)
    model = single.model(base)
    special = model._scheduler._special
    (twin,) = special._twins.values()
    learned = sum(tensor.nbytes for name, tensor in twin.named_parameters() if "default" in name)
    assert model.memory.adapters == special.bytes == learned
    freed = weakref.ref(twin)
    del twin
    gc.disable()
    try:
        model.forget(identity(base, worn))
        answers(base, None)
        assert freed() is None
    finally:
        gc.enable()
    assert model.memory.adapters == 0
