"""What a run with `ema_decay` evaluates and keeps: the moving average of the weights of its steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dspyc.training import TrainingConfig, TrainingResult, train

from . import small

DECAY = 0.6
SETTINGS: dict[str, Any] = {
    "method": "full",
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "precision": "fp32",
    "save_steps": 1,
    "save_total_limit": 100,
}


ROWS, HELD_OUT = small.rows(16), small.rows(5, "v")


def run(base: Path, out: Path, rows: Any = ROWS, held_out: Any = HELD_OUT, **settings: Any) -> TrainingResult:
    config = TrainingConfig(**{**SETTINGS, **settings})
    return train(base, rows, config=config, output_dir=out, validation=held_out, device="cpu")


def weights(folder: str | Path | None, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(Path(str(folder)) / name)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("base") / "model")


def test_the_average_of_all_steps_is_kept_and_what_is_trained_is_not_changed_by_it(base: Path, tmp_path: Path) -> None:
    result, plain = run(base, tmp_path / "averaged", ema_decay=DECAY), run(base, tmp_path / "plain")
    expected = weights(base)
    for step in range(1, result.steps + 1):
        folder = Path("checkpoints") / f"checkpoint-{step}"
        trained = weights(tmp_path / "averaged" / folder)
        for name, tensor in weights(tmp_path / "plain" / folder).items():
            assert torch.equal(trained[name], tensor)
        share = min(DECAY, (1 + step) / (10 + step))
        expected = {name: share * tensor + (1 - share) * trained[name] for name, tensor in expected.items()}
    kept, last = weights(result.final_path), weights(plain.final_path)
    for name, tensor in expected.items():
        torch.testing.assert_close(kept[name], tensor, rtol=0, atol=1e-6)
    assert max(float((kept[name] - last[name]).abs().max()) for name in kept) > 1e-3


def test_what_is_evaluated_is_what_is_kept(base: Path, tmp_path: Path) -> None:
    result = run(base, tmp_path / "averaged", ema_decay=DECAY)
    again = train(
        result.final_path,
        small.rows(4),
        config=TrainingConfig(method="full", learning_rate=1e-12, epochs=1, precision="fp32"),
        output_dir=tmp_path / "again",
        validation=HELD_OUT,
        device="cpu",
    )
    assert result.validation_loss == pytest.approx(again.validation_loss, rel=1e-5)


def test_best_weights_are_the_average_of_their_step(base: Path, tmp_path: Path) -> None:
    def row(asked: str, answered: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered * 8}]}

    rows, swapped = [row("a", "x"), row("b", "z")], [row("a", "z")]  # once the two are told apart, the third is wrong
    result = run(base, tmp_path / "run", rows, swapped, ema_decay=DECAY, epochs=40, eval_steps=4)
    assert result.best_step is not None
    assert result.best_step < result.steps
    best = weights(tmp_path / "run" / "checkpoints" / f"checkpoint-{result.best_step}", "average.safetensors")
    for name, tensor in weights(result.best_path).items():
        assert torch.equal(tensor, best[name])
