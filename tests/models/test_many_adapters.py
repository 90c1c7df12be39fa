"""More adapters than stay loaded: those that were needed longest ago make room, and none that a request needs."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dspyc.models import identity
from dspyc.models.generation import Job
from dspyc.models.sampling import Sampling
from dspyc.models.scheduler import _ADAPTERS
from tests.models import single, small

IDS, TOKENS = [5, 6, 7, 8], 6


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return small.llama(tmp_path / "base", seed=43, num_hidden_layers=1)


@pytest.fixture
def worn(base: Path, tmp_path: Path) -> list[Path]:
    """One more than stay loaded, each of another strength."""
    first = small.lora(base, tmp_path / "0", seed=1, target_modules=["v_proj", "down_proj"], r=1)
    weights = load_file(first / "adapter_model.safetensors")
    others = [tmp_path / str(n) for n in range(1, _ADAPTERS + 1)]
    for n, folder in enumerate(others, 1):
        shutil.copytree(first, folder)
        stronger = {name: weight * (-1) ** n * (1 + n / 8) for name, weight in weights.items()}
        save_file(stronger, folder / "adapter_model.safetensors", {"format": "pt"})
    return [first, *others]


def asked(base: Path, worn: list[Path]) -> list[str]:
    return single.replies(base, *(Job(IDS, Sampling(TOKENS), (identity(base, each), each)) for each in worn))


def test_adapters_make_room_for_one_more_and_come_again(base: Path, worn: list[Path]) -> None:
    loaded = single.model(base)
    alone = [single.answer(base, IDS, TOKENS, worn[n]) for n in (0, 1, -1)]
    assert len(set(alone)) == 3
    in_turn = [asked(base, [each])[0] for each in worn]
    scheduler = loaded._scheduler
    assert scheduler is not None
    assert len(scheduler._used) == _ADAPTERS
    assert [identity(base, each) in scheduler._adapters for each in worn] == [False, *[True] * _ADAPTERS]
    again = [asked(base, [each])[0] for each in (worn[0], worn[1], worn[-1])]  # the first two were gone
    assert again == alone == [in_turn[0], in_turn[1], in_turn[-1]]
    held = scheduler._adapters.bytes
    assert asked(base, worn) == in_turn  # all are needed at once, and none may go
    assert scheduler._adapters.bytes > held
    asked(base, worn[:1])
    assert len(scheduler._used) == _ADAPTERS
    assert scheduler._adapters.bytes == held
