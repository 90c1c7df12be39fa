"""Traces as JSONL: a bootstrap that was paid for once feeds every optimizer.

    save_traces(read_run(run_dir).traces("teacher"), "teacher.jsonl")       # or `dspyc runs export`
    compiled = optimizer.compile(student, trainset=train, traces=load_traces("teacher.jsonl"))

A line is one trace, whole: its steps with inputs and outputs, and each call's messages and replies. Values are JSON, which
fitted_traces.py reads as the types that a program declares; DSPy's images, sounds and files are known without it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import dspy
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER, CUSTOM_TYPE_START_IDENTIFIER

from ..errors import ConfigError, DataError
from ..files import json_bytes, numbered_lines, whole_file
from .call import Call
from .trace import Step, Trace

_VERSION = 1


def save_traces(traces: Iterable[Trace | Mapping[str, Any]], path: str | PathLike[str]) -> int:
    """Write traces, or the records of `RunRecord.traces`, one a line; what was at `path` is replaced once all are written.

    Returns:
        How many.

    Raises:
        DataError: The file cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(target, error) from error
    count = 0
    try:
        with whole_file(target) as file:
            for trace in traces:
                record = _whole(trace) if isinstance(trace, Trace) else trace
                file.write(json_bytes({"version": _VERSION, **record}, default=str) + b"\n")
                count += 1
    except OSError as error:
        raise _unwritable(target, error) from error
    return count


def _unwritable(target: Path, error: OSError) -> DataError:
    return DataError(
        f"The traces cannot be written to {target}: {error}.", hint="Name a file in a folder that you may write to."
    )


def load_traces(path: str | PathLike[str]) -> list[Trace]:
    """The traces in a file that `save_traces` or `dspyc runs export` wrote.

    Raises:
        DataError: It cannot be read, or a line is no trace of this version; the message has its number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The traces in {path} cannot be read: {error}.") from error
    return [_trace(line, f"{path}, line {number}") for number, line in numbered_lines(text)]


def given_traces(traces: Any) -> list[Trace] | None:
    """An optimizer's argument `traces` as a list; a path is read.

    Raises:
        ConfigError: It holds something else.
        DataError: The file cannot be read.
    """
    if traces is None:
        return None
    if isinstance(traces, (str, PathLike)):
        return load_traces(traces)
    found = list(traces) if isinstance(traces, Iterable) else []
    wrong = next(
        (f"`traces[{i}]` is a {type(t).__name__}" for i, t in enumerate(found) if not isinstance(t, Trace)), None
    )
    if wrong is not None or not isinstance(traces, Iterable):
        raise ConfigError(
            f"{wrong or f'`traces` is a {type(traces).__name__}'}; traces, or the path of their file, are allowed.",
            hint='Write traces=dspyc.load_traces("teacher.jsonl").',
        )
    return found


def _whole(trace: Trace) -> dict[str, Any]:
    record = trace.to_record()
    for step, made in zip(record["steps"], trace.steps, strict=True):
        step["calls"] = [{k: v for k, v in vars(call).items() if k != "replayed"} for call in made.calls]
    return record


def _trace(line: str, where: str) -> Trace:
    try:
        record = json.loads(line)
        if record.pop("version") != _VERSION:
            raise DataError(f"{where}: a trace of another version of dspyc.", hint="Export it again with this one.")
        steps = [_step(step) for step in record.pop("steps")]
        prediction = _with_media(record.pop("prediction"))
        return Trace(
            **record,
            steps=steps,
            prediction=dspy.Prediction(**prediction) if isinstance(prediction, dict) else prediction,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: no trace: {type(error).__name__}: {error}", hint="`dspyc runs export` writes such files."
        ) from error


def _step(record: dict[str, Any]) -> Step:
    read = {name: _with_media(record[name]) for name in ("inputs", "outputs")}
    return Step(**{**record, **read, "calls": [Call(**call, replayed=True) for call in record["calls"]]})


def _with_media(value: Any) -> Any:
    """With DSPy's images, sounds and files, which JSON has as the parts of a prompt that they are."""
    if isinstance(value, list):
        return [_with_media(item) for item in value]
    if isinstance(value, dict):
        return {k: _with_media(v) for k, v in value.items()}
    if not isinstance(value, str) or not value.startswith(CUSTOM_TYPE_START_IDENTIFIER):
        return value
    try:
        [part] = json.loads(value.removeprefix(CUSTOM_TYPE_START_IDENTIFIER).removesuffix(CUSTOM_TYPE_END_IDENTIFIER))
        return _MEDIA[part["type"]](part[part["type"]])
    except (ValueError, KeyError, TypeError):  # of a class that is the program's own
        return value


_MEDIA: dict[str, Callable[[Any], Any]] = {
    "image_url": lambda part: dspy.Image(part["url"]),
    "input_audio": lambda part: dspy.Audio(data=part["data"], audio_format=part["format"]),
    "file": lambda part: dspy.File(**part),
}
