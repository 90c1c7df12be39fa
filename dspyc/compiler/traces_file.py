"""Traces as JSONL: a bootstrap that was paid for once feeds every optimizer.

    save_traces(read_run(run_dir).traces("teacher"), "teacher.jsonl")       # or `dspyc runs export`
    compiled = optimizer.compile(student, trainset=train, traces=load_traces("teacher.jsonl"))

A line is one trace, whole: its steps with inputs and outputs, and each call's messages and replies. Values are JSON, which
`fitted_to` reads as the types that a program declares.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import dspy
from pydantic import TypeAdapter

from ..errors import DataError, redact
from ..evaluation import call_metric
from ..evaluation.metrics import Metric
from .calls import Call
from .trace import Step, Trace

_VERSION = 1


def save_traces(traces: Iterable[Trace | Mapping[str, Any]], path: str | PathLike[str]) -> int:
    """Write traces, or the records of `RunRecord.traces`, one a line; what was at `path` is replaced once all are written.

    Returns:
        How many.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    count = 0
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for trace in traces:
                record = _whole(trace) if isinstance(trace, Trace) else trace
                file.write(json.dumps({"version": _VERSION, **record}, ensure_ascii=False, default=str) + "\n")
                count += 1
        unfinished.replace(target)
    except OSError as error:
        raise DataError(
            f"The traces cannot be written to {target}: {error}.", hint="Name a file in a folder that you may write to."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def load_traces(path: str | PathLike[str]) -> list[Trace]:
    """The traces in a file that `save_traces` or `dspyc runs export` wrote.

    Raises:
        DataError: It cannot be read, or a line is no trace of this version; the message has its number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The traces in {path} cannot be read: {error}.") from error
    return [_trace(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def fitted_to(traces: Iterable[Trace], predictors: Mapping[str, dspy.Predict]) -> list[Trace]:
    """The traces with their steps' inputs as the types that the predictors of the same names declare.

    Raises:
        DataError: A value is not of its field's type.
    """
    readers: dict[tuple[str, str], TypeAdapter[Any]] = {
        (name, field): TypeAdapter(info.annotation)
        for name, predictor in predictors.items()
        for field, info in predictor.signature.input_fields.items()
    }
    return [replace(trace, steps=[_fitted(step, readers, trace.id) for step in trace.steps]) for trace in traces]


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
        return replace(trace, score=None, error=redact(f"{type(error).__name__}: {error}")[:2000], blame="metric")


def _fitted(step: Step, readers: Mapping[tuple[str, str], TypeAdapter[Any]], trace: str) -> Step:
    inputs = dict(step.inputs)
    for field, value in step.inputs.items():
        reader = readers.get((step.predictor, field))
        if reader is None or isinstance(value, str):
            continue
        try:
            inputs[field] = reader.validate_python(value)
        except ValueError as error:
            raise DataError(
                f"Trace {trace} gave `{step.predictor}` a `{field}` that is not what the program declares: {error}",
                hint="Traces serve programs whose predictors have the same names and fields.",
            ) from error
    return replace(step, inputs=inputs)


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
        prediction = record.pop("prediction")
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
    return Step(**{**record, "calls": [Call(**call, replayed=True) for call in record["calls"]]})
