"""The folder of a run: whose it is, who trains in it now, and what it came to."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, TrainingError
from ..files import clear_unfinished, read_json, write_json
from ..locks import FolderLock
from . import processes
from .files import first_damaged, guarded
from .result import TrainingResult
from .rows import name_of, number_of

log = logging.getLogger("dspyc.training")
CHECKPOINTS = "checkpoints"


@contextmanager
def claimed(folder: Path, key: Mapping[str, Any]) -> Iterator[None]:
    """Let nobody else train in the folder meanwhile. Raises ConfigError where it is another run's, or somebody does."""
    if not processes.is_main():
        yield
        return
    with guarded("start training", folder):
        _check(folder, key)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FolderLock(folder)
        except BlockingIOError as error:
            raise ConfigError(
                f"Another training is going on in {folder}.",
                hint="Wait for it to end, or use another output_dir.",
            ) from error
    with lock:
        with guarded("start training", folder):
            _check(folder, key)
            if _differences(_held(folder), key):
                write_json(folder / "key.json", key)
            (folder / CHECKPOINTS).mkdir(exist_ok=True)
            for part in (folder, folder / CHECKPOINTS):
                clear_unfinished(part)
        yield


def _check(folder: Path, key: Mapping[str, Any]) -> None:
    """Raises ConfigError where the folder is another run's, unless that one came to nothing; it is not written to."""
    used = (folder / CHECKPOINTS).exists() or _begun(folder)
    if used and not (folder / "key.json").exists():  # looked for last: who claims the folder meanwhile writes it first
        raise ConfigError(
            f"{folder} holds the files of something else and no key.json.", hint="Use another output_dir."
        )
    if (differing := _differences(_held(folder), key)) and _begun(folder):
        raise ConfigError(
            f"{folder} holds another training run: its {', '.join(differing)} differ.",
            hint="Use another output_dir, or remove this one.",
        )


def _held(folder: Path) -> Any:
    """What the run in the folder is; nothing where that cannot be read."""
    try:
        return read_json(folder / "key.json")
    except (FileNotFoundError, ValueError):
        return {}


def _begun(folder: Path) -> bool:
    """Whether a run got as far as a checkpoint."""
    made = any((folder / name).exists() for name in ("final_model", "result.json"))
    return made or any((folder / CHECKPOINTS).glob("checkpoint-*"))


def finished(folder: Path) -> TrainingResult | None:
    """The result of this very run, if it ended and its weights are as they were written."""
    try:
        state = read_json(folder / "result.json")
        result, files = TrainingResult.from_dict(state, folder), dict(state["files"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, TrainingError):
        return None
    if (name := first_damaged(folder, files)) is not None:
        log.warning("%s was cut or changed: the weights are made again.", folder / name)
        return None
    return result


def digest(rows: Sequence[Any]) -> str:
    """16 hex digits of what training sees of the rows."""
    found = hashlib.sha256()
    for place, row in enumerate(rows):
        seen = {k: row.get(k) for k in ("messages", "tools")} if isinstance(row, Mapping) else row
        try:
            found.update(json.dumps(seen, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n")
        except (TypeError, ValueError, RecursionError) as error:
            name = name_of(row, number_of(rows, place))
            raise DataError(f"{name} cannot be read: {error}.", hint="A row is JSON.") from error
    return found.hexdigest()[:16]


def _differences(held: Mapping[str, Any], key: Mapping[str, Any]) -> list[str]:
    names = [name for name in key if name != "config" and held.get(name) != key[name]]
    before = held.get("config") or {}
    return names + [f"config.{name}" for name, value in key["config"].items() if before.get(name) != value]
