"""A run in several processes that is asked for by a call, in a notebook or within a compile: `train(..., num_processes=4)`.

The processes are those of `dspyc train --launcher accelerate` with the same arguments, in the same folder. The call waits for
them, draws their progress, and then finds the finished run, as any repeated call does.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..child_process import ChildProcess
from ..errors import ConfigError, TrainingError
from ..files import write_bytes
from ..progress import bar
from .config import TrainingConfig
from .events import parse_events
from .files import guarded

if TYPE_CHECKING:
    import torch

_LOOKS = 0.5  # seconds between two looks at how far they are
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_KEEPS = 60.0  # seconds that an interrupted run has to keep the step that it is in
_FOLDER = "launched"
_END = 1 << 16  # bytes


def train_in_processes(
    count: int,
    model: str,
    rows: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    config: TrainingConfig,
    folder: Path,
    device: "torch.device",
    show_progress: bool,
    resume_from: int | None = None,
) -> None:
    """Carry out a run in `count` processes, which end when this one does; the run is then finished in `folder`.

    Raises:
        TrainingError: They ended otherwise; the message has their last words.
    """
    data = _kept(rows, validation, folder)
    child = ChildProcess(_command(count, model, data, config, folder, device, resume_from), os.environ, _GRACE)
    try:
        _watch(child, count, config, folder, show_progress)
    except KeyboardInterrupt:
        os.killpg(child.pid, signal.SIGINT)
        child.ended_within(_KEEPS)
        raise
    finally:
        child.stop()
    if not (folder / "result.json").is_file():
        raise TrainingError(
            f"Training in {count} processes ended before it was finished:\n{child.tail(12)}",
            hint="The same call goes on from the newest checkpoint.",
        )
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)  # a copy of the rows, which nothing reads any more


def check_processes(count: Any, device: "torch.device", *, callbacks: Sequence[Any] = (), adapter: Any = None) -> None:
    """Raises ConfigError where `count` is no number of processes, where `device` is none of a kind that there are so many of,
    or where they could not be given what a call asks for.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"num_processes is {count!r}.", hint="Pass a whole number from 1.")
    if count > 1 and (callbacks or adapter is not None):
        raise ConfigError(
            f"num_processes is {count}, with {'callbacks' if callbacks else 'an adapter'}.",
            hint="Leave them out, or start a script of your own that calls `train` by `accelerate launch`.",
        )
    if count > 1 and device.type != "cpu":
        import torch

        present = 1 if device.type == "mps" or device.index is not None else torch.cuda.device_count()
        if present < count:
            raise ConfigError(
                f"num_processes is {count}, and of the device {str(device)!r} there are {present} here.",
                hint="Each process needs a device of its own: use 'cuda' with as many GPUs as processes, or 'cpu'.",
            )


def _kept(rows: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """The command's options for rows, which are then in files."""
    given = folder / _FOLDER
    with guarded("start training", folder):
        given.mkdir(parents=True, exist_ok=True)
        for name, part in (("rows", rows), ("validation", validation)):
            lines = "".join(json.dumps(dict(row), default=str) + "\n" for row in part)
            write_bytes(given / f"{name}.jsonl", lines.encode())
    held_out = ["--validation", str(given / "validation.jsonl")] if validation else ["--validation-fraction", "0"]
    return ["--data", str(given / "rows.jsonl"), *held_out]


def _command(
    count: int,
    model: str,
    data: Sequence[str],
    config: TrainingConfig,
    folder: Path,
    device: "torch.device",
    resume_from: int | None,
) -> list[str]:
    command = [sys.executable, "-m", "dspyc", "train", "--model", model, "--out", str(folder), *data]
    command += ["--device", device.type, "--launcher", "accelerate", "--num-processes", str(count)]
    command += ["--resume-from", str(resume_from)] if resume_from is not None else []
    settings = config.model_dump(mode="json", exclude_defaults=True)
    return command + [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def _watch(child: ChildProcess, count: int, config: TrainingConfig, folder: Path, show_progress: bool) -> None:
    """Draw the run's progress in percent until it ends."""
    seen = 0
    with bar(f"Training in {count} processes, %", total=100, show=show_progress) as advance:
        while not child.ended_within(_LOOKS):
            if (last := _last(folder)) is None:
                continue
            whole = last["step"] / config.max_steps if config.max_steps else last["epoch"] / config.epochs
            done = int(100 * min(whole, 1.0))
            advance(done - seen, f"loss {last['loss']:.3f}")
            seen = done


def _last(folder: Path) -> dict[str, Any] | None:
    """The newest event that tells a loss; of a long run's file only the end is read."""
    path = folder / "events.jsonl"
    if not path.exists():
        return None
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _END))
        end = stream.read().decode("utf-8", errors="ignore")
    return next((event for event in reversed(parse_events(end)) if "loss" in event), None)
