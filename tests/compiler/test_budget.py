"""Budgets: what cannot be meant, what is never exceeded, and what is left when they are spent."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import exceptions as dspy_errors

import dspyc
from dspyc.compiler import Ledger, bootstrap, observe
from dspyc.compiler.budget import Budget, Meter, Spent, counted_by
from dspyc.compiler.limiter import limiter_of
from dspyc.errors import BudgetError, ConfigError
from dspyc.providers.local import LocalProvider
from tests.optimizers import desk


@pytest.mark.parametrize(
    "limits",
    [{}, {"calls": 0}, {"calls": -3}, {"tokens": 1.5}, {"usd": 0.0}, {"seconds": float("nan")}, {"calls": True}],
)
def test_a_budget_that_allows_nothing_says_so(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="limits nothing" if not limits else f"{next(iter(limits))}="):
        Budget(**limits)


def run(
    folder: Path, budget: Budget | None, *, threads: int = 4, answer: Any = desk.expert
) -> tuple[int, list[Any], Meter]:
    """Ten examples of three calls each; the calls that were made, the traces, and the meter."""
    lm = dspyc.ScriptedLM(answer)
    program = desk.Desk()
    program.set_lm(lm)
    with Ledger(folder, budget=budget) as ledger:
        subject = observe(program, "teacher", identity="x")
        traces = bootstrap(subject, desk.examples(10), metric=desk.metric, ledger=ledger, num_threads=threads)
    return lm.engine.calls, traces, ledger.meter


@pytest.mark.parametrize("calls", [3, 17, 29])
def test_calls_are_never_exceeded_and_a_larger_budget_goes_on(tmp_path: Path, calls: int) -> None:
    made, traces, meter = run(tmp_path, Budget(calls=calls), threads=1)
    assert made == calls
    assert len(traces) == calls // 3
    assert meter.exhausted == f"{calls} calls"
    assert all(trace.error is None for trace in traces)  # what was refused is no bad example
    again, traces, meter = run(tmp_path, Budget(calls=30))
    assert again == 30 - calls
    assert len(traces) == 10
    assert meter.exhausted is None


def test_many_threads_do_not_exceed_calls(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def answer(inputs: dict[str, str]) -> dict[str, Any]:
        if "thing" in inputs and inputs["thing"].startswith("a "):
            with contextlib.suppress(threading.BrokenBarrierError):
                together.wait(timeout=1)  # eight calls are under way at once where eight may be
        return desk.expert(inputs)

    # Eight examples with two calls each are none finished, which would be an error; the seventeenth call finishes one.
    made, _, _ = run(tmp_path, Budget(calls=17), threads=8, answer=answer)
    assert made == 17


def test_tokens_are_exceeded_by_the_calls_under_way_at_most(tmp_path: Path) -> None:
    _, recorded, whole = run(tmp_path / "whole", None)
    usages = [call.usage for trace in recorded for call in trace.calls]
    tokens = [usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages]
    assert sum(tokens) == whole.spent.tokens
    limit = whole.spent.tokens // 2
    _, traces, meter = run(tmp_path / "half", Budget(tokens=limit), threads=4)
    assert limit <= meter.spent.tokens < limit + 4 * max(tokens) < whole.spent.tokens
    assert 0 < len(traces) < 10


def test_a_spent_budget_answers_from_the_ledger_and_pays_nothing(tmp_path: Path) -> None:
    _, first, _ = run(tmp_path, Budget(calls=12), threads=1)
    made, second, _ = run(tmp_path, Budget(calls=12), threads=4)
    assert made == 0
    assert [trace.id for trace in second] == [trace.id for trace in first]


@pytest.mark.parametrize("threads", [1, 8])
def test_what_dspys_cache_answers_is_no_call(tmp_path: Path, threads: int) -> None:
    """With more threads than calls left, those that wait for room find it: a cached answer gives it back."""
    lm = dspyc.ScriptedLM(lambda inputs: {"answer": "yes"}, model=f"scripted/{tmp_path.name}", cache=True)
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    examples = [dspy.Example(question=str(i)).with_inputs("question") for i in range(16)]
    for example in examples[:8]:
        program(**example.inputs())
    assert lm.engine.calls == 8

    def run(folder: str, examples: list[dspy.Example], threads: int) -> tuple[int, str | None, int]:
        with Ledger(tmp_path / folder, budget=Budget(calls=5)) as ledger:
            subject = observe(program, "teacher", identity="x")
            traces = bootstrap(subject, examples, metric=None, ledger=ledger, num_threads=threads)
        return len(traces), ledger.meter.exhausted, ledger.meter.spent.calls

    for folder in ("first", "first", "second"):  # the ledger does not count them either
        assert run(folder, examples[:8], threads) == (8, None, 0)
    assert run("first", examples, threads) == (13, "5 calls", 5)
    assert lm.engine.calls == 13
    assert run("first", examples, threads) == (13, "5 calls", 5)


class Gathers(dspy.Module):
    """Asks twelve times at once, in an event loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self.answer.acall(question=f"{question} {i}") for i in range(12)))

        return dspy.Prediction(answer=" ".join(found.answer for found in asyncio.run(all_of_them())))


def test_calls_of_an_event_loop_wait_for_each_other(tmp_path: Path) -> None:
    lm, program = (
        dspyc.ScriptedLM(lambda inputs: {"answer": "yes"}, model=f"scripted/{tmp_path.name}", cache=True),
        Gathers(),
    )
    program.set_lm(lm)
    program(question="q")  # from here on DSPy's cache answers
    with Ledger(tmp_path, budget=Budget(calls=5)) as ledger:
        subject = observe(program, "teacher", identity="x")
        (trace,) = bootstrap(subject, [dspy.Example(question="q").with_inputs("question")], metric=None, ledger=ledger)
        assert trace.prediction.answer == " ".join(["yes"] * 12)
        assert (ledger.meter.spent.calls, ledger.meter.exhausted) == (0, None)


def test_a_call_waits_for_those_under_way_and_no_longer() -> None:
    for ends, admitted in ((Meter.release, True), (lambda meter: meter.settle(10, 0.0), False)):
        meter = Meter(Budget(calls=1), Spent())
        meter.admit("m", priced=False)
        outcome: list[bool] = []

        def ask(meter: Meter = meter, outcome: list[bool] = outcome) -> None:
            try:
                meter.admit("m", priced=False, stopped=lambda: False)
                outcome.append(True)
            except BudgetError:
                outcome.append(False)

        waiting = threading.Thread(target=ask)
        waiting.start()
        waiting.join(timeout=0.1)
        assert waiting.is_alive()
        ends(meter)
        waiting.join(timeout=10)
        assert outcome == [admitted]
    meter = Meter(Budget(calls=1), Spent())
    meter.admit("m", priced=False)
    for given in ({}, {"stopped": lambda: True}):  # nobody may wait here, or the run is being left
        with pytest.raises(BudgetError, match="1 calls"):
            meter.admit("m", priced=False, **given)


def test_a_call_within_a_call_does_not_wait_for_itself(tmp_path: Path) -> None:
    inner = dspy.Predict("question -> answer")

    class Asking(dspy.BaseLM):
        """A language model that is a program itself."""

        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return inner(question="within", lm=lm)

    lm = dspyc.ScriptedLM(lambda inputs: {"answer": "yes"})
    program = dspy.Predict("question -> answer")
    program.set_lm(Asking("asking"))
    examples = [dspy.Example(question="q").with_inputs("question")]
    with Ledger(tmp_path, budget=Budget(calls=1)) as ledger, pytest.raises(BudgetError, match="1 calls"):
        bootstrap(observe(program, "teacher", identity="x"), examples, metric=None, ledger=ledger)


def test_time_stops_the_next_call(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="1e-06 seconds"):
        run(tmp_path, Budget(seconds=1e-6))


def test_time_stops_models_on_this_machine_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    clock = time.monotonic

    def answer(inputs: dict[str, str]) -> dict[str, Any]:
        asked.append(inputs["question"])
        if len(asked) == 12:
            monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)  # an hour later
        return {"answer": "yes"}

    program = dspy.Predict("question -> answer")
    program.set_lm(dspyc.ScriptedLM(answer, provider=LocalProvider()))
    examples = [dspy.Example(question=str(i), answer="yes").with_inputs("question") for i in range(40)]
    settings: dict[str, Any] = {"num_threads": 1, "num_candidate_programs": 2, "show_progress": False}
    search = dspyc.BootstrapFewShotWithRandomSearch(
        dspy.evaluate.answer_exact_match, budget=Budget(seconds=3600), run_dir=tmp_path, **settings
    )
    report = search.compile(program, trainset=examples[:20], valset=examples[20:]).report
    assert "3600 seconds" in report.stopped
    assert len(asked) == 12
    assert report.spent["calls"] == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_time_stops_retries_and_requests_that_wait_for_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    asked: list[str] = []
    clock = time.monotonic

    def later(hours: int) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: clock() + hours * 3600)

    def answer(inputs: dict[str, str]) -> dict[str, Any]:
        asked.append(inputs["question"])
        if len(asked) > 1:
            later(1)
            raise dspy_errors.LMRateLimitError("busy", retry_after=300)
        return {"answer": "yes"}

    class Asks(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.answer = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            return asyncio.run(self.answer.acall(question=question)) if asynchronous else self.answer(question=question)

    program = Asks()
    program.set_lm(lm := dspyc.ScriptedLM(answer, model=f"scripted/{tmp_path.name}"))
    examples = [dspy.Example(question=str(i)).with_inputs("question") for i in range(6)]

    def until_three_wait() -> None:
        end = clock() + 60
        while len(limiter_of(lm.model)._queue) < 3 and clock() < end:
            time.sleep(0.005)
        later(2)

    for within in (False, True):  # a limit of its own, and that of a sequence around it
        with contextlib.ExitStack() as stack:
            if within:
                stack.enter_context(counted_by(Meter(Budget(seconds=3600), Spent())))
                stack.enter_context(ThreadPoolExecutor()).submit(until_three_wait)
            ledger = stack.enter_context(Ledger(tmp_path, budget=None if within else Budget(seconds=3600)))
            subject = observe(program, "teacher", identity="x")
            traces = bootstrap(subject, examples, metric=None, ledger=ledger, num_threads=3 if within else 1)
            assert [trace.error for trace in traces] == [None]  # who was refused is no bad example
            assert ledger.meter.exhausted == "3600 seconds"
    assert asked == ["0", "1"]


def test_time_stops_a_call_that_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of `calls` is under way, and asks longer than there is time."""
    clock = time.monotonic

    def answer(inputs: dict[str, str]) -> dict[str, Any]:
        end = clock() + 60
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
        while ledger.meter.exhausted is None and clock() < end:
            time.sleep(0.005)
        return {"answer": "yes"}

    program = dspy.Predict("question -> answer")
    program.set_lm(dspyc.ScriptedLM(answer))
    examples = [dspy.Example(question=str(i)).with_inputs("question") for i in range(2)]
    with Ledger(tmp_path, budget=Budget(calls=1, seconds=3600)) as ledger:
        subject = observe(program, "teacher", identity="x")
        traces = bootstrap(subject, examples, metric=None, ledger=ledger, num_threads=2)
    assert (len(traces), ledger.meter.exhausted) == (1, "3600 seconds")


def test_the_time_of_a_sequence_stops_its_steps() -> None:
    outer = Meter(Budget(seconds=1e-6), Spent())
    with counted_by(outer):
        inner = Meter(None, Spent())
    for meter in (inner, outer):
        with pytest.raises(BudgetError, match="1e-06 seconds"):
            meter.check_time()
        assert meter.exhausted == "1e-06 seconds"


def test_usd_needs_a_known_price(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"price of 'scripted/expert' is unknown.*calls"):
        run(tmp_path, Budget(usd=5))


def test_usd_is_counted() -> None:
    meter = Meter(Budget(usd=0.10), Spent(usd=0.05))
    meter.admit("m", priced=True)
    meter.settle(100, 0.06)
    with pytest.raises(BudgetError, match=r"0\.11 USD of 0\.1"):
        meter.admit("m", priced=True)


def test_models_on_this_machine_cost_nothing(tmp_path: Path) -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=24, cache=False))
    examples = [dspy.Example(question=str(i)).with_inputs("question") for i in range(3)]
    with Ledger(tmp_path, budget=Budget(calls=1)) as ledger:
        traces = bootstrap(observe(program, "student", identity="x"), examples, metric=None, ledger=ledger)
        assert [trace.error for trace in traces] == [None] * 3
        assert ledger.calls() == {"student": 3}
    assert ledger.meter.spent.calls == 0
    assert ledger.meter.exhausted is None
