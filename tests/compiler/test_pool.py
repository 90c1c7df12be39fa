"""Runs of examples: what a kill, an interrupt and a changed program, metric or data leave to be asked again."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.compiler import Ledger, bootstrap, observe
from dspyc.compiler.threads import Threads
from dspyc.errors import BudgetError
from dspyc.signatures import program_fingerprint
from tests.optimizers import desk

CALLS = 30  # ten examples, three calls each
# Sittings that die by SIGKILL, each with so many answers given: as the next is asked for, or so many seconds after the last,
# before, within or after its write. The next one goes on, and the last one ends. What is recorded after each is printed.
SITTINGS = """
import json, os, signal, sys, threading, time
from collections import Counter
from pathlib import Path
import dspy
import dspyc
from dspyc.compiler import Ledger, bootstrap, observe, read_run
from dspyc.compiler.calls import call_key
from tests.compiler.test_pool import Three, three_times

folder, threads = Path(sys.argv[1]), int(sys.argv[2])
log = folder / "answers.log"

class Expert:
    def __init__(self, answers, seconds):
        self.left, self.seconds, self.lock, self.dying = answers, seconds, threading.Lock(), False

    def __call__(self, inputs):
        with self.lock:
            if self.dying:
                time.sleep(60)
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            if self.left == 0 and self.seconds:
                self.dying, sitting = True, os.getpid()
                if os.fork() == 0:
                    time.sleep(self.seconds)
                    os.kill(sitting, signal.SIGKILL)
                    os._exit(0)
            with log.open("a") as file:
                file.write(inputs["question"] + "\\n")
        return {"answer": "yes"}

def sitting(answers, seconds):
    program = Three()
    program.set_lm(dspyc.ScriptedLM(Expert(answers, seconds)))
    with Ledger(folder / "run") as ledger:
        subject = observe(program, "teacher", identity="x")
        traces = bootstrap(subject, three_times(), metric=None, ledger=ledger, num_threads=threads)
        assert [t.error for t in traces] == [None] * 10

def recorded():
    known = Counter(example for example, *_ in read_run(folder / "run").call_keys())
    return [f"{e.question} {step}" for e in three_times() for step in range(known[call_key(e, "0")])]

for moment in [*sys.argv[3:], "-1:0"]:
    answers, seconds = moment.split(":")
    child = os.fork()  # what costs a second to import is imported once
    if child == 0:
        sitting(int(answers), float(seconds))
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    log.touch()
    print(json.dumps([killed, log.read_text().split("\\n")[:-1], recorded()]), flush=True)
"""


class Three(dspy.Module):  # type: ignore[misc]
    """Asks three times, each time something else."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return [self.answer(question=f"{question} {step}") for step in range(3)][-1]


def three_times() -> list[dspy.Example]:
    return [dspy.Example(question=f"q{i}").with_inputs("question") for i in range(10)]


@pytest.mark.parametrize("threads", [1, 4])
def test_twenty_kills_among_the_calls_repeat_no_recorded_call(tmp_path: Path, threads: int) -> None:
    """What was in flight at a kill may be asked again, by each thread once; what was recorded never is."""
    rng = random.Random(threads)
    moments = [f"{rng.choice((0, 1, 1, 2))}:{rng.choice((0, 0.0002, 0.001, 0.005))}" for _ in range(20)]
    assert sum(int(moment[0]) for moment in moments) < CALLS  # so that each dies
    command = [sys.executable, "-c", SITTINGS, str(tmp_path), str(threads), *moments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sittings = [json.loads(line) for line in done.stdout.splitlines()]
    assert [killed for killed, *_ in sittings] == [True] * 20 + [False]
    before, known = 0, set()
    for _, answered, recorded in sittings:
        asked = answered[before:]
        assert known.isdisjoint(asked)
        assert len(set(asked)) == len(asked)
        assert 0 <= len(asked) - len(recorded) + len(known) <= threads
        before, known = len(answered), set(recorded)
    assert len(known) == CALLS


def run(folder: Path, program: dspy.Module | None = None, **changes: Any) -> tuple[int, list[Any]]:
    """The calls that were made, and the traces."""
    program = program or desk.Desk()
    lm = dspyc.ScriptedLM(desk.expert)
    program.set_lm(lm)
    examples = changes.pop("examples", desk.examples(10))
    settings = {"metric": desk.metric, "num_threads": 4, **changes}
    with Ledger(folder) as ledger:
        subject = observe(program, "teacher", identity=program_fingerprint(program))
        traces = bootstrap(subject, examples, ledger=ledger, **settings)
    return lm.engine.calls, traces


def test_a_changed_metric_scores_anew_without_a_call(tmp_path: Path) -> None:
    assert run(tmp_path)[0] == CALLS
    made, traces = run(tmp_path, metric=lambda example, prediction, trace=None: prediction.total / 10)
    assert made == 0
    assert [trace.score for trace in traces] == [0.2] * 10
    with Ledger(tmp_path) as ledger:
        assert {record["score"] for record in ledger.traces()} == {0.2}


def test_a_changed_program_asks_only_what_is_new(tmp_path: Path) -> None:
    assert run(tmp_path)[0] == CALLS
    changed = desk.Desk()
    changed.count.signature = changed.count.signature.with_instructions("How many colours are there?")
    made, traces = run(tmp_path, changed)
    assert made == 10  # the calls of `count`
    assert sum(call.replayed for trace in traces for call in trace.calls) == 20


def test_changed_data_asks_only_what_is_new(tmp_path: Path) -> None:
    assert run(tmp_path)[0] == CALLS
    relabelled = [example.copy(colours=["black", "black"]) for example in desk.examples(10)]
    assert run(tmp_path, examples=relabelled)[0] == 0
    assert run(tmp_path, examples=desk.examples(12))[0] == 6
    assert run(tmp_path, examples=list(reversed(desk.examples(12))))[0] == 0


def test_equal_examples_have_answers_of_their_own(tmp_path: Path) -> None:
    twice = [*desk.examples(1), *desk.examples(1)]
    assert run(tmp_path, examples=twice)[0] == 6
    assert run(tmp_path, examples=twice)[0] == 0


class Insists(dspy.Module):
    """Asks again where a call fails."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        try:
            return self.answer(question=question)
        except Exception:
            return self.answer(question=question)

    async def aforward(self, question: str) -> Any:
        try:
            return await self.answer.acall(question=question)
        except Exception:
            return await self.answer.acall(question=question)


class InsistsInALoop(Insists):
    def forward(self, question: str) -> Any:
        return asyncio.run(self.aforward(question))


@pytest.mark.parametrize("kind", [Insists, InsistsInALoop])
def test_what_a_program_asks_again_after_a_failure_is_not_asked_on_a_resume(
    tmp_path: Path, kind: Callable[[], dspy.Module]
) -> None:
    failures = [RuntimeError("out of order")]

    def answer(inputs: dict[str, str]) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return {"answer": "yes"}

    made = []
    for _ in range(2):
        lm = dspyc.ScriptedLM(answer)
        program = kind()
        program.set_lm(lm)
        examples = [dspy.Example(question="q").with_inputs("question")]
        with Ledger(tmp_path) as ledger:
            (trace,) = bootstrap(observe(program, "teacher", identity="x"), examples, metric=None, ledger=ledger)
        assert trace.error is None
        made.append(lm.engine.calls)
    assert made == [2, 0]


def test_another_model_or_setting_is_another_call(tmp_path: Path) -> None:
    examples = [dspy.Example(question="q").with_inputs("question")]
    made = []
    with Ledger(tmp_path) as ledger:
        for settings in (
            {},
            {},
            {"temperature": 0.5},
            {"temperature": 0.5, "rollout_id": 1},
            {"model": "scripted/other"},
        ):
            lm = dspyc.ScriptedLM(lambda inputs: {"answer": "a"}, **settings)
            program = dspy.Predict("question -> answer")
            program.set_lm(lm)
            bootstrap(observe(program, "teacher", identity="x"), examples, metric=None, ledger=ledger)
            made.append(lm.engine.calls)
    assert made == [1, 0, 1, 1, 1]


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
import dspyc
from dspyc.compiler import Ledger, bootstrap, observe
from tests.optimizers import desk

folder = Path(sys.argv[1])
lock, interrupted = threading.Lock(), threading.Event()
answered = 0

def answer(inputs):
    global answered
    with lock:
        answered += 1
        mine = answered
    if mine > 9:
        os.write(1, b"asked\\n")
        interrupted.wait()
        while mine > 10 or not ledger.stopped:  # one answers while the run is being left, the others never
            time.sleep(0.001)
    return desk.expert(inputs)

def interrupt(*_):
    interrupted.set()
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
program = desk.Desk()
program.set_lm(dspyc.ScriptedLM(answer))
try:
    with Ledger(folder) as ledger:
        bootstrap(observe(program, "teacher", identity="x"), desk.examples(10), metric=None, ledger=ledger, num_threads=4)
except KeyboardInterrupt:
    print("ended", flush=True)
"""


def test_ctrl_c_waits_for_no_provider_and_ends_with_everything_recorded(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(4):  # all threads wait for the provider
        assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=30)  # the provider would take 60 seconds
    assert process.returncode == 0, error
    assert said == "ended\n"  # no further call began
    with Ledger(tmp_path) as ledger:
        assert ledger.calls() == {"teacher": 9 + 1}  # one was answered meanwhile


def test_threads_run_what_is_submitted_in_order_and_forget_what_has_not_begun() -> None:
    threads = Threads(1)
    gate = threads.submit(time.sleep, 0.05)
    later = [threads.submit(json.dumps, i) for i in range(3)]
    failing = threads.submit(json.loads, "no json")
    assert [future.result() for future in later] == ["0", "1", "2"]
    assert gate.done()
    with pytest.raises(json.JSONDecodeError):
        failing.result()
    over = threading.Event()
    slow = threads.submit(over.wait, 60)
    while not slow.running():
        time.sleep(0.001)
    waiting = threads.submit(json.dumps, 1)
    waiting.add_done_callback(lambda _: over.set())
    threads.end(abandon=False)
    assert slow.done()
    assert waiting.cancelled()
    with pytest.raises(BudgetError, match="The run was stopped"):
        threads.submit(json.dumps, 2)
