"""Experiment trackers, which transformers talks to: `report_to` of TrainingConfig."""

from importlib.util import find_spec

from ..errors import ConfigError
from .config import TrainingConfig


def check_trackers(config: TrainingConfig) -> None:
    """Raises ConfigError where a tracker in `report_to` is not installed."""
    missing = [name for name in config.report_to if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"`report_to` is {list(config.report_to)}, and {', '.join(missing)} is not installed.",
            hint=f"pip install {' '.join(missing)}, or leave it out: events.jsonl has the same numbers.",
        )
