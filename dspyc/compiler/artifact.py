"""The artifact: a compiled program as a folder that another machine can run and a person can read.

    triage/
        README.md        what it is, what it scores, how to use it
        artifact.json    versions, program, language models, data fingerprints, report
        program.json     the DSPy state: signatures, demos, adapters; plain `program.load` reads it too
        weights/0/ …     LoRA adapter or full model, with its tokenizer
        SHA256SUMS       of every file above, and in its last line of itself

JSON and safetensors only. No key, token or header is written.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.saving import get_dependency_versions

from .. import models
from ..errors import ArtifactError, ModelError, public
from ..files import json_bytes, settle, whole_folder
from ..providers import LocalLM, RemoteProvider
from ..providers.catalog import provider_class
from ..signatures import adapt, copy_program, load_adapter, predictors, signature_fingerprint
from ..signatures.mixins import Mixin, mix
from ..signatures.nearest import Nearest, choose_nearest
from . import rebuild
from .checksums import check_sums, write_sums
from .readme import Report, made_from, readme
from .report import CompileReport
from .search_report import SearchReport
from .sequence_report import SequenceReport

FORMAT = 1

_REPORTS: dict[str | None, type[Report]] = {
    "search": SearchReport,
    "sequence": SequenceReport,
    None: CompileReport,
}

_ADDRESS = ("api_base", "api_version")  # no secrets, of models that a provider here has trained


class CompiledMixin(Mixin):
    """Put before a compiled program's own class: the report of its compile, and `save` as an artifact."""

    _dspyc_report: Report | None

    @property
    def report(self) -> Report | None:
        """What the compile did, what it cost and what it proved."""
        return self._dspyc_report

    def save(self, path: Any, save_program: bool = False, modules_to_serialize: Any = None, **options: Any) -> None:
        """Write an artifact to folder `path`; a path that ends with .json or .pkl is DSPy's own `save`."""
        if save_program or Path(path).suffix in (".json", ".pkl"):
            super().save(path, save_program, modules_to_serialize)  # type: ignore[misc]
        else:
            save(self, path, **options)


def attach(program: dspy.Module, report: Report | None) -> dspy.Module:
    """Give `program`, in place, its report and its `save`."""
    mix(program, CompiledMixin)
    program._dspyc_report = report
    return program


def save(program: dspy.Module, path: str | Path, *, include_base: bool = False, source: str | None = None) -> Path:
    """Write `program` as an artifact, whole or not at all; an artifact that stands at `path` is replaced.

    `include_base` also copies the base model that LoRA weights need, for machines that cannot get it elsewhere;
    `source` names where the program comes from (`module.py:program`), for tools that load it.

    Raises:
        ArtifactError: The folder holds something else or cannot be written, or a part of the program cannot be saved.
    """
    path = Path(path)
    stands_at(path)
    try:
        with whole_folder(path) as folder:
            _write(program, folder, path.name, include_base, source)
    except OSError as error:
        raise ArtifactError(
            f"Could not write the artifact {path}: {error}.", hint="Free some space, or save where you may write."
        ) from error
    return path


def stands_at(path: str | Path) -> bool:
    """Whether there is an artifact at `path`, which `save` would replace.

    Raises:
        ArtifactError: Something else is there, which `save` would refuse.
    """
    path = Path(path)
    if path.resolve() == Path.cwd():
        raise ArtifactError(
            f"{path.resolve()} is the folder that this process works in.", hint="Save to a folder within it, as ./desk."
        )
    if (path / "artifact.json").exists():
        return True
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise ArtifactError(f"{path} exists and is not an artifact.", hint="Save to a new folder.")
    return False


def load(
    path: str | Path,
    program: dspy.Module | Callable[[], dspy.Module] | None = None,
    *,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    vectorizer: dspy.Embedder | None = None,
) -> dspy.Module:
    """The program that an artifact holds, ready to run.

    Without `program` it is made anew: DSPy's own modules from the signature that the artifact records, other classes by
    importing the one that it names, so load only artifacts that you trust or pass a program (or a function that makes
    one) yourself. `base` says where the base model of LoRA weights lies, if not where it lay when saved; `vectorizer` by what
    predictors choose their demos, if by a function, which no file holds. `device` and `dtype` are those of `dspyc.LocalLM`.

    Raises:
        ArtifactError: A file is missing or was changed, or the program is not the one that was saved.
        ConfigError: A `vectorizer` is missing, or a package that it needs.
        ModelError: The weights cannot be read, or do not fit this machine.
    """
    path = Path(path)
    facts = verify(path)
    loaded = copy_program(rebuild.make(facts["program"], program, path))
    state = _read_json(path / "program.json")
    state = {"self": state} if isinstance(loaded, dspy.Predict) else state
    found, saved = predictors(loaded), facts["predictors"]
    if found.keys() != saved.keys():
        raise ArtifactError(
            f"The artifact {path} holds predictors {sorted(saved)}, the program has {sorted(found)}.",
            hint="Load it into the program that was saved.",
        )
    lms = [_load_lm(entry, path, base, device, dtype) for entry in facts["lms"]]
    for name, predictor in found.items():
        if "adapter" in state[name]:
            adapt(predictor, load_adapter(state[name]["adapter"]))
        if "nearest" in state[name]:
            choose_nearest(predictor, Nearest.from_state(state[name]["nearest"], vectorizer))
        predictor.load_state(state[name])
        if signature_fingerprint(predictor.signature) != saved[name]["signature"]:
            raise ArtifactError(
                f"Predictor `{name}` of the program has other fields or types than the one saved in {path}.",
                hint="Load it into the version of the program that was compiled.",
            )
        predictor.lm = lms[saved[name]["lm"]] if saved[name]["lm"] is not None else None
    loaded._compiled = True
    return attach(loaded, _read_report(facts["report"]) if facts["report"] else None)


def verify(path: str | Path) -> dict[str, Any]:
    """The artifact's facts, after every file's checksum was found right.

    Raises:
        ArtifactError: It names the file that is missing, cut or changed.
    """
    path = Path(path)
    if not path.exists():
        settle(path)  # a process may have died while it replaced the artifact
    if not path.is_dir():
        raise ArtifactError(f"There is no artifact at {path}.", hint="Pass the folder that `save` wrote.")
    check_sums(path)
    facts: dict[str, Any] = _read_json(path / "artifact.json")
    if facts["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {facts['format']}; this version of dspyc reads format {FORMAT}.",
            hint="Use the version of dspyc that it names in artifact.json.",
        )
    return facts


def _write(program: dspy.Module, folder: Path, name: str, include_base: bool, source: str | None) -> None:
    named = predictors(program)
    lms: list[dict[str, Any]] = []
    order: dict[int, int] = {}
    for predictor in named.values():
        if predictor.lm is not None and id(predictor.lm) not in order:
            order[id(predictor.lm)] = len(lms)
            lms.append(_save_lm(predictor.lm, folder, len(lms), include_base))
    report = getattr(program, "_dspyc_report", None)
    facts = {
        "format": FORMAT,
        "versions": _versions(),
        "program": {**rebuild.describe(program), "source": source},
        "predictors": {
            key: {"signature": signature_fingerprint(p.signature), "lm": order.get(id(p.lm)) if p.lm else None}
            for key, p in named.items()
        },
        "lms": lms,
        "report": report.to_dict() if report else None,
    }
    states = {key: {**p.dump_state(), "lm": None} for key, p in _without_lms(named)}
    for found in states.values():
        if "adapter" in found:
            found["adapter"] = public(found["adapter"])
    state = states["self"] if isinstance(program, dspy.Predict) else states  # as DSPy's own save lays it out
    state["metadata"] = {"dependency_versions": get_dependency_versions()}
    _write_json(folder / "program.json", state)
    _write_json(folder / "artifact.json", facts)
    (folder / "README.md").write_text(readme(name, facts, report), encoding="utf-8")
    write_sums(folder)


def _without_lms(named: dict[str, dspy.Predict]) -> list[tuple[str, dspy.Predict]]:
    """Shallow copies without their LM, whose state is not for this file."""
    import copy

    copies = []
    for key, predictor in named.items():
        twin = copy.copy(predictor)
        twin.lm = None
        copies.append((key, twin))
    return copies


def _save_lm(lm: dspy.BaseLM, folder: Path, index: int, include_base: bool) -> dict[str, Any]:
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
        try:
            state = lm.dump_state()
        except TypeError as error:
            raise ArtifactError(f"The language model {lm.model!r} cannot be saved: {error}") from error
        dropped = ("launch_kwargs", "train_kwargs")
        kept = {k: v for k, v in state.items() if k not in dropped and not k.startswith("api_")}
        entry = {"kind": "dspy", "model": lm.model, "state": kept}
        if isinstance(lm.provider, RemoteProvider):
            kept |= {k: lm.kwargs[k] for k in _ADDRESS if lm.kwargs.get(k)}
            entry |= {"provider": lm.provider.name, "connection": lm.provider.connection}
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


def _class(module: str, name: str) -> Any:
    """A class of `models`, for isinstance: loading it takes torch, and nothing is an instance of what is not loaded."""
    found = sys.modules.get(f"{models.__name__}.{module}")
    return getattr(found, name) if found is not None else ()


def _load_lm(entry: dict[str, Any], path: Path, base: str | None, device: str, dtype: str) -> dspy.BaseLM:
    if entry["kind"] == "dspy":
        lm = dspy.BaseLM.load_state(entry["state"])
        if "provider" in entry:
            lm.provider = provider_class(entry["provider"])(entry["connection"])
            lm.kwargs |= lm.provider.calling()
        return lm
    if entry["kind"] == "server":
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


def _read_report(facts: dict[str, Any]) -> Report:
    return _REPORTS[facts.get("report")].from_dict(facts)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": get_dependency_versions()["python"]}
    for package in ("dspyc", "dspy", "torch", "transformers", "peft", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(json_bytes(value, indent=2, default=str) + b"\n")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}.", hint="Restore the artifact from where it was made."
        ) from error
