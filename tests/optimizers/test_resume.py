"""Real processes, really killed, and the same compile in another process: nothing is paid for twice."""

import functools
import os
import signal
from pathlib import Path
from typing import Any

import dspy
import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook

import dspyc
from dspyc.training.events import read_events
from tests.providers.compiling import Elsewhere

from . import desk
from .simulated import questions, right, simulated_lm

CALLS = 30  # ten examples, three predictor calls each


def compiled(
    folder: Path, die_at: int | None = None, steps: int = 2, threads: int = 1, last_step: int | None = None
) -> dict[str, Any]:
    """What the compile of all tests here did, in this process; which dies at an answer, or within a step of training."""
    done: list[int] = []

    def die(*_: Any) -> None:
        done.append(1)
        if len(done) == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    if last_step is not None:
        register_optimizer_step_post_hook(die)
    teacher_lm = dspyc.ScriptedLM(desk.LoggedExpert(folder / "answers.log", die_at))
    optimizer = dspyc.BootstrapFinetune(
        metric=desk.metric,
        teacher_lm=teacher_lm,
        run_dir=folder / "run",
        holdout_fraction=0,
        num_threads=threads,
        train_kwargs={**desk.QUICK, "max_steps": steps, "save_steps": 2},
    )
    program = optimizer.compile(desk.student(), trainset=desk.examples(10))
    report = program.report
    facts = {"answered": teacher_lm.engine.calls, "paid": report.calls, "replayed": report.replayed}
    return {**facts, "model": program.name.lm.model, "rows": report.rows}


def kill(folder: Path, *arguments: Any) -> None:
    """The same compile in a process of its own, until it is killed."""
    process = Elsewhere(compiled, folder, *arguments).process
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def answers(folder: Path) -> list[str]:
    return (folder / "answers.log").read_text().splitlines()


def test_killed_while_bootstrapping_in_the_middle_of_an_example(tmp_path: Path) -> None:
    """The 18th call is the last of the sixth example: its first two calls are paid for and must not be made again."""
    kill(tmp_path, 17)
    assert len(answers(tmp_path)) == 17
    resumed = compiled(tmp_path)
    assert resumed["answered"] == CALLS - 17
    assert resumed["replayed"] == 17
    assert resumed["paid"] == {"teacher": CALLS}
    assert len(answers(tmp_path)) == CALLS
    again = compiled(tmp_path)
    assert again["answered"] == 0
    assert again["model"] == resumed["model"]


def test_killed_while_training(tmp_path: Path) -> None:
    """Within the fifth of eight steps, every second of which is kept."""
    whole, folder, steps = tmp_path / "whole", tmp_path / "cut", 8
    whole.mkdir()
    folder.mkdir()
    kill(folder, None, steps, 1, 5)
    assert not list((folder / "run").glob("training/*/result.json"))
    resumed = compiled(folder, steps=steps)
    assert resumed["answered"] == 0
    assert len(answers(folder)) == CALLS
    assert resumed["model"] == compiled(whole, steps=steps)["model"]  # the name holds the hash of the weights
    (events,) = (folder / "run").glob("training/*/events.jsonl")
    assert [e["step"] for e in read_events(events) if e.get("event") == "resumed"] == [4]


def test_killed_with_many_threads(tmp_path: Path) -> None:
    """What was in flight at the kill may be asked again, and nothing else."""
    kill(tmp_path, 9, 2, 4)
    assert len(answers(tmp_path)) == 9
    resumed = compiled(tmp_path, threads=4)
    assert resumed["paid"] == {"teacher": CALLS}
    assert CALLS <= len(answers(tmp_path)) <= CALLS + 4


@pytest.mark.parametrize("kind", [dspyc.BootstrapFewShot, dspyc.BootstrapFewShotWithRandomSearch, dspyc.BetterTogether])
def test_without_a_run_dir_another_metric_finds_the_answers_of_the_first(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path))
    together = kind is dspyc.BetterTogether

    def half(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        return 0.5 * right(example, prediction)

    asked = []
    for metric in (right, half):
        lm = simulated_lm()
        program = dspy.Predict("question -> answer")
        program.set_lm(lm)
        steps = {"p": dspyc.LabeledFewShot(4)} if together else {"num_threads": 1}
        optimizer = kind(metric, **steps)
        data = {"strategy": "p"} if together else {}
        optimizer.compile(program, trainset=questions(0, 20), **data)
        asked.append(len(lm.engine.asked))
    assert asked[0] > 0
    assert asked[1] == 0


def searched(folder: Path, program: dspy.Module, **settings: Any) -> Any:
    """The report of a small search."""
    known = {"metric": right, "num_candidate_programs": 1, "max_bootstrapped_demos": 2, "show_progress": False}
    optimizer = dspyc.BootstrapFewShotWithRandomSearch(**{**known, "run_dir": folder, **settings})
    data = {"trainset": questions(0, 12), "valset": questions(100, 20)}
    return optimizer.compile(program, **data, restrict=[-3, -2]).report


def adding(lm: dspy.LM, kind: type[dspy.Module] | None = None) -> dspy.Module:
    program = kind() if kind else dspy.Predict("question -> answer")
    program.set_lm(lm)
    return program


def weighted(example: dspy.Example, prediction: Any, trace: Any = None, *, weight: float) -> float:
    return weight * right(example, prediction)


def test_a_finished_search_is_scored_anew_by_a_metric_with_other_arguments(tmp_path: Path) -> None:
    lm = simulated_lm(1.0)
    reports, asked = [], []
    for weight in (1.0, 0.5, 0.5):
        reports.append(searched(tmp_path, adding(lm), metric=functools.partial(weighted, weight=weight)))
        asked.append(len(lm.engine.asked))
    first, half, again = (report.best for report in reports)
    assert first.score.mean == 2 * half.score.mean > 0
    assert again == half
    assert asked[0] == asked[1] == asked[2]


class Adding(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.add(question=question)


class Spoiling(Adding):
    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.add(question=question).answer + "!")


def test_a_finished_search_is_made_anew_for_a_program_with_another_forward(tmp_path: Path) -> None:
    lm = simulated_lm()
    assert searched(tmp_path, adding(lm, Adding)).best.score.mean > 0
    asked = len(lm.engine.asked)
    Spoiling.__name__ = Spoiling.__qualname__ = "Adding"  # as after an edit
    assert searched(tmp_path, adding(lm, Spoiling)).best.score.mean == 0.0
    assert len(lm.engine.asked) < 2 * asked  # calls that are the same are not paid for again


class Expiring(type(simulated_lm().engine)):  # type: ignore[misc]
    """Refuses some questions until its key is renewed."""

    renewed = False

    def complete(self, request: Any) -> Any:
        if not self.renewed and any(f"{number} +" in str(request.messages[-1]) for number in range(100, 105)):
            raise dspy.lm15.AuthError("401: the key has expired")
        return super().complete(request)


def test_what_failed_in_a_finished_search_is_asked_again(tmp_path: Path) -> None:
    engine = Expiring(1.0)
    lm = dspy.LM("simulated/adder", engine=engine, cache=False, num_retries=0)
    first = searched(tmp_path, adding(lm), race=False)
    assert first.best.score.mean <= 0.75
    engine.renewed = True
    asked = len(engine.asked)
    second = searched(tmp_path, adding(lm), race=False)
    assert second.best.score.mean > first.best.score.mean
    assert {int(question.split()[0]) for question in engine.asked[asked:]} == set(range(100, 105))
