"""The flat loop in examples/ does what `train` does."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from dspyc.training import TrainingConfig, train
from dspyc.training.events import read_events

from . import small

LOOP = Path(__file__).parent.parent.parent / "examples" / "train_loop.py"


def test_the_flat_loop_reaches_the_losses_of_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = small.folder(tmp_path / "model")
    rows = small.rows(21, "which tree has number ")
    data = tmp_path / "rows.jsonl"
    rows[0]["messages"][0]["content"] += "\u2028and more"  # no end of a line
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    arguments = ["--data", data, "--model", base, "--out", tmp_path / "flat", "--epochs", 3, "--batch-size", 4]
    command = [LOOP, *arguments, "--learning-rate", 0.01, "--seed", 5]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    runpy.run_path(str(LOOP), run_name="__main__")
    flat = json.loads(capsys.readouterr().out.splitlines()[-1])["losses"]

    config = TrainingConfig(
        method="full", epochs=3, batch_size=4, learning_rate=0.01, seed=5, precision="fp32", logging_steps=1
    )
    train(str(base), rows, config=config, output_dir=tmp_path / "out")
    real = [e["loss"] for e in read_events(tmp_path / "out" / "events.jsonl") if "loss" in e]
    assert len(real) == 18
    assert flat == pytest.approx(real, rel=1e-3)
    assert real[-1] < 0.8 * real[0]


def test_the_flat_loop_stays_readable() -> None:
    assert len(LOOP.read_text().splitlines()) <= 120
