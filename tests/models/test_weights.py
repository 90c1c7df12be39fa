"""Finding, naming and reading a model's files; every way they can be broken is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dspyc.errors import ConfigError, ModelError
from dspyc.models import LocalEngine, identity, load_model, load_tokenizer, resolve
from dspyc.models.loaded import LoadedModel, loaded
from dspyc.models.memory import weight_bytes
from dspyc.models.weights import multiplies_bf16, usual_dtype
from tests.models import single


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def test_the_bundled_student_is_found() -> None:
    assert (resolve("dspyc/tiny") / "config.json").is_file()


@pytest.mark.parametrize("name", ["./foo", "/no/such/folder", "~/nowhere-at-all", "a/b/c", "../x", "has space"])
def test_a_folder_that_does_not_exist(name: str) -> None:
    with pytest.raises(ModelError, match=f"The model folder '{name}' does not exist") as caught:
        LocalEngine(name)
    assert "dspyc/tiny" in caught.value.hint


def test_names_that_are_no_folder(llama: Path) -> None:
    with pytest.raises(ModelError, match="name is empty"):
        LocalEngine("")
    with pytest.raises(ModelError, match="is a file"):
        LocalEngine(str(llama / "config.json"))


def test_a_hub_id_that_cannot_be_had_says_what_is_allowed() -> None:
    with pytest.raises(ModelError, match=r"'nobody/no-such-model' is no folder here and cannot be had") as caught:
        LocalEngine("nobody/no-such-model")
    assert "dspyc/tiny" in caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=f"{name} is truncated or corrupt"):
        LocalEngine(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        LocalEngine(folder)


def test_a_corrupt_header_is_named(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[8:40] = b"\xff" * 32
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors is truncated or corrupt"):
        load_model(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00001-of-00001\.safetensors is missing"):
        LocalEngine(folder)


def test_pickles_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing.*pytorch_model\.bin") as caught:
        load_model(folder)
    assert "safetensors" in caught.value.hint


def test_weights_that_do_not_fit_the_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(ModelError, match="lack"):
        load_model(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "perceptron"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_an_adapter_is_not_a_model(adapters: list[Path]) -> None:
    with pytest.raises(ModelError, match="holds a LoRA adapter, not a model"):
        LocalEngine(adapters[0])


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_broken_adapter_is_named(llama: Path, adapters: list[Path], tmp_path: Path, name: str) -> None:
    broken = Path(shutil.copytree(adapters[0], tmp_path / "adapter"))
    whole = (broken / name).read_bytes()
    (broken / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=f"{name} is truncated"):
        LocalEngine(llama, broken)
    (broken / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        LocalEngine(llama, broken)


def test_only_lora_adapters(llama: Path, adapters: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(adapters[0], tmp_path / "adapter"))
    (other / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    with pytest.raises(ModelError, match="only LORA adapters"):
        LocalEngine(llama, other)


def test_identity_is_of_the_content(folder: Path, llama: Path, adapters: list[Path]) -> None:
    assert identity(folder) == identity(llama)
    assert len({identity(llama), *(identity(llama, adapter) for adapter in adapters)}) == 3
    (folder / "README.md").write_text("A card.")
    (folder / "training_args.bin").write_bytes(b"left over")
    assert identity(folder) == identity(llama)
    with (folder / "chat_template.jinja").open("a") as stream:
        stream.write(" ")
    assert identity(folder) != identity(llama)


def test_identity_of_a_hub_snapshot_is_that_of_its_copy(llama: Path, tmp_path: Path) -> None:
    import hashlib

    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for file in llama.iterdir():
        data = file.read_bytes()
        kind = hashlib.sha256 if file.suffix == ".safetensors" else hashlib.sha1  # as the hub's cache names them
        blob = blobs / kind(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / file.name).symlink_to(blob)
    assert identity(snapshot) == identity(llama)


def test_one_changed_byte_is_another_identity(folder: Path) -> None:
    before = identity(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert identity(folder) != before


def test_dtypes_and_devices(llama: Path) -> None:
    assert load_model(llama, "cpu", "bfloat16").dtype == torch.bfloat16
    assert load_model(llama, "cpu").dtype == torch.float32
    with pytest.raises(ConfigError, match="no dtype 'int3'"):
        LocalEngine(llama, dtype="int3")
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        LocalEngine(llama, device="tpu")
    with pytest.raises(ConfigError, match="no device 'cuda:99'"):
        LocalEngine(llama, device="cuda:99")


def test_weights_that_are_there_twice_count_once(folder: Path) -> None:
    before, size = identity(folder), weight_bytes(folder, torch.float32)
    assert size == sum(tensor.nbytes for tensor in load_model(folder).parameters())
    shutil.copyfile(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert weight_bytes(folder, torch.float32) == size
    assert identity(folder) == before
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in shards:
        shutil.copyfile(folder / "model.safetensors", folder / name)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_bytes(folder, torch.float32) == 2 * size


def test_a_model_is_loaded_ready_to_answer(llama: Path) -> None:
    assert not load_model(llama).training
    assert load_tokenizer(llama).eos_token == "<|im_end|>"


@pytest.fixture
def overflowing(folder: Path) -> Path:
    """A model whose activations are some 1e6."""
    model = load_model(folder)
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.down_proj").weight *= 1e4
    model.save_pretrained(folder)
    return folder


def test_activations_that_overflow_in_float16_are_an_error_that_names_other_dtypes(
    overflowing: Path, llama: Path
) -> None:
    job = single.greedy([5, 6, 7], 4)
    with pytest.raises(ModelError, match=r"larger than float16 holds.*dtype='float32', or dtype='bfloat16'"):
        loaded(overflowing, "cpu", "float16").submit(job)[0].result(60)
    for folder, dtype in ((llama, "float16"), (overflowing, "bfloat16")):
        model = loaded(folder, "cpu", dtype)
        assert model.submit(single.greedy([5, 6, 7], 4))[0].result(60).tokens
        assert str(model._model.dtype) == f"torch.{dtype}"


def test_where_a_device_chooses_float16_a_model_that_overflows_is_float32(overflowing: Path) -> None:
    model = LoadedModel(overflowing, identity(overflowing), "cpu", "float16", instead="float32")
    for _ in range(2):
        reply = model.submit(single.greedy([5, 6, 7], 4))[0].result(60)
        assert reply.text == single.answer(overflowing, [5, 6, 7], 4)
        assert model.memory is not None
        assert model.memory.weights == model.memory.plan.weights == weight_bytes(overflowing, torch.float32)
        model.close()


def test_a_gpu_without_bfloat16_takes_float16() -> None:
    assert usual_dtype(torch.device("cuda"), bf16=True) == torch.bfloat16
    assert usual_dtype(torch.device("cuda"), bf16=False) == torch.float16
    for name in ("cpu", "mps"):
        assert [usual_dtype(torch.device(name), bf16) for bf16 in (True, False)] == [torch.float32] * 2
    assert not multiplies_bf16(torch.device("cpu"))
