"""What a run is told to need: memory for weights, gradients, moments and its largest batch, and the time of all its steps."""

import time
from pathlib import Path
from typing import Any

import pytest

from dspyc.training.config import TrainingConfig
from dspyc.training.methods import with_adapter
from dspyc.training.sharing import Planner
from dspyc.training.trainer import RowTrainer

from . import small
from .test_faults import trainer

NUMBER = 4  # bytes in float32
PASS = 0.02  # seconds that a forward pass of the slow model takes at least


def whole_rows(model: Any, folder: Path, **settings: Any) -> RowTrainer:
    """A trainer whose steps are one batch each."""
    made = trainer(model, folder, **settings)
    made.planner = Planner(10_000, share=False, worth=10_000)
    return made


def test_memory_is_what_training_holds_of_every_number_and_what_the_largest_batch_keeps(tmp_path: Path) -> None:
    model, adapted = small.model(), with_adapter(small.model(), TrainingConfig(lora_rank=2))
    numbers, trained = (sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, adapted))
    each = NUMBER * 4  # a weight, its gradient and Adam's two moments
    one, five = (whole_rows(model, tmp_path, batch_size=n).forecast().memory - each * numbers for n in (1, 5))
    assert 0 < one < each * numbers
    assert 3 * one < five < 6 * one
    frozen = NUMBER * numbers  # under an adapter, weights alone
    of_adapter = whole_rows(adapted, tmp_path, method="lora", batch_size=1).forecast().memory
    assert 0 < of_adapter - frozen - each * trained < 2 * one


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"batch_size": 20, "epochs": 5}, 5),
        ({"batch_size": 20, "epochs": 10}, 10),
        ({"batch_size": 5, "epochs": 5}, 5),
        ({"batch_size": 5, "max_steps": 120}, 30),
    ],
)
def test_seconds_are_those_of_a_pass_for_every_batch_of_every_epoch(
    tmp_path: Path, settings: dict[str, Any], epochs: float
) -> None:
    """However busy the machine is: a pass takes its pause at least, and at most as long as the forecast itself."""
    model = small.model()
    model.model.register_forward_pre_hook(lambda *_: time.sleep(PASS))
    made = whole_rows(model, tmp_path, **settings)
    started = time.monotonic()
    found = made.forecast()
    most, steps = time.monotonic() - started, 20 // settings["batch_size"]
    longest = max(map(len, made.rows)) * settings["batch_size"]
    rounding = 0.05
    assert found.seconds >= PASS * epochs * found.computed_tokens / longest - rounding
    assert found.seconds <= most * epochs * steps + rounding
