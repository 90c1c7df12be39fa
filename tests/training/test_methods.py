"""Every method that a CPU can run trains the bundled student; what is frozen stays bit for bit what it was."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspyc.errors import ConfigError, ModelError
from dspyc.files import write_json
from dspyc.models import ChatTokenizer
from dspyc.models.weights import TINY, identity, load_model, resolve
from dspyc.providers.local import LocalLM
from dspyc.training import TrainingConfig, train
from dspyc.training.events import read_events
from dspyc.training.merging import merge
from dspyc.training.methods import check_method, one_base, prepare, stored_dtype
from dspyc.training.precision import frozen_dtype, lighter_base

from . import small

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"card {i}"}, {"role": "assistant", "content": f"blocked {i % 3}"}]}
    for i in range(12)
]
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, half frozen": {"method": "full", "freeze_ratio": 0.5},
    "lora": {},
    "lora, half frozen": {"freeze_ratio": 0.5},
    "rslora": {"use_rslora": True, "lora_rank": 4},
    "dora": {"use_dora": True},
    "some modules": {"target_modules": ("q_proj", "v_proj")},
}


def trained(name: str, out: Path, **changes: Any) -> tuple[Any, list[float]]:
    settings = {"learning_rate": 5e-3, "batch_size": 4, "epochs": 4, "logging_steps": 1, **METHODS[name], **changes}
    result = train(TINY, ROWS, config=TrainingConfig(**settings), output_dir=out)
    return result, [e["loss"] for e in read_events(out / "events.jsonl") if "loss" in e]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_the_bundled_student(name: str, tmp_path: Path) -> None:
    result, losses = trained(name, tmp_path)
    assert losses[-1] < 0.7 * losses[0]
    assert result.method == METHODS[name].get("method", "lora")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The bundled student's loss on the rows."""
    out, config = tmp_path_factory.mktemp("untrained"), TrainingConfig(max_steps=1, learning_rate=1e-9)
    return train(TINY, ROWS, config=config, output_dir=out).train_loss


@pytest.mark.parametrize("preset", ["quick_test", "low_resource", "high_quality", "production"])
def test_every_preset_trains_the_bundled_student(preset: str, untrained: float, tmp_path: Path) -> None:
    config = TrainingConfig.preset(preset, task="chat", learning_rate=5e-3, max_steps=8)
    result = train(TINY, ROWS, config=config, output_dir=tmp_path, validation=ROWS[:4])
    judged = [e["validation_loss"] for e in read_events(tmp_path / "events.jsonl") if "validation_loss" in e]
    assert result.steps == 8
    assert result.best_path is not None
    assert judged[-1] < 0.9 * untrained


def test_frozen_layers_stay_as_they_are(tmp_path: Path) -> None:
    result, _ = trained("full, half frozen", tmp_path)
    before, after = load_file(resolve(TINY) / "model.safetensors"), load_file(Path(result.path) / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {name.split("layers.")[1][0] for name in changed if "layers." in name}
    assert layers == {"2", "3"}
    assert "model.norm.weight" in changed
    assert "model.embed_tokens.weight" not in changed


@pytest.mark.parametrize(("kind", "frozen"), [("llama", 0.5), ("gpt2", 0.5), ("phi", 0.5), ("gemma", 0.3)])
def test_no_adapter_in_frozen_layers(kind: str, frozen: float, tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model", kind)
    model = prepare(base, TrainingConfig(freeze_ratio=frozen), "cpu")
    adapted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapted
    assert all(".1." in name for name in adapted), adapted
    assert all("lora_" in name for name in adapted)


def test_a_target_named_by_its_path_is_not_adapted_in_frozen_layers(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model")
    config = TrainingConfig(freeze_ratio=0.5, target_modules=("self_attn.q_proj",))
    adapted = {name for name, p in prepare(base, config, "cpu").named_parameters() if p.requires_grad}
    assert {name.split("layers.")[1].split(".lora_")[0] for name in adapted} == {"1.self_attn.q_proj"}


def test_nothing_below_the_first_trained_layer_is_trained(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model", "gpt2")  # it has embeddings of positions too
    model = prepare(base, TrainingConfig(method="full", freeze_ratio=0.5), "cpu")
    inputs: list[bool] = []
    model.transformer.h[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0].requires_grad))
    model(torch.tensor([[5, 6, 7]]))
    assert inputs == [False]
    assert model.transformer.h[1].mlp.c_fc.weight.requires_grad


def test_a_share_that_freezes_nothing_or_everything_is_refused(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model")
    for ratio in (0.1, 0.9):
        with pytest.raises(ConfigError, match=r"`freeze_ratio` is 0\.\d, which keeps \d of 2 layers.*between 0\.50"):
            prepare(base, TrainingConfig(method="full", freeze_ratio=ratio), "cpu")


def test_rslora_divides_by_the_roots_rank_and_dora_learns_magnitudes(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model")
    plain = prepare(base, TrainingConfig(lora_rank=16, lora_alpha=32), "cpu")
    stable = prepare(base, TrainingConfig(lora_rank=16, lora_alpha=32, use_rslora=True), "cpu")
    scales = [model.get_submodule("base_model.model.model.layers.0.mlp.up_proj").scaling for model in (plain, stable)]
    assert [scale["default"] for scale in scales] == [2.0, 32 / math.sqrt(16)]
    dora = prepare(base, TrainingConfig(use_dora=True), "cpu")
    assert any("magnitude" in name for name, p in dora.named_parameters() if p.requires_grad)


def test_the_models_own_dropout_drops_in_training_only(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model")
    ids = torch.tensor([[5, 6, 7, 8]])
    still = prepare(base, TrainingConfig(method="full"), "cpu")
    model = prepare(base, TrainingConfig(method="full", dropout=0.5), "cpu")
    assert torch.equal(model.eval()(ids).logits, still.eval()(ids).logits)
    assert torch.equal(still.train()(ids).logits, still.eval()(ids).logits)
    assert not torch.equal(model.train()(ids).logits, still.eval()(ids).logits)


def test_the_trained_model_keeps_its_authors_dropout(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model", "gpt2", attn_pdrop=0.05)
    config = TrainingConfig(method="full", dropout=0.4, max_steps=1)
    result = train(str(base), small.rows(4), config=config, output_dir=tmp_path / "out")
    before, after = (json.loads((Path(p) / "config.json").read_text()) for p in (base, result.path))
    assert {k: v for k, v in after.items() if "pdrop" in k} == {k: v for k, v in before.items() if "pdrop" in k}
    assert after["attn_pdrop"] == 0.05


def test_dropout_of_a_model_without_any_is_refused(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model", "mamba")
    with pytest.raises(ConfigError, match=r"`dropout` is 0\.1.*mamba.*embedding_dropout"):
        prepare(base, TrainingConfig(dropout=0.1), "cpu")


def test_adapters_trained_together_share_their_base_and_never_change_it(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model")
    pristine = {name: p.clone() for name, p in load_model(base, "cpu", "float32").named_parameters()}

    def frozen(model: Any) -> dict[str, torch.Tensor]:
        named = model.get_base_model().named_parameters()
        return {name.replace(".base_layer", ""): p for name, p in named if "lora_" not in name}

    with one_base():
        first = prepare(base, TrainingConfig(), "cpu")
        loss = first(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
        loss.backward()
        torch.optim.SGD([p for p in first.parameters() if p.requires_grad], lr=1.0).step()
        second = prepare(base, TrainingConfig(lora_rank=4), "cpu")
        whole = prepare(base, TrainingConfig(method="full"), "cpu")
    for name, tensor in pristine.items():
        assert frozen(first)[name].data_ptr() == frozen(second)[name].data_ptr()
        assert dict(whole.named_parameters())[name].data_ptr() != frozen(first)[name].data_ptr()
        assert torch.equal(frozen(second)[name], tensor)
        assert not frozen(second)[name].requires_grad
    apart = prepare(base, TrainingConfig(), "cpu")
    assert frozen(apart)["model.norm.weight"].data_ptr() != frozen(first)["model.norm.weight"].data_ptr()


def test_whole_runs_leave_a_shared_base_as_it_was(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model")
    pristine = load_model(base, "cpu", "float32").state_dict()
    with one_base():
        before = prepare(base, TrainingConfig(), "cpu").get_base_model().model.norm.weight.data_ptr()
        for out, extra in (("a", {}), ("b", {"use_dora": True})):
            config = TrainingConfig(max_steps=4, learning_rate=1e-2, **extra)
            result = train(str(base), small.rows(8), config=config, output_dir=tmp_path / out)
            adapter = load_file(Path(result.path) / "adapter_model.safetensors")
            assert all(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)
        after = prepare(base, TrainingConfig(), "cpu").get_base_model()
    assert after.model.norm.weight.data_ptr() == before
    held = {name.replace(".base_layer", ""): t for name, t in after.state_dict().items() if "lora_" not in name}
    assert held.keys() == pristine.keys()
    assert all(torch.equal(held[name], tensor) for name, tensor in pristine.items())


def test_qlora_without_a_gpu_says_what_can_be_done(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method='qlora' needs a CUDA GPU.*method='lora'"):
        train(TINY, ROWS, config=TrainingConfig(method="qlora"), output_dir=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    check_method(TrainingConfig(), torch.device("cpu"))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merged_model_answers_as_its_adapter(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = small.folder(tmp_path / "model", kind)
    config = TrainingConfig(max_steps=20, learning_rate=1e-2, precision="fp32")
    result = train(str(base), small.rows(10), config=config, output_dir=tmp_path / "out")
    merged = merge(result.path, tmp_path / "merged")
    ids = torch.tensor([ChatTokenizer(AutoTokenizer.from_pretrained(merged)).prompt_ids(ROWS[0]["messages"][:1])])
    whole = AutoModelForCausalLM.from_pretrained(merged).eval()(ids).logits
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.path).eval()(ids).logits
    torch.testing.assert_close(whole, adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits, atol=1e-3)
    assert identity(merged) != identity(base)


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_tensors_is_merged_into_that_one(
    target: str, embeddings: bool, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    base = small.folder(tmp_path / "model")
    lora = LoraConfig(r=4, target_modules=[target], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(small.model(), lora).save_pretrained(tmp_path / "adapter", save_embedding_layers=embeddings)
    merged, ids = merge(tmp_path / "adapter", tmp_path / "merged", base=base), torch.tensor([[5, 6, 7, 8]])
    plain = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(merged)(ids).logits, adapted(ids).logits)
    assert not torch.allclose(plain, adapted(ids).logits, atol=0.1)


def test_a_merged_student_answers_through_local_lm(tmp_path: Path) -> None:
    result, _ = trained("dora", tmp_path / "out")
    merged = merge(result.path, tmp_path / "merged")
    whole, adapted = LocalLM(merged, device="cpu"), LocalLM(TINY, adapter=result.path, device="cpu")
    for row in ROWS[:3]:
        said = [lm(messages=row["messages"][:1], max_tokens=6, temperature=0) for lm in (whole, adapted)]
        assert said[0] == said[1]


def test_merged_weights_keep_the_dtype_of_their_base(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model", dtype=torch.bfloat16)
    result = train(str(base), small.rows(4), config=TrainingConfig(max_steps=1), output_dir=tmp_path / "out")
    merged = merge(result.path, tmp_path / "merged", base=base)
    assert {t.dtype for t in load_file(merged / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_cannot_be_merged_is_named(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model")
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        merge(base, tmp_path / "merged")
    broken = tmp_path / "broken"
    broken.mkdir()
    for content, said in (("{", "is truncated"), ("[]", "not a JSON object"), ("{}", "does not name its base")):
        (broken / "adapter_config.json").write_text(content)
        with pytest.raises(ModelError, match=said):
            merge(broken, tmp_path / "merged")
    with pytest.raises(ConfigError, match="is not empty"):
        merge(base, base)
    other = small.folder(tmp_path / "other", hidden_size=64)
    result = train(str(base), small.rows(4), config=TrainingConfig(max_steps=1), output_dir=tmp_path / "out")
    with pytest.raises(ModelError, match=r"does not fit.*Pass its own base"):
        merge(result.path, tmp_path / "merged", base=other)
    shallow = small.folder(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"does not fit.*layers\.1\..*is in one of them only"):
        merge(result.path, tmp_path / "merged", base=shallow)
    assert not (tmp_path / "merged").exists()


def test_the_stored_dtype_is_that_of_the_files_that_loading_reads(tmp_path: Path) -> None:
    base = small.folder(tmp_path / "model", dtype=torch.bfloat16)
    save_file({"left": torch.zeros(1_000_000, dtype=torch.float16)}, base / "model.fp16.safetensors")
    assert stored_dtype(base) == torch.bfloat16
    (base / "model.safetensors").rename(base / "part.safetensors")
    write_json(base / "model.safetensors.index.json", {"weight_map": {"lm_head.weight": "part.safetensors"}})
    assert stored_dtype(base) == torch.bfloat16


def test_a_frozen_base_is_held_in_what_it_is_multiplied_in() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    assert {name: frozen_dtype(name, cuda) for name in kinds} == kinds
    assert {frozen_dtype(name, cpu) for name in (*kinds, "auto")} == {torch.float32}


def test_a_hint_for_too_little_memory_names_fp16_where_a_gpu_holds_a_frozen_base_in_float32() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert "precision='fp16'" in lighter_base({frozen_dtype("fp32", cuda)}, cuda)
    assert not lighter_base({frozen_dtype("fp32", cpu)}, cpu)
    for held in (frozen_dtype("fp16", cuda), frozen_dtype("bf16", cuda)):
        assert not lighter_base({held}, cuda)
    assert not lighter_base(set(), cuda)  # nothing is frozen
    assert not lighter_base({torch.uint8, torch.float32}, cuda)  # 4 bits, and float32 norms
