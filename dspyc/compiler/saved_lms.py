"""How the language models of an artifact are kept, and come back: weights as files, all others by name and settings."""

import json
import logging
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import dspy
from dspy.clients.base_lm import LM_CLASS_STATE_KEY

from .. import models
from ..errors import ArtifactError, DspycError, ModelError, public, public_address
from ..providers import LocalLM, RemoteProvider
from ..providers.catalog import provider_class
from .readme import made_from

logger = logging.getLogger(__name__)

_DSPYS = "dspy.clients.lm.LM"


def save_lm(lm: dspy.BaseLM, folder: Path, index: int, include_base: bool) -> dict[str, Any]:
    """The facts by which the LM comes back; what it needs of weights is copied into the folder."""
    facts: dict[str, Any] = public(_described(lm, folder, index, include_base))
    return facts


def _described(lm: dspy.BaseLM, folder: Path, index: int, include_base: bool) -> dict[str, Any]:
    settings = {k: v for k, v in lm.kwargs.items() if not k.startswith("api_") and v is not None}
    engine: Any = getattr(lm, "engine", None)
    served = isinstance(engine, _class("servers.engine", "ServerEngine"))
    if served and engine.path is None:
        return {"kind": "server", **engine.dump_state(), "settings": settings, "cache": lm.cache}
    if served or isinstance(engine, _class("engine", "LocalEngine")):  # weights that were served are weights
        engine = engine.serving(lm.model)  # what lm.finetune() returns keeps the base's engine and names other weights
    else:
        entry = {"kind": "dspy", "model": lm.model, "state": _state(lm)}
        if isinstance(provider := getattr(lm, "provider", None), RemoteProvider):
            entry |= {"provider": provider.name, "connection": provider.connection}
        return entry
    weights = f"weights/{index}"
    entry = {"kind": "local", "model": engine.model, "identity": engine.identity, "weights": None, "adapter": False}
    entry["constrained"] = served or getattr(lm, "constrained", False)
    is_folder = Path(engine.model).is_dir()
    if is_folder and (base := made_from(Path(engine.model))) is not None:
        entry["made_from"] = base
    if engine.adapter is not None:
        shutil.copytree(engine.adapter, folder / weights)
        entry |= {"weights": weights, "adapter": True}
        if include_base and engine.path is not None:
            shutil.copytree(engine.path, folder / "base" / str(index))
            entry["base"] = f"base/{index}"
    elif is_folder:
        shutil.copytree(engine.model, folder / weights)
        entry |= {"weights": weights, "model": Path(engine.model).name}
    return {**entry, "settings": settings, "cache": lm.cache}


def _state(lm: dspy.BaseLM) -> dict[str, Any]:
    """What `BaseLM.load_state` makes the LM of, but for its secrets."""
    try:
        state = lm.dump_state()
    except DspycError as error:
        raise ArtifactError(
            f"The language model {lm.model!r} cannot be saved: {error.message}", hint=error.hint
        ) from error
    except TypeError as error:
        raise ArtifactError(f"The language model {lm.model!r} cannot be saved: {error}") from error
    kept: dict[str, Any] = public({k: v for k, v in state.items() if k not in ("launch_kwargs", "train_kwargs")})
    for name, value in kept.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"The language model {lm.model!r} cannot be saved: its `{name}` is no JSON: {error}.",
                hint="Set it to plain values, or leave it out and set it again after loading.",
            ) from error
    return kept


def _class(module: str, name: str) -> Any:
    """A class of `models`, for isinstance: loading it takes torch, and nothing is an instance of what is not loaded."""
    found = sys.modules.get(f"{models.__name__}.{module}")
    return getattr(found, name) if found is not None else ()


def load_lm(
    entry: dict[str, Any], path: Path, base: str | None, device: str, dtype: str, asked: Collection[Any] | None
) -> dspy.BaseLM:
    """The LM that `save_lm` described. `asked`: the LMs of the program that was passed, to take those of other classes than
    DSPy's from; None where none was passed, and those classes are imported.

    Raises:
        ArtifactError: It cannot be had; the message names it.
    """
    if entry["kind"] == "dspy":
        return _load_other(entry, path, asked)
    if entry["kind"] == "server":
        if "://" in entry["server"]:
            _tell(entry, path, entry["server"])
        where = {"server": entry["server"], "server_options": entry["options"], "cache": entry["cache"]}
        return LocalLM(entry["model"], entry["adapter"], **where, **entry["settings"])
    weights = path / entry["weights"] if entry["weights"] else None
    options = {"device": device, "dtype": dtype, "cache": entry["cache"], **entry["settings"]}
    options["constrained"] = entry.get("constrained", True)
    if entry["adapter"]:
        model = base or (str(path / entry["base"]) if entry.get("base") else entry["model"])
        try:
            lm = LocalLM(model, adapter=weights, **options)
        except ModelError as error:
            raise ArtifactError(
                f"The base model of the LoRA weights in {path} cannot be read: {error.message}",
                hint="Pass base='its folder' to dspyc.load, or save with include_base=True where it is.",
            ) from error
    else:
        lm = LocalLM(str(weights or entry["model"]), **options)
    if lm.engine.identity != entry["identity"]:
        raise ArtifactError(
            f"The base model {entry['model']!r} has other weights here than those that {path} was trained on.",
            hint="Pass base='folder of the right weights' to dspyc.load.",
        )
    return lm


def _load_other(entry: dict[str, Any], path: Path, asked: Collection[Any] | None) -> dspy.BaseLM:
    state, model = entry["state"], entry["model"]
    engine = state.get("engine")
    kind = state.get(LM_CLASS_STATE_KEY, _DSPYS), engine["class"] if isinstance(engine, dict) else None
    if asked is not None and kind != (_DSPYS, None):
        for known in asked:
            if isinstance(known, dspy.BaseLM) and known.model == model and _kind(known) == kind:
                return known
        raise ArtifactError(
            f"The language model {model!r} of {path} is made by {kind[1] or kind[0]}, and the program that was passed asks "
            "none of that class and name.",
            hint="Pass a program whose predictors ask it, or load without `program`, which imports that class.",
        )
    try:
        lm = dspy.BaseLM.load_state(state, allow_custom_lm_class=asked is None)
    except Exception as error:  # of any class, which may raise anything
        raise ArtifactError(
            f"The language model {model!r} of {path} cannot be made again: {type(error).__name__}: {error}",
            hint="Where its class cannot be imported, pass a program that asks it: dspyc.load(path, program=MyProgram()).",
        ) from error
    if "provider" in entry:
        lm.provider = provider_class(entry["provider"])(entry["connection"])
        lm.kwargs |= lm.provider.calling()
    if address := lm.kwargs.get("api_base") or lm.kwargs.get("base_url"):
        _tell(entry, path, str(address))
    return lm


def _kind(lm: dspy.BaseLM) -> tuple[str, str | None]:
    """The classes of an LM and of an engine that is not DSPy's, as DSPy writes them in its state."""
    kind, engine = type(lm), getattr(lm, "engine", None)
    name, own = f"{kind.__module__}.{kind.__qualname__}", type(engine)
    return name, None if engine is None or own is str else f"{own.__module__}:{own.__qualname__}"


def _tell(entry: dict[str, Any], path: Path, address: str) -> None:
    logger.info("The model %s of %s is asked at %s.", entry["model"], path, public_address(address))
