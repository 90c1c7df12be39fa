"""Several data sets learned one after another: general, then the domain's, then the task's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .callbacks import Callback
from .config import TrainingConfig
from .methods import one_base
from .result import TrainingResult
from .run import train


@dataclass(frozen=True)
class Stage:
    """One data set, and how it is learned. `config=None` takes that of the stage before."""

    name: str
    rows: Sequence[Mapping[str, Any]]
    config: TrainingConfig | None = None
    validation: Sequence[Mapping[str, Any]] = ()


def train_stages(
    model: str | Path,
    stages: Sequence[Stage],
    *,
    output_dir: str | Path,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    show_progress: bool = True,
) -> list[TrainingResult]:
    """Train `model` on each stage's rows, each from where the one before ended; the last result is the one to use.

        train_stages("dspyc/tiny", [Stage("domain", documents, config), Stage("task", rows)], output_dir="run")

    Every stage is a run of its own in `output_dir/1-domain`, `output_dir/2-task`, …: finished stages are not run again, and
    one that was stopped goes on. With LoRA one adapter goes through all stages.

    Raises:
        ConfigError: No stages, two with one name, or stages that cannot follow each other.
        DataError, ModelError, TrainingError: As for `train`.
    """
    configs = _configs(stages)
    results: list[TrainingResult] = []
    with one_base():
        for number, (stage, config) in enumerate(zip(stages, configs, strict=True), start=1):
            before = results[-1].path if results else None
            whole = config.method == "full"
            result = train(
                before if before is not None and whole else model,
                stage.rows,
                # The config names the model of the first stage; a later one trains what came of it.
                config=config.model_copy(update={"model": None}) if before is not None and whole else config,
                output_dir=Path(output_dir) / f"{number}-{stage.name}",
                validation=stage.validation,
                device=device,
                adapter=None if whole else before,
                callbacks=callbacks,
                show_progress=show_progress,
            )
            results.append(result)
    return results


def _configs(stages: Sequence[Stage]) -> list[TrainingConfig]:
    names = [stage.name for stage in stages]
    if not stages or len(set(names)) < len(names) or not all(name and name == Path(name).name for name in names):
        raise ConfigError(
            f"The stages are {names}.", hint="Give at least one, each with its own name, free of slashes."
        )
    configs = [stages[0].config or TrainingConfig()]
    for stage in stages[1:]:
        configs.append(stage.config or configs[-1])
    methods = {"full" if config.method == "full" else "adapter" for config in configs}
    if len(methods) > 1:
        raise ConfigError(
            f"The stages' methods are {', '.join(config.method for config in configs)}.",
            hint="Train all of them in full, or all of them with an adapter; merge an adapter before full training.",
        )
    return configs
