"""Checkpoints: everything that a run needs to go on to the very weights it would have reached, without a pickle.

checkpoint-120/
  model.safetensors        the trained tensors, by parameter name, in training precision
  optimizer.safetensors    the optimizer's moments; optimizer.json its settings
  scheduler.json           where the learning rate stands
  scaler.json              the loss scale, where precision is "fp16"
  rng.safetensors          torch's generators; rng.json Python's and NumPy's
  trainer_state.json       transformers' own counters, and the evaluations without an improvement
  manifest.json            the step, the best step so far, and the SHA-256 of every other file and of itself
"""

import logging
import random
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..errors import ConfigError, TrainingError
from ..files import read_json, whole_folder, write_json
from ..signatures import fingerprint
from . import shards
from .files import MANIFEST, first_damaged, guarded, sums

log = logging.getLogger("dspyc.training")
_PREFIX, _DIVERGED, _LATER = "checkpoint-", "diverged-", "later-"
_WENT_BACK = "went_back.json"  # the step that the run went back to, until a call without one
_MODEL = "model.safetensors"
SCHEDULER, SCALER = "scheduler.json", "scaler.json"


@dataclass
class RandomState:
    """The generators that training may draw from."""

    torch: dict[str, torch.Tensor]
    others: dict[str, Any]

    @classmethod
    def capture(cls) -> "RandomState":
        found = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            found.update({f"cuda-{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
        if torch.backends.mps.is_available():
            found["mps"] = torch.mps.get_rng_state()
        version, numbers, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state()
        numpy_state = [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)]
        return cls(found, {"python": [version, list(numbers), gauss], "numpy": numpy_state})

    def restore(self) -> None:
        torch.set_rng_state(self.torch["cpu"])
        for name, state in self.torch.items():
            if name.startswith("cuda-") and int(name[5:]) < torch.cuda.device_count():
                torch.cuda.set_rng_state(state, int(name[5:]))
            if name == "mps" and torch.backends.mps.is_available():
                torch.mps.set_rng_state(state)
        version, numbers, gauss = self.others["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, position, has_gauss, cached = self.others["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))

    def save(self, folder: Path) -> None:
        save_file({name: state.contiguous() for name, state in self.torch.items()}, folder / "rng.safetensors")
        write_json(folder / "rng.json", self.others)

    @classmethod
    def load(cls, folder: Path) -> "RandomState":
        return cls(load_file(folder / "rng.safetensors"), read_json(folder / "rng.json"))


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by parameter name; tied tensors appear once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def save_trained(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, folder / _MODEL)


def load_trained(model: torch.nn.Module, folder: Path) -> None:
    """Put a checkpoint's tensors into a model of the same settings.

    Raises:
        TrainingError: The tensors are not this model's.
    """
    saved, own = load_file(folder / _MODEL), trained_tensors(model)
    if saved.keys() != own.keys() or any(saved[name].shape != own[name].shape for name in own):
        raise TrainingError(
            f"The checkpoint {folder} holds other tensors than this model trains.", hint="Use a new output_dir."
        )
    put_trained(model, saved)


@torch.no_grad()
def put_trained(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in trained_tensors(model).items():
        tensor.copy_(shards.part(tensors[name], tensor))


@dataclass
class OptimizerState:
    """What an optimizer holds, by `<parameter>.<name>`."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]  # all that are no tensors
    param_groups: list[dict[str, Any]]

    @classmethod
    def of(cls, optimizer: Any) -> "OptimizerState":
        state = optimizer.state_dict()
        held = {f"{i}.{name}": value for i, entries in state["state"].items() for name, value in entries.items()}
        tensors = {key: value.detach() for key, value in held.items() if isinstance(value, torch.Tensor)}
        values = {key: value for key, value in held.items() if key not in tensors}
        return cls(tensors, values, state["param_groups"])

    def save(self, folder: Path) -> None:
        save_file({key: t.contiguous().cpu() for key, t in self.tensors.items()}, folder / "optimizer.safetensors")
        write_json(folder / "optimizer.json", {"param_groups": self.param_groups, "values": self.values})


def load_optimizer(optimizer: Any, folder: Path) -> None:
    saved = read_json(folder / "optimizer.json")
    state: dict[int, dict[str, Any]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in [*load_file(folder / "optimizer.safetensors").items(), *saved["values"].items()]:
        index, _, name = key.partition(".")
        mine = shards.part(value, parameters[int(index)]) if isinstance(value, torch.Tensor) else value
        state.setdefault(int(index), {})[name] = mine
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


class CheckpointStore:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        return self.folder / f"{_PREFIX}{step}"

    def write(self, step: int, fill: Any, best_step: int | None) -> Path:
        """A checkpoint that `fill(folder)` writes; it exists whole or not at all."""
        path = self.path(step)
        with whole_folder(path) as aside:
            fill(aside)
            facts = {"step": step, "best_step": best_step, "files": sums(aside)}
            write_json(aside / MANIFEST, {**facts, "self": fingerprint(facts)})
        return path

    def newest_whole(self) -> Path | None:
        """The checkpoint to go on from. Damaged ones are passed over with a warning that names the file."""
        for step in reversed(self.steps()):
            damaged = self._damage(step)
            if damaged is None:
                return self.path(step)
            log.warning("Checkpoint %s is not whole (%s): it is passed over.", self.path(step), damaged)
        return None

    def go_back(self, step: int) -> bool:
        """Make the checkpoint of `step` the one to go on from, unless that was done: those of later steps are set aside.

        Done twice in a row for one step, it would throw away how far the run has come since, on every start of one command.

        Returns:
            Whether it was done now.

        Raises:
            ConfigError: There is none of that step, or it is not whole.
        """
        if self._went_back() == step:
            return False
        steps = self.steps()
        damaged = self._damage(step) if step in steps else None
        if step not in steps or damaged is not None:
            found = f"is not whole ({damaged})" if damaged else "is not there"
            whole = ", ".join(str(other) for other in steps if self._damage(other) is None)
            raise ConfigError(
                f"resume_from is {step}, and the checkpoint of that step {found} in {self.folder}.",
                hint=f"Those of steps {whole} are." if whole else "No whole one is: leave resume_from out.",
            )
        for later in steps[steps.index(step) + 1 :]:
            aside = self._free(f"{_LATER}{later}")
            log.warning("Checkpoint %s is kept as %s.", self.path(later), self.set_aside(later, aside))
        return True

    def note_return(self, step: int | None) -> None:
        """Keep in the folder to which step the run went back; None where a call asks for no step."""
        if step is not None:
            write_json(self.folder / _WENT_BACK, {"step": step})
        else:
            (self.folder / _WENT_BACK).unlink(missing_ok=True)

    def set_aside(self, step: int, aside: Path | None = None) -> Path:
        """Let no run go on from a checkpoint; returns where it is kept for people: as the one that diverged, by default."""
        aside = aside or self.folder / f"{_DIVERGED}{step}"
        with guarded("set a checkpoint aside", self.folder):
            shutil.rmtree(aside, ignore_errors=True)
            self.path(step).rename(aside)
        return aside

    def _went_back(self) -> int | None:
        try:
            return int(read_json(self.folder / _WENT_BACK)["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _free(self, name: str) -> Path:
        """`name`, or with -2, -3 and so on behind it, where nothing stands."""
        others = (self.folder / f"{name}-{number}" for number in count(2))
        return next(path for path in chain([self.folder / name], others) if not path.exists())

    def keep(self, limit: int, step: int, others: Collection[int | None]) -> None:
        """Remove all but the `limit` newest up to `step`, `others`, and the best ones that these need to be whole. Newer ones
        are damaged and get replaced.
        """
        older = [s for s in self.steps() if s <= step]
        kept, wanted = set[int](), [*older[-limit:], *others]
        while wanted:
            if (each := wanted.pop()) is not None and each not in kept:
                kept.add(each)
                wanted.append(self._best_of(each))
        for old in older:
            if old not in kept:
                shutil.rmtree(self.path(old), ignore_errors=True)

    def steps(self) -> list[int]:
        names = (p.name.removeprefix(_PREFIX) for p in self.folder.glob(f"{_PREFIX}*") if p.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def _best_of(self, step: int) -> int | None:
        """The step of the best weights when that of `step` was written."""
        try:
            return cast("int | None", read_json(self.path(step) / MANIFEST)["best_step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _damage(self, step: int) -> str | None:
        """The file that is missing, cut or changed. A checkpoint needs its best one too: a run ends by going back to it."""
        try:
            facts = read_json(self.path(step) / MANIFEST)
            if facts.pop("self") != fingerprint(facts):
                return MANIFEST
            files, best = facts["files"], facts["best_step"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return MANIFEST
        if (name := first_damaged(self.path(step), files)) is not None:
            return name
        if best is not None and best != step and (name := self._damage(best)) is not None:
            return f"its best one, {self.path(best).name}: {name}"
        return None
