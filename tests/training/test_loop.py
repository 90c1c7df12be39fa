"""What transformers' Trainer is told."""

from pathlib import Path

import torch
from transformers import Trainer

from dspyc.training.config import TrainingConfig
from dspyc.training.loop import arguments_of


def test_training_stays_on_the_device_of_the_model(tmp_path: Path) -> None:
    """A device that transformers would not choose, as it would not choose the second GPU."""
    model = torch.nn.Linear(2, 2, device="meta")
    arguments = arguments_of(model, TrainingConfig(), tmp_path, validated=False)
    trainer = Trainer(model=model, args=arguments)
    places = (arguments.device, trainer.accelerator.device, next(trainer.model.parameters()).device)
    assert places == (torch.device("meta"),) * 3
    assert arguments_of(torch.nn.Linear(2, 2), TrainingConfig(), tmp_path, False).device == torch.device("cpu")
