"""One run of a program on one example, step by step.

A step is known by its predictor's name, never by its place: a program may call a predictor in a loop, in a branch, in
threads or not at all, or call copies of it and keep the answer of one. Traces are made by `compiler.recording`.
"""

import copy
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import dspy

from ..errors import redact
from ..signatures.fingerprints import stable
from ..signatures.mixins import RecordedMixin
from .call import Call
from .ledger import Ledger


@dataclass
class Step:
    """One predictor call. `outputs` is None where it failed, or where the program refused it: an attempt of a copy
    (`of_copy`), as dspy.BestOfN makes them, that it did not keep. `calls` has one entry for each language-model call."""

    predictor: str
    inputs: dict[str, Any]
    outputs: dict[str, Any] | None = None
    calls: list[Call] = field(default_factory=list)
    error: str | None = None
    of_copy: bool = False


@dataclass
class Trace:
    """One run of a program on one example.

    `score` is None without a metric or after an error. `error` names the exception; `blame` says whether the program
    or the metric raised it. `example` identifies the example by content, so that its rows stay together.
    `taken` is DSPy's own trace.
    """

    id: str
    role: str
    index: int
    example: str
    steps: list[Step] = field(default_factory=list)
    taken: "DSPyTrace" = field(default_factory=lambda: DSPyTrace())
    prediction: Any = None
    score: float | None = None
    error: str | None = None
    blame: str | None = None
    seconds: float = 0.0
    asked: str = ""  # what its calls know its example by in the ledger

    @property
    def calls(self) -> list[Call]:
        return [call for step in self.steps for call in step.calls]

    @property
    def counted(self) -> float:
        """The score when runs are compared: no answer counts as a wrong one."""
        return 0.0 if self.score is None else self.score

    def to_record(self) -> dict[str, Any]:
        """The trace as JSON; its calls are named by their keys in the ledger, which holds messages and replies."""
        steps = [
            {
                "predictor": step.predictor,
                "inputs": _readable(step.inputs),
                "outputs": _readable(step.outputs),
                "calls": [[call.request, call.nth] for call in step.calls],
                "error": step.error,
            }
            for step in self.steps
        ]
        facts = {k: v for k, v in vars(self).items() if k not in ("steps", "taken", "prediction")}
        return {**facts, "steps": steps, "prediction": _readable(self.prediction)}


def recorded(ledger: Ledger, role: str) -> dict[str, Trace]:
    """The good runs of a role by their ids, as far as scores go: their steps have no texts. What failed may go well now."""
    runs = {}
    for record in ledger.traces(role):
        if record["error"]:
            continue
        calls = [Call("", [], [], replayed=True, request=r, nth=n) for s in record["steps"] for r, n in s["calls"]]
        steps = [Step("", {}, calls=calls)]
        runs[record["id"]] = Trace(**{**record, "steps": steps, "prediction": None})
    return runs


class ObservedMixin(RecordedMixin):
    """What a program's predictors have while it is observed, and with them the copies that it makes of them as it runs."""

    signature: type[dspy.Signature]
    stage: str  # DSPy's: a random text that copies keep
    demos: list[Any]


class PredictorNames:
    """The names of a program's predictors, and of the copies that it makes of them as it runs, as dspy.BestOfN does.

    A predictor is known by its `id`. A copy has DSPy's `stage`, a random text, of the one that it was made from; it has that
    one's name where no other predictor of the program has this `stage`, and neither its signature nor its demos were changed.
    """

    def __init__(self, named: Mapping[str, dspy.Predict] | None = None) -> None:
        named = named or {}
        stages = Counter(predictor.stage for predictor in named.values())
        self._own = {id(predictor): name for name, predictor in named.items()}
        self._by_stage = {p.stage: (name, p) for name, p in named.items() if stages[p.stage] == 1}

    def own(self, predictor: Any) -> str | None:
        """The name of the program's own predictor; None of any other."""
        return self._own.get(id(predictor))

    def of_copy(self, predictor: Any) -> str | None:
        """The name of the predictor that the program copied in the run; None where it is no such copy."""
        if not isinstance(predictor, ObservedMixin) or predictor.stage not in self._by_stage:
            return None
        name, original = self._by_stage[predictor.stage]
        same = predictor is not original and predictor.signature is original.signature
        return name if same and stable(predictor.demos) == stable(original.demos) else None


class DSPyTrace(list[tuple[Any, dict[str, Any], Any]]):
    """DSPy's trace of a run: (predictor, inputs, outputs) of each call that succeeded.

    `given` has each call's predictor by name, None where the program made it in the run, and the inputs and outputs as they
    were; those in the list itself are the program's own objects, which it may have changed since.
    """

    def __init__(self, names: PredictorNames | None = None) -> None:
        super().__init__()
        self.given: list[tuple[str | None, dict[str, Any], dict[str, Any]]] = []
        self._names = names or PredictorNames()
        self._lock = threading.Lock()

    def append(self, call: tuple[Any, dict[str, Any], Any]) -> None:
        predictor, inputs, outputs = call
        name = self._names.own(predictor)
        if name is None and (name := self._names.of_copy(predictor)) is not None:
            # What whoever copied it put in besides, such as the hint of dspy.Refine, is not asked of the predictor itself.
            inputs = {field: value for field, value in inputs.items() if field in predictor.signature.input_fields}
        given = (name, snapshot(inputs), outputs_of(outputs) if hasattr(outputs, "items") else {})
        with self._lock:
            self.given.append(given)
            super().append(call)

    def extend(self, calls: Iterable[tuple[Any, dict[str, Any], Any]]) -> None:
        for call in calls:
            self.append(call)

    def pop(self, index: Any = -1) -> tuple[Any, dict[str, Any], Any]:
        with self._lock:
            self.given.pop(index)
            return super().pop(index)


def outputs_of(outputs: Any) -> dict[str, Any]:
    """What a prediction holds, as it is now."""
    return {name: snapshot(value) for name, value in outputs.items()}


def described(error: BaseException) -> str:
    """An error as a trace keeps it: without secrets, and without half characters, which no database or file would take."""
    return redact(f"{type(error).__name__}: {error}")[:2000].encode("utf-8", "backslashreplace").decode()


def snapshot(value: Any) -> Any:
    """The value as it is now: a program may go on changing its lists and histories."""
    try:
        return copy.deepcopy(value)
    except Exception:  # sockets, locks, clients: what cannot be copied is not changed by a prompt either
        return value


def _readable(value: Any) -> Any:
    if isinstance(value, dspy.Prediction):
        return {k: _readable(v) for k, v in value.items()}
    if isinstance(value, dict):
        return {str(k): _readable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_readable(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(_readable, value), key=str)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Real):  # numpy's
        return int(value) if isinstance(value, Integral) else float(value)
    if hasattr(value, "model_dump"):
        try:
            return value.model_dump(mode="json")
        except Exception:  # a record for reading; training never uses it
            return str(value)
    return str(value)
