"""Models by their hub ids, as the hub's client keeps them on this machine: the main way in."""

import json
import shutil
from pathlib import Path

import pytest

from dspyc import LocalLM
from dspyc.errors import ModelError
from dspyc.models import LocalEngine, resolve
from dspyc.training import TrainingConfig, train

ROWS = [
    {"messages": [{"role": "user", "content": f"Hello {n}"}, {"role": "assistant", "content": "yes"}]} for n in range(4)
]


def cached(name: str, folder: Path) -> Path:
    """The files of `folder` as a download of `name` leaves them: links in a snapshot, to files beside it."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place, commit = Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}"), "0123456789abcdef" * 2 + "01234567"
    shutil.copytree(folder, place / "blobs")
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for blob in (place / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(Path("..", "..", "blobs", blob.name))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return snapshot


def test_a_model_of_the_hub_answers_and_learns(llama: Path, tmp_path: Path) -> None:
    snapshot = cached("test/llama", llama)
    assert resolve("test/llama") == snapshot
    lm, same = (LocalLM(model, cache=False, max_tokens=12) for model in ("test/llama", llama))
    assert lm("Hello") == same("Hello")
    assert lm.model.rpartition("@")[2] == same.model.rpartition("@")[2]
    result = train("test/llama", ROWS, config=TrainingConfig(max_steps=1, precision="fp32"), output_dir=tmp_path)
    config = json.loads(Path(result.path, "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "test/llama"
    assert len(LocalLM("test/llama", adapter=result.path, cache=False, max_tokens=12)("Hello")) == 1


def test_a_model_of_which_the_hub_gave_no_weights_yet_is_named(llama: Path) -> None:
    (cached("test/unfinished", llama) / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        LocalEngine("test/unfinished")
