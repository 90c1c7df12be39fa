"""What is trained together: one set of weights, the predictors that it will serve, and the rows that they have."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from ..compiler.dataset import Dataset, Target
from ..compiler.ledger import Ledger
from ..errors import ConfigError, DataError, ProgramError
from ..providers.job import check_order
from ..providers.local import LocalProvider, trained_lm
from ..providers.remote import RemoteProvider
from ..signatures import TerseAdapter, fingerprint, signature_fingerprint, task_name
from ..signatures.render import Row
from .elsewhere import train_elsewhere

if TYPE_CHECKING:
    from ..training import TrainingConfig

logger = logging.getLogger(__name__)

_REACH = "Add examples that reach them, or freeze them by setting `_compiled = True` on their module."


@dataclass(frozen=True)
class Unit:
    """Predictors that will share one set of weights, trained from the LM that they share now."""

    lm: dspy.BaseLM
    targets: Mapping[str, Target]
    train_kwargs: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return list(self.targets)


@dataclass(frozen=True)
class Trained:
    """The LM that a unit's predictors get, and what its training did."""

    lm: dspy.BaseLM
    facts: dict[str, Any]


def plan_units(targets: Mapping[str, Target], multitask: bool, train_kwargs: Mapping[Any, Any]) -> list[Unit]:
    """One unit for each LM, or for each predictor where `multitask` is off."""
    groups: dict[tuple[int, str], dict[str, Target]] = {}
    for name, target in targets.items():
        groups.setdefault((id(target.lm), "" if multitask else name), {})[name] = target
    units = []
    for group in groups.values():
        lm = next(iter(group.values())).lm
        units.append(Unit(lm, group, _kwargs_of(lm, train_kwargs)))
    return units


def check_trainable(unit: Unit, seed: int, validated: bool) -> None:
    """Find before any teacher is called what would stop the training.

    Args:
        validated: Whether there may be rows that only measure the loss.

    Raises:
        ProgramError: Nothing can fine-tune the unit's LM.
        ConfigError: A setting of its training is unknown, contradicts another or the adapter that the LM wears, or is none
            for this machine or this model.
    """
    provider = getattr(unit.lm, "provider", None)
    if provider is None or not provider.finetunable:
        raise ProgramError(
            f"The LM {unit.lm.model!r} of predictor(s) {unit.names} cannot be fine-tuned by {type(provider).__name__}.",
            hint="Set a student LM that can: program.set_lm(dspyc.LocalLM('dspyc/tiny')).",
        )
    if isinstance(provider, LocalProvider):
        _check_here(unit, seed, validated)
    elif isinstance(provider, RemoteProvider):
        check_order(provider, unit.lm.finetuning_model or unit.lm.model, unit.train_kwargs)


def _check_here(unit: Unit, seed: int, validated: bool) -> None:
    from ..models.weights import device_of
    from ..training.launching import check_processes
    from ..training.rows import row_limit
    from ..training.run import check_run

    config, base = _config(unit, seed), unit.lm.engine.serving(unit.lm.model)
    device = device_of(base.device)
    check_processes(unit.train_kwargs.get("num_processes", 1), device, adapter=base.adapter)
    check_run(config, device, validated=validated)
    row_limit(base.path, base.chat.tokenizer, config.max_length)


def check_task_names(unit: Unit) -> None:
    """TerseAdapter names the task and nothing else, so one set of weights must not serve two tasks of one name."""
    seen: dict[str, tuple[str, str]] = {}
    for name, target in unit.targets.items():
        if not isinstance(target.adapter, TerseAdapter):
            continue
        signature = target.predictor.signature
        task, identity = task_name(signature), signature_fingerprint(signature)
        other, known = seen.setdefault(task, (name, identity))
        if known != identity:
            raise ConfigError(
                f"Predictors `{other}` and `{name}` differ, and TerseAdapter calls both {task!r}.",
                hint="Declare their signatures as classes with different names, or pass multitask=False.",
            )


def check_rows(units: Sequence[Unit], dataset: Dataset, ledger: Ledger) -> None:
    """Name the predictors without rows in a warning and an event of the ledger, where their unit has some.

    Raises:
        DataError: A unit has none to be trained on.
    """
    for unit in units:
        without = [name for name in unit.names if not dataset.train.get(name)]
        if len(without) == len(unit.names):
            raise DataError(f"Predictor(s) {without} have no rows: no good run called them.", hint=_REACH)
        if without:
            ledger.event("no rows", predictors=without)
            taught = [name for name in unit.names if name not in without]
            logger.warning(
                "Predictor(s) %s have no rows: no good run called them. They will run on weights that learned %s only. %s",
                *(without, taught, _REACH),
            )


def train_units(
    units: Sequence[Unit], dataset: Dataset, ledger: Ledger, seed: int, show_progress: bool
) -> list[Trained]:
    """Train one unit after the other; adapters that are trained here share one base in memory.

    Raises:
        TrainingError: A training failed.
        ModelError: What a provider made of one does not answer.
    """
    here = any(isinstance(unit.lm.provider, LocalProvider) for unit in units)
    if here:
        from ..training import one_base
    with one_base() if here else nullcontext():
        return [train_unit(unit, dataset, ledger, seed, show_progress) for unit in units]


def train_unit(unit: Unit, dataset: Dataset, ledger: Ledger, seed: int, show_progress: bool) -> Trained:
    """Fine-tune the unit's LM on its predictors' rows, here or at its provider."""
    train = [row for name in unit.names for row in dataset.train.get(name, [])]
    validation = [row for name in unit.names for row in dataset.validation.get(name, [])]
    if isinstance(unit.lm.provider, LocalProvider):
        config = _config(unit, seed)
        if dataset.validation and not validation:
            config = _to_its_end(unit, config)
        return _train_here(unit, config, train, validation, ledger, show_progress)
    return Trained(*train_elsewhere(unit, train, validation, ledger))


def _train_here(
    unit: Unit,
    config: "TrainingConfig",
    train: list[Row],
    validation: list[Row],
    ledger: Ledger,
    show_progress: bool,
) -> Trained:
    from ..training import train as run_training

    base = unit.lm.engine.serving(unit.lm.model)
    key = fingerprint([base.model_string, train, validation, config.model_dump(mode="json")])
    folder = ledger.run_dir / "training" / key
    ledger.event("training", predictors=unit.names, rows=len(train), folder=str(folder))
    result = run_training(
        base.model,
        train,
        config=config,
        output_dir=folder,
        validation=validation,
        device=base.device,
        adapter=base.adapter,
        show_progress=show_progress,
        num_processes=unit.train_kwargs.get("num_processes", 1),
    )
    facts = {"predictors": unit.names, "config": config.model_dump(mode="json"), **result.to_dict()}
    return Trained(trained_lm(unit.lm, result), facts)


def _config(unit: Unit, seed: int) -> "TrainingConfig":
    from ..training import TrainingConfig
    from ..training.adapters import continuing

    # Training here costs nothing, and gives the same weights in however many processes.
    settings = {k: v for k, v in unit.train_kwargs.items() if k not in ("max_usd", "num_processes")}
    config = TrainingConfig.from_kwargs({"seed": seed, **settings})
    engine = unit.lm.engine.serving(unit.lm.model)
    return config if engine.adapter is None else continuing(engine.adapter, config, engine.path)


def _to_its_end(unit: Unit, config: "TrainingConfig") -> "TrainingConfig":
    """The config without early stopping, for a unit none of whose rows are held out though others' are."""
    if config.early_stopping_patience is None:
        return config
    logger.warning(
        "Predictor(s) %s have too few rows to hold any out: they are trained without early stopping.", unit.names
    )
    return config.model_copy(update={"early_stopping_patience": None, "early_stopping_threshold": 0.0})


def _kwargs_of(lm: dspy.BaseLM, train_kwargs: Mapping[Any, Any]) -> Mapping[str, Any]:
    """The settings for one LM: DSPy takes one dict for all, or one for each LM."""
    by_lm = {k: v for k, v in train_kwargs.items() if isinstance(k, dspy.BaseLM)}
    if not by_lm:
        return train_kwargs
    if len(by_lm) != len(train_kwargs):
        raise ConfigError("`train_kwargs` mixes language models and settings as keys; use one kind.")
    return next((settings for key, settings in by_lm.items() if key is lm), {})
