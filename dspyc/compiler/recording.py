"""A program is run on one example, and what its predictors do is recorded as a trace.

Steps come from the predictors' own calls; the language-model calls in a step from `compiler.calls`.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import dspy

from ..evaluation import call_metric
from ..evaluation.metrics import Metric
from ..signatures import predictors
from ..signatures.mixins import mix
from .call import Call
from .calls import Run, Workers, call_key
from .ledger import Ledger
from .trace import DSPyTrace, ObservedMixin, PredictorNames, Step, Trace, described, outputs_of, snapshot


@dataclass(frozen=True)
class Subject:
    """A program under observation: its predictors' names, what it is (`fingerprint`) and its part in the compile."""

    program: dspy.Module
    role: str
    fingerprint: str
    lm: dspy.BaseLM | None = None  # for predictors that have none of their own
    adapter: dspy.Adapter | None = None
    traced: bool = True  # whether the metric gets DSPy's trace, as in a bootstrap; dspy.Evaluate gives it none
    round: int = 0  # of the bootstrap; LMs that come up in the program give other replies in each
    names: PredictorNames = field(init=False, repr=False, compare=False)  # of its predictors

    def __post_init__(self) -> None:
        found = predictors(self.program)
        object.__setattr__(self, "names", PredictorNames(found))
        for predictor in found.values():
            mix(predictor, _Observed)


def run_example(
    subject: Subject,
    example: dspy.Example,
    trace: Trace,
    metric: Metric | None,
    ledger: Ledger,
    repeat: str = "",
    workers: Workers | None = None,
) -> Trace:
    """Run, score and record one example; what goes wrong with it is kept in the trace. `repeat` tells equal examples apart.

    Raises:
        LedgerError: The record cannot be kept; nothing further may be paid for.
        BudgetError: A call was not allowed, so this is no finished run; its calls so far are recorded.
    """
    recorder = _Recorder(trace, subject.names)
    trace.taken = DSPyTrace(subject.names)
    trace.asked = call_key(example, repeat)
    run = Run(subject.role, trace.asked, ledger, recorder.on_call, workers, subject.round)
    settings: dict[str, Any] = {
        "trace": trace.taken,
        "disable_history": False,
        "dspyc_run": run,
        "dspyc_recorder": recorder,
    }
    if subject.lm is not None:
        settings["lm"] = subject.lm
    if subject.adapter is not None:
        settings["adapter"] = subject.adapter
    started = time.monotonic()
    with dspy.context(**settings):
        _run_and_score(subject, example, recorder, metric, run)
    trace.seconds = time.monotonic() - started
    if stop := ledger.failure or run.refusal:
        raise stop
    ledger.record_trace(trace.id, trace.role, trace.score, trace.error, trace.to_record())
    return trace


def _run_and_score(
    subject: Subject, example: dspy.Example, recorder: "_Recorder", metric: Metric | None, run: Run
) -> None:
    trace = recorder.trace
    try:
        trace.prediction = subject.program(**example.inputs())
    except Exception as error:  # a bad example is an event, not the end
        trace.error, trace.blame = described(error), "program"
        return
    finally:
        recorder.drop_refused()
    if metric is None:
        return
    run.round = 0  # a judge is asked as ever
    try:
        taken = list(trace.taken) if subject.traced else None
        trace.score = call_metric(metric, example, trace.prediction, taken)
    except Exception as error:
        trace.error, trace.blame = described(error), "metric"


class _Observed(ObservedMixin):
    """Tells the recorder of the run what the predictor does. DSPy's callbacks would too, at 0.1 ms a call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        recorder = dspy.settings.get("dspyc_recorder")
        if not isinstance(recorder, _Recorder):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        with recorder.step(self, kwargs) as step:
            outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
            recorder.finish(step, outputs)
        return outputs

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        recorder = dspy.settings.get("dspyc_recorder")
        if not isinstance(recorder, _Recorder):
            return await super().acall(*args, **kwargs)  # type: ignore[misc]
        with recorder.step(self, kwargs) as step:
            outputs = await super().acall(*args, **kwargs)  # type: ignore[misc]
            recorder.finish(step, outputs)
        return outputs


class _Recorder:
    """Collects the steps of one run; `names` are those of its predictors."""

    def __init__(self, trace: Trace, names: PredictorNames) -> None:
        self.trace, self._names = trace, names
        self._of_copies: list[tuple[Step, dspy.Prediction]] = []

    @contextmanager
    def step(self, predictor: _Observed, given: dict[str, Any]) -> Iterator[Step | None]:
        """A call of a predictor while it goes on; None where the program made the predictor in the run."""
        own = self._names.own(predictor)
        name = own if own is not None else self._names.of_copy(predictor)
        if name is None:
            yield None
            return
        fields = given.get("signature", predictor.signature).input_fields
        step = Step(name, {k: snapshot(v) for k, v in given.items() if k in fields}, of_copy=own is None)
        self.trace.steps.append(step)
        token = _current_step.set(step)
        try:
            yield step
        except BaseException as error:
            step.error = described(error)
            raise
        finally:
            _current_step.reset(token)

    def finish(self, step: Step | None, outputs: Any) -> None:
        if step is not None and isinstance(outputs, dspy.Prediction):
            step.outputs = outputs_of(outputs)
            if step.of_copy:
                self._of_copies.append((step, outputs))

    def drop_refused(self) -> None:
        """Take the outputs of copies' steps that the program did not put in DSPy's trace: it kept another attempt."""
        kept = {id(outputs) for _, _, outputs in self.trace.taken}
        for step, outputs in self._of_copies:
            if id(outputs) not in kept:
                step.outputs, step.error = None, "The program kept another attempt."

    def on_call(self, call: Call) -> None:
        step = _current_step.get()
        if step is not None:  # a call outside any predictor, as a judge's in a metric, belongs to no step
            step.calls.append(call)


_current_step: ContextVar[Step | None] = ContextVar("dspyc_current_step", default=None)
