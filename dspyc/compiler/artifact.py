"""The artifact: a compiled program as a folder that another machine can run and a person can read.

    triage/
        README.md        what it is, what it scores, how to use it
        artifact.json    versions, program, language models, data fingerprints, report
        program.json     the DSPy state: signatures, demos, adapters; plain `program.load` reads it too
        weights/0/ …     LoRA adapter or full model, with its tokenizer
        SHA256SUMS       of every file above, and in its last line of itself

JSON and safetensors only. No key, token or header is written.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.saving import get_dependency_versions

from ..errors import ArtifactError, public
from ..files import json_bytes, read_json, settle, whole_folder
from ..signatures import adapt, copy_program, load_adapter, predictors, signature_fingerprint
from ..signatures.mixins import Mixin, mix
from ..signatures.nearest import Nearest, choose_nearest
from . import rebuild
from .checksums import check_sums, write_sums
from .readme import readme
from .report import CompileReport
from .run_report import RunReport
from .saved_lms import load_lm, save_lm
from .search_report import SearchReport
from .sequence_report import SequenceReport

FORMAT = 1

_REPORTS: dict[str | None, type[RunReport]] = {
    "search": SearchReport,
    "sequence": SequenceReport,
    None: CompileReport,
}


class CompiledMixin(Mixin):
    """Put before a compiled program's own class: the report of its compile, and `save` as an artifact."""

    _dspyc_report: RunReport | None

    @property
    def report(self) -> RunReport | None:
        """What the compile did, what it cost and what it proved."""
        return self._dspyc_report

    def save(self, path: Any, save_program: bool = False, modules_to_serialize: Any = None, **options: Any) -> None:
        """Write an artifact to folder `path`; a path that ends with .json or .pkl is DSPy's own `save`."""
        if save_program or Path(path).suffix in (".json", ".pkl"):
            super().save(path, save_program, modules_to_serialize)  # type: ignore[misc]
        else:
            save(self, path, **options)


def attach(program: dspy.Module, report: RunReport | None) -> dspy.Module:
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

    Load only artifacts that you trust: classes that they name are imported, and their models are asked at the addresses that
    they name, with this machine's keys. Without `program` it is made anew: DSPy's own modules from the signature that the
    artifact records, other classes by importing the one that it names. With a `program`, or a function that makes one, only
    adapters are imported, and a language model whose class or engine is not DSPy's is taken, by its name, from those that
    the program asks.

    `base` says where the base model of LoRA weights lies, if not where it lay when saved; `vectorizer` is what predictors
    choose their demos by, if that is a function, which no file holds. `device` and `dtype` are those of `dspyc.LocalLM`.

    Raises:
        ArtifactError: A file is missing or was changed, the program is not the one that was saved, or a language model
            cannot be made again.
        ConfigError: A `vectorizer` is missing, or a package that it needs.
        ModelError: The weights cannot be read, or do not fit this machine.
    """
    path = Path(path)
    facts = verify(path)
    loaded = copy_program(rebuild.make(facts["program"], program, path))
    state = _read_json(path / "program.json")
    states = {"self": state} if isinstance(loaded, dspy.Predict) else state
    saved = facts["predictors"]
    found = _matching_predictors(loaded, saved, path)
    asked = None if program is None else [p.lm or dspy.settings.lm for p in found.values()]
    lms = [load_lm(entry, path, base, device, dtype, asked) for entry in facts["lms"]]
    for name, predictor in found.items():
        _restore(predictor, states[name], vectorizer)
        _check_signature(name, predictor, saved[name]["signature"], path)
        predictor.lm = lms[saved[name]["lm"]] if saved[name]["lm"] is not None else None
    loaded._compiled = True
    return attach(loaded, _read_report(facts["report"]) if facts["report"] else None)


def _matching_predictors(program: dspy.Module, saved: dict[str, Any], path: Path) -> dict[str, dspy.Predict]:
    """The program's predictors by their names, which are those of the artifact."""
    found = predictors(program)
    if found.keys() != saved.keys():
        raise ArtifactError(
            f"The artifact {path} holds predictors {sorted(saved)}, the program has {sorted(found)}.",
            hint="Load it into the program that was saved.",
        )
    return found


def _restore(predictor: dspy.Predict, state: dict[str, Any], vectorizer: dspy.Embedder | None) -> None:
    """Give a predictor, in place, its state, its adapter and its choice of demos; not its LM."""
    if "adapter" in state:
        adapt(predictor, load_adapter(state["adapter"]))
    if "nearest" in state:
        choose_nearest(predictor, Nearest.from_state(state["nearest"], vectorizer))
    predictor.load_state(state)


def _check_signature(name: str, predictor: dspy.Predict, saved: str, path: Path) -> None:
    if signature_fingerprint(predictor.signature) != saved:
        raise ArtifactError(
            f"Predictor `{name}` of the program has other fields or types than the one saved in {path}.",
            hint="Load it into the version of the program that was compiled.",
        )


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
            lms.append(save_lm(predictor.lm, folder, len(lms), include_base))
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


def _read_report(facts: dict[str, Any]) -> RunReport:
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
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read: {error}.", hint="Restore the artifact from where it was made."
        ) from error
