"""The model card and the curves that stand beside trained weights."""

import json
import logging
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from dspyc.training import TrainingConfig, train
from dspyc.training.card import model_card
from dspyc.training.curves import CURVES, draw_curves
from dspyc.training.files import sums

from . import small

SETTINGS: dict[str, Any] = {"precision": "fp32", "batch_size": 10, "logging_steps": 1, "learning_rate": 3e-2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("base") / "little-llama")


def misled() -> list[dict[str, Any]]:
    """Validation rows whose answers are those of other rows, so that learning longer is learning worse."""
    rows = small.rows(20)
    return [{"messages": [row["messages"][0], rows[i - 3]["messages"][1]]} for i, row in enumerate(rows)]


def run(base: Path, out: Path, method: Any = "full", **settings: Any) -> Any:
    config = TrainingConfig(method=method, **{**SETTINGS, **settings})
    return train(str(base), small.rows(20), config=config, output_dir=out, validation=misled())


def test_each_folder_of_weights_has_a_card_that_the_hub_reads(base: Path, tmp_path: Path) -> None:
    result = run(base, tmp_path / "out", epochs=20)
    assert result.best_step < result.steps == 40
    for path, step, which in (
        (result.final_path, 40, "the weights of step 40, the last."),
        (result.best_path, result.best_step, f"the weights of step {result.best_step}, the best by validation loss."),
    ):
        card = ModelCard.load(Path(path) / "README.md")
        assert card.data.base_model == "little-llama"
        assert card.data.library_name == "transformers"
        assert "dspyc" in card.data.tags
        assert which in card.text
        assert f"]({CURVES})" in card.text
        assert (Path(path) / CURVES).read_bytes() == (tmp_path / "out" / CURVES).read_bytes()
        loss = next(
            e["validation_loss"]
            for e in map(json.loads, (tmp_path / "out" / "events.jsonl").read_text().splitlines())
            if e["step"] == step and "validation_loss" in e
        )
        assert f"| validation loss, nats a token, of these weights | {loss:.4f} |" in card.text
        assert f"| learned tokens | {result.rows['supervised_tokens']:,} |" in card.text
        assert "| rows | 20 | 20 |" in card.text
        assert "| learning_rate | `0.03` |" in card.text
        assert result.base_identity in card.text


def test_an_adapters_card_says_how_to_load_it(base: Path, tmp_path: Path) -> None:
    result = run(base, tmp_path / "out", "lora", max_steps=1)
    card = ModelCard.load(Path(result.path) / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model_relation == "adapter"
    assert 'dspyc.LocalLM("path/to/little-llama", adapter="path/to/this/folder")' in card.text
    assert "| lora_rank | `16` |" in card.text


def test_the_same_run_elsewhere_writes_the_same_bytes_and_no_path(base: Path, tmp_path: Path) -> None:
    kept = {}
    for place in ("here", "there"):
        result = run(base, tmp_path / place, max_steps=2)
        kept[place] = {**sums(Path(result.final_path)), CURVES: (tmp_path / place / CURVES).read_bytes()}
        assert str(tmp_path) not in (Path(result.final_path) / "README.md").read_text()
        assert str(base) not in (Path(result.final_path) / "README.md").read_text()
    assert kept["here"] == kept["there"]


def test_a_card_that_was_changed_is_written_again(base: Path, tmp_path: Path) -> None:
    result = run(base, tmp_path / "out", max_steps=2)
    card, curves = Path(result.final_path) / "README.md", tmp_path / "out" / CURVES
    before = card.read_bytes(), curves.read_bytes()
    card.write_text("cut")
    curves.write_bytes(b"")
    run(base, tmp_path / "out", max_steps=2)
    assert (card.read_bytes(), curves.read_bytes()) == before


def test_a_loss_that_nobody_noted_is_not_on_the_card(base: Path, tmp_path: Path) -> None:
    result = replace(run(base, tmp_path / "out", max_steps=1), train_loss=None)
    assert "training loss" not in model_card(result, TrainingConfig(), 1, None)


def test_without_matplotlib_a_run_only_lacks_the_picture(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what an absent package looks like
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    with caplog.at_level(logging.INFO, "dspyc.training"):
        result = run(base, tmp_path / "out", max_steps=1)
    assert "pip install matplotlib" in caplog.text
    assert not list((tmp_path / "out").rglob("*.png"))
    assert CURVES not in (Path(result.path) / "README.md").read_text()
    assert run(base, tmp_path / "out", max_steps=1) == result


def pixels(picture: bytes) -> tuple[int, int]:
    assert picture.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture[16:24])
    return width, height


@pytest.mark.parametrize(
    "events",
    [
        [{"step": 1, "loss": 3.0}],
        [{"step": 5, "validation_loss": 0.0}],
        [{"step": 1, "loss": 0.0, "learning_rate": 0.0, "grad_norm": 0.0}, {"step": 1, "validation_loss": 1.0}],
        [{"step": s, "loss": 9.0 / s, "learning_rate": 1e-3 / s, "grad_norm": float("inf")} for s in range(1, 400)],
    ],
)
def test_any_events_are_drawn(events: Any) -> None:
    picture = draw_curves(events, "a title", best_step=5)
    assert picture is not None
    assert pixels(picture) == (960, 720)


def test_what_differs_in_the_events_differs_in_the_picture() -> None:
    events = [{"step": s, "loss": 9.0 / s, "learning_rate": 1e-3 / s, "grad_norm": 1.0} for s in range(1, 20)]
    judged = [*events, {"step": 4, "validation_loss": 3.0}, {"step": 9, "validation_loss": 2.0}]
    faster = [{**e, "learning_rate": 1e-3} for e in judged]
    steeper = [{**e, "grad_norm": e["step"]} for e in judged]
    pictures = [draw_curves(e, "a", 9) for e in (events, judged, faster, steeper)] + [draw_curves(judged, "a", 4)]
    assert len(set(pictures)) == 5
    assert draw_curves(judged, "a", 9) == pictures[1]
    assert draw_curves([{"step": 0, "event": "started"}], "a") is None
