"""Traces as JSONL: a bootstrap that was paid for once feeds every optimizer.

    save_traces(read_run(run_dir).traces("teacher"), "teacher.jsonl")       # or `dspyc runs export`
    compiled = optimizer.compile(student, trainset=train, traces=load_traces("teacher.jsonl"))

A line is one trace, whole: its steps with inputs and outputs, and each call's messages and replies. Values are JSON, which
`fitted_to` reads as the types that a program declares; DSPy's images, sounds and files are known without it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import dspy
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER, CUSTOM_TYPE_START_IDENTIFIER
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError

from ..errors import ConfigError, DataError
from ..evaluation import call_metric
from ..evaluation.metrics import Metric
from ..files import numbered_lines
from .calls import Call
from .trace import Step, Trace, described

_VERSION = 1


def save_traces(traces: Iterable[Trace | Mapping[str, Any]], path: str | PathLike[str]) -> int:
    """Write traces, or the records of `RunRecord.traces`, one a line; what was at `path` is replaced once all are written.

    Returns:
        How many.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(target, error) from error
    unfinished = target.with_name(f".{target.name}.unfinished")
    count = 0
    try:
        # Half a character, of which a reply may consist, is written as JSON's own escape.
        with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for trace in traces:
                record = _whole(trace) if isinstance(trace, Trace) else trace
                file.write(json.dumps({"version": _VERSION, **record}, ensure_ascii=False, default=str) + "\n")
                count += 1
        unfinished.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        unfinished.unlink(missing_ok=True)
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


def fitted_to(traces: Iterable[Trace], predictors: Mapping[str, dspy.Predict]) -> list[Trace]:
    """The traces with inputs and outputs of steps as the types that the predictors of the same names declare.

    Fields of the prediction are read as the outputs of the steps that they came from.

    Raises:
        DataError: A step's value is not of its field's type.
    """
    readers = {
        (name, field): _Reader(info.annotation)
        for name, predictor in predictors.items()
        for field, info in predictor.signature.fields.items()
    }
    return [_fitted(trace, readers) for trace in traces]


def rescored(
    traces: Iterable[Trace],
    examples: Mapping[str, dspy.Example],
    metric: Metric,
    predictors: Mapping[str, dspy.Predict],
) -> list[Trace]:
    """The traces with what `metric` says of their predictions, where `examples` has their example, by its key."""
    return [_rescored(trace, examples.get(trace.example), metric, predictors) for trace in traces]


def _rescored(
    trace: Trace, example: dspy.Example | None, metric: Metric, predictors: Mapping[str, dspy.Predict]
) -> Trace:
    if example is None or trace.blame == "program":
        return trace
    taken = [
        (predictors.get(step.predictor), step.inputs, dspy.Prediction(**step.outputs))
        for step in trace.steps
        if step.outputs is not None
    ]
    try:
        return replace(trace, score=call_metric(metric, example, trace.prediction, taken), error=None, blame=None)
    except Exception as error:  # a bad example is an event, not the end
        return replace(trace, score=None, error=described(error), blame="metric")


class _Reader:
    """Reads what JSON holds of a field's value as the type that the field declares."""

    def __init__(self, annotation: Any) -> None:
        self._adapter: TypeAdapter[Any] | None = None
        self._members = {str(member): member for kind in _enums(annotation) for member in kind}
        # DSPy writes anything into a field of text, and of a tool no file holds the function.
        if annotation is not str and not dspy.Tool.extract_custom_type_from_annotation(annotation):
            with suppress(PydanticUserError):  # pydantic does not know the class: values stay what they are
                self._adapter = TypeAdapter(annotation)

    def __call__(self, value: Any) -> Any:
        """The value as the type.

        Raises:
            ValueError: It cannot be read so.
        """
        if value is None or self._adapter is None:
            return value
        if isinstance(value, str):
            return self._of_text(value, self._adapter)
        try:
            return self._adapter.validate_python(self._with_members(value), by_alias=True, by_name=True)
        except ValueError:
            if CUSTOM_TYPE_START_IDENTIFIER in str(value):  # a prompt part of a class that only its program knows
                return value
            raise

    def _of_text(self, text: str, adapter: TypeAdapter[Any]) -> Any:
        """What would have been written as this text; else the text, for a program may give any to its predictor."""
        if text in self._members:
            return self._members[text]
        try:
            read = adapter.validate_json(json.dumps(text), strict=True, by_alias=True, by_name=True)
        except ValueError:
            return text
        return read if isinstance(read, BaseModel) or str(getattr(read, "value", read)) == text else text

    def _with_members(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._members.get(value, value)
        if isinstance(value, list):
            return [self._with_members(item) for item in value]
        return {k: self._with_members(v) for k, v in value.items()} if isinstance(value, dict) else value


_Readers = Mapping[tuple[str, str], _Reader]


def _enums(annotation: Any) -> Iterator[type[Enum]]:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        yield annotation
    for argument in get_args(annotation):
        yield from _enums(argument)


def _fitted(trace: Trace, readers: _Readers) -> Trace:
    steps = [
        replace(
            step,
            inputs=_read(step.inputs, step.predictor, readers, f"Trace {trace.id} gave"),
            outputs=_read(step.outputs, step.predictor, readers, f"Trace {trace.id} has from")
            if step.outputs is not None
            else None,
        )
        for step in trace.steps
    ]
    return replace(trace, steps=steps, prediction=_prediction(trace, steps, readers))


def _read(values: Mapping[str, Any], predictor: str, readers: _Readers, what: str) -> dict[str, Any]:
    made = dict(values)
    for field, value in values.items():
        if (reader := readers.get((predictor, field))) is None:
            continue
        try:
            made[field] = reader(value)
        except ValueError as error:
            raise DataError(
                f"{what} `{predictor}` a `{field}` that is not what the program declares: {error}",
                hint="Traces serve programs whose predictors have the same names and fields.",
            ) from error
    return made


def _prediction(trace: Trace, steps: Sequence[Step], readers: _Readers) -> Any:
    """Each field as the last step has it that gave this very value; a changed one as the type of the last that gave one."""
    if not isinstance(trace.prediction, dspy.Prediction):
        return trace.prediction
    made = copy(trace.prediction)
    made._store = dict(made.items())
    for field, value in trace.prediction.items():
        pairs = zip(reversed(trace.steps), reversed(steps), strict=True)
        gave = [(was.outputs[field], step) for was, step in pairs if was.outputs is not None and field in was.outputs]
        text = _text(value)
        for was, step in gave:
            if _text(was) == text:
                assert step.outputs is not None
                made[field] = step.outputs[field]
                break
        else:
            reader = readers.get((gave[0][1].predictor, field)) if gave else None
            if reader is not None:
                with suppress(ValueError):  # the program may answer with what no predictor does
                    made[field] = reader(value)
    return made


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


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
