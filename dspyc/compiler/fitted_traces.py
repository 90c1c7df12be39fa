"""Recorded traces for the program of today: their values as the types that it declares, their scores by its metric."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from enum import Enum
from typing import Any, get_args

import dspy
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError

from ..errors import DataError
from ..evaluation import call_metric
from ..evaluation.metrics import Metric
from .examples import contents_of
from .trace import Step, Trace, described


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


def current(
    traces: Sequence[Trace],
    examples: Sequence[dspy.Example],
    predictors: Mapping[str, dspy.Predict],
    metric: Metric | None,
) -> list[Trace]:
    """The traces with values of the declared types; those of `examples` scored by `metric`, if any, as it is now.

    Raises:
        DataError: A step's value is not of its field's type.
    """
    fitted = fitted_to(traces, predictors)
    if metric is None:
        return fitted
    known = dict(zip(contents_of(examples), examples, strict=True))
    return [_rescored(trace, known.get(trace.example), metric, predictors) for trace in fitted]


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
    """Each field as the last step with the same value has it; where none has, as the type of the last step with that field."""
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
