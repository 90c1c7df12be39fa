"""The range test finds a rate that trains well, and leaves nothing behind."""

import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook

from dspyc.errors import ConfigError, TrainingError
from dspyc.training import Callback, LearningRates, Progress, TrainingConfig, find_learning_rate, train

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


def test_a_training_in_another_thread_draws_its_own_numbers(tmp_path: Path) -> None:
    """Dropout draws from the process's generator, which the range test seeds and puts back."""
    base, rows = str(small.folder(tmp_path / "model")), small.rows(12)
    config = TrainingConfig(
        method="full", precision="fp32", batch_size=4, max_steps=40, embedding_dropout=0.3, logging_steps=1
    )
    begun = threading.Event()

    class Begun(Callback):
        def on_log(self, progress: Progress) -> None:
            begun.set()

    def weights(folder: str, **watched: Any) -> dict[str, torch.Tensor]:
        path = train(base, rows, config=config, output_dir=tmp_path / folder, **watched).path
        return load_file(Path(path) / "model.safetensors")

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(weights, "beside", callbacks=[Begun()])
        assert begun.wait(60)
        find_learning_rate(base, rows, config=config, steps=10)
    alone = weights("alone")
    assert all(torch.equal(tensor, alone[name]) for name, tensor in beside.result().items())


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


def watched(hook: Any, base: Path, **settings: Any) -> LearningRates:
    """What the range test finds while `hook` sees every module's outputs."""
    config = TrainingConfig(**({"method": "full", "precision": "fp32", "batch_size": 10} | settings))
    handle = register_module_forward_hook(hook)
    try:
        return find_learning_rate(str(base), small.rows(20), config=config, highest=1e-3, steps=12, device="cpu")
    finally:
        handle.remove()


def test_memory_that_runs_out_divides_a_step_which_is_then_repeated(tmp_path: Path) -> None:
    base, sizes = small.folder(tmp_path / "model"), list[int]()

    def hold(module: Any, inputs: Any, _: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and module.training:
            sizes.append(inputs[0].numel())
            if sizes[-1] > 100:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    plenty = watched(lambda *_: None, base)
    little = watched(hold, base)
    assert max(sizes) > 100
    assert len([size for size in sizes if size > 100]) < 5  # it is remembered
    assert little.rates == plenty.rates
    assert little.losses == pytest.approx(plenty.losses, rel=1e-4)


def test_a_step_that_overflows_in_half_precision_is_left_out(tmp_path: Path) -> None:
    base, steps = small.folder(tmp_path / "model"), list[int]()

    def overflow(module: Any, _: Any, output: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and module.training:
            steps.append(1)
        if len(steps) == 3 and isinstance(module, torch.nn.Linear) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("inf"))

    found = watched(overflow, base, precision="fp16")
    assert len(found.losses) == 12
    assert all(map(math.isfinite, found.losses))
