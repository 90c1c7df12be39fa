"""The range test finds a rate that trains well, and leaves nothing behind."""

import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dspyc.errors import ConfigError, TrainingError
from dspyc.training import LearningRates, TrainingConfig, find_learning_rate, train

from . import small


def test_the_suggestion_trains_better_than_rates_far_from_it(tmp_path: Path) -> None:
    base, rows = small.folder(tmp_path / "model"), small.rows(20)
    config = TrainingConfig(method="full", precision="fp32", batch_size=10)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    found = find_learning_rate(str(base), rows, config=config, lowest=1e-6, highest=10.0, steps=60)
    assert torch.equal(torch.rand(4), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]

    def loss(rate: float) -> float:
        settings = {**config.model_dump(), "learning_rate": rate, "epochs": 10.0}
        return train(str(base), rows, config=TrainingConfig(**settings), output_dir=tmp_path / f"{rate:g}").train_loss

    best = loss(found.suggestion)
    assert best < loss(found.suggestion / 1000) - 0.5
    assert best < loss(min(10.0, found.suggestion * 1000)) - 0.5
    assert list(found.rates) == sorted(found.rates)
    assert len(found.losses) == len(found.rates) <= 60


def test_the_steepest_fall_is_suggested() -> None:
    found = LearningRates((1e-4, 1e-3, 1e-2, 1e-1), (5.0, 4.9, 3.0, 8.0))
    assert found.suggestion == 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_the_jumps_of_the_first_batches_are_no_fall(seed: int) -> None:
    """The mean of a few noisy losses jumps most where there are fewest, at rates that change nothing."""
    noise = random.Random(seed)
    rates = [1e-6 * 10 ** (i / 10) for i in range(60)]
    smooth, losses = 0.0, []
    for at, rate in enumerate(rates, start=1):
        smooth = 0.9 * smooth + 0.1 * (12 - 5 * min(1.0, max(0.0, math.log10(rate / 1e-4) / 2)) + noise.gauss(0, 1.0))
        losses.append(smooth / (1 - 0.9**at))
    assert 1e-4 < LearningRates(tuple(rates), tuple(losses)).suggestion < 3e-2


@pytest.mark.parametrize("range_", [{"lowest": 1.0, "highest": 0.1}, {"lowest": 0.0}, {"steps": 3}])
def test_a_range_that_is_none_is_refused(range_: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="lowest, highest and steps"):
        find_learning_rate("dspyc/tiny", small.rows(2), **range_)  # type: ignore[arg-type]


def test_a_loss_that_is_no_number_from_the_start_is_an_error(tmp_path: Path) -> None:
    weights = small.folder(tmp_path / "model") / "model.safetensors"
    spoiled = {name: tensor * math.nan for name, tensor in load_file(weights).items()}
    save_file(spoiled, weights, {"format": "pt"})
    config = TrainingConfig(method="full", precision="fp32")
    with pytest.raises(TrainingError, match=r"no number from the lowest rates on.*Use a smaller lowest="):
        find_learning_rate(str(weights.parent), small.rows(4), config=config)
