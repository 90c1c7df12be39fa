"""The bar of a training run, as a terminal gets it."""

import re
from pathlib import Path
from typing import Any

import pytest

from dspyc.training import Callback, Progress, TrainingConfig, train

from . import small

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def base(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model; from here on stderr is a terminal's."""
    made = small.folder(tmp_path / "model")
    capsys.readouterr()  # transformers' bar of it
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    return made


class Stops(Callback):
    def on_log(self, progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt


def lines(base: Path, capsys: pytest.CaptureFixture[str], *callbacks: Callback, show: bool = True) -> list[str]:
    """What a run of four steps draws, without colours; a run that `Stops` keeps its second step, which ends no epoch."""
    config = TrainingConfig(max_steps=4, batch_size=4, logging_steps=1, precision="fp32", method="full")
    how: dict[str, Any] = {"output_dir": base.with_name("out"), "callbacks": callbacks, "show_progress": show}
    try:
        train(str(base), small.rows(12), config=config, device="cpu", **how)
    except KeyboardInterrupt:
        assert callbacks
    return [line for line in re.split(r"[\r\n]+", CONTROLS.sub("", capsys.readouterr().err)) if line.strip()]


def test_a_terminal_shows_what_is_trained_how_far_it_is_and_the_time_that_remains(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = lines(base, capsys, Stops())
    assert re.match(r"12 rows of \d+ tokens \(\d+ at most\); \d+ tokens are learned\.", first[0])
    assert re.search(r"About \d+ s and 0\.0 GB\.", first[0])
    elapsed = remaining = r"\d:\d\d:\d\d"
    assert re.match(rf"Training model \S+ +2/4 {elapsed} {remaining} loss \d\.\d{{3}}", first[-1])
    second = lines(base, capsys)  # goes on from there
    assert re.match(rf"Training model \S+ +4/4 {elapsed} 0:00:00 loss \d\.\d{{3}}", second[-1])


def test_without_show_progress_a_terminal_shows_nothing(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(base, capsys, show=False) == []
