"""BootstrapFewShotWithRandomSearch: DSPy's own choice without the race, a cheaper one with it, and what it reports."""

import itertools
import math
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import numpy as np
import pytest

import dspyc
from dspyc.compiler.budget import Budget
from dspyc.compiler.records import read_run
from dspyc.errors import BootstrapError, ConfigError, DataError
from dspyc.optimizers.folds import divide
from dspyc.providers.local import LocalProvider
from dspyc.signatures import adapt, program_fingerprint

from . import few_shot_programs
from .simulated import questions, right, share, simulated_lm

TRAIN, VALIDATION, TEST = questions(0, 40), questions(100, 60), questions(300, 50)
SETTINGS: dict[str, Any] = {"metric": right, "num_candidate_programs": 6, "max_labeled_demos": 4, "num_threads": 8}


def student(lm: dspy.LM) -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    return program


def search(tmp_path: Path, **settings: Any) -> dspyc.BootstrapFewShotWithRandomSearch:
    return dspyc.BootstrapFewShotWithRandomSearch(**{**SETTINGS, "run_dir": tmp_path, **settings})


def added(inputs: dict[str, str]) -> dict[str, Any]:
    """The right answer to one of the questions."""
    return {"answer": str(sum(map(int, inputs["question"].split("+"))))}


def chosen(program: dspy.Module) -> list[dict[str, Any]]:
    """What a search found, as plain values."""
    return [
        {**candidate, "program": [dict(demo) for demo in candidate["program"].demos]}
        for candidate in program.candidate_programs
    ]


# ------------------------------------------------------------------------------------------------------ DSPy's own choice


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({}, {}),
        ({"max_bootstrapped_demos": 2, "max_labeled_demos": 0}, {}),
        ({"num_candidate_programs": 3}, {"labeled_sample": False}),
        ({}, {"restrict": [-2, 1, 4, 99]}),
        ({"stop_at_score": 50}, {}),
    ],
)
def test_without_the_race_everything_is_as_dspy_finds_it(
    tmp_path: Path, settings: dict[str, Any], arguments: dict[str, Any]
) -> None:
    data = {"trainset": TRAIN, "valset": VALIDATION, **arguments}
    lm = simulated_lm()
    with dspy.context(lm=lm):
        theirs = dspy.BootstrapFewShotWithRandomSearch(**{**SETTINGS, **settings}).compile(
            dspy.Predict("question -> answer"), **data
        )
    ours = search(tmp_path, race=False, **settings).compile(student(lm), **data)
    assert chosen(ours) == chosen(theirs)
    assert [dict(demo) for demo in ours.demos] == [dict(demo) for demo in theirs.demos]
    assert ours.report.final is None
    assert "pass a `testset`" in ours.report.final_on


def fails_at_times(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    if few_shot_programs.draw("raise", example.question) < 15:
        raise ValueError("no judgement")
    return few_shot_programs.half(example, prediction)


@pytest.mark.parametrize("make", few_shot_programs.PROGRAMS)
@pytest.mark.parametrize(
    ("taught", "settings"),
    [
        (True, {"metric": few_shot_programs.half}),
        (False, {"metric": few_shot_programs.graded, "metric_threshold": 0.6, "max_bootstrapped_demos": 3}),
        (True, {"metric": fails_at_times, "max_rounds": 2, "max_errors": 1000}),
    ],
)
def test_candidates_of_any_program_are_dspys(tmp_path: Path, make: Any, taught: bool, settings: dict[str, Any]) -> None:
    examples, settings = (
        few_shot_programs.trainset(24),
        {"num_candidate_programs": 2, "max_labeled_demos": 5, **settings},
    )

    def compiled(kind: Any, **more: Any) -> dspy.Module:
        teacher = make() if taught else None
        with dspy.context(lm=few_shot_programs.lm()):
            return kind(**settings, **more).compile(
                make(), teacher=teacher, trainset=examples[:16], valset=examples[16:]
            )

    def found(program: dspy.Module) -> list[Any]:
        return [{**c, "program": few_shot_programs.demos(c["program"])} for c in program.candidate_programs]

    theirs = compiled(dspy.BootstrapFewShotWithRandomSearch, num_threads=1)
    ours = compiled(dspyc.BootstrapFewShotWithRandomSearch, num_threads=4, race=False, run_dir=tmp_path)
    assert found(ours) == found(theirs)
    assert few_shot_programs.demos(ours) == few_shot_programs.demos(theirs)


def test_the_arguments_are_left_as_they_were(tmp_path: Path) -> None:
    program = student(simulated_lm())
    before = (list(TRAIN), list(VALIDATION), program_fingerprint(program))
    compiled = search(tmp_path).compile(program, trainset=TRAIN, valset=VALIDATION)
    assert (TRAIN, VALIDATION, program_fingerprint(program)) == before
    assert compiled.lm is program.lm


def test_a_score_that_is_enough_ends_the_search_while_candidates_are_being_made(tmp_path: Path) -> None:
    def slow(inputs: dict[str, str]) -> dict[str, Any]:
        time.sleep(0.05)
        return added(inputs)

    def compile(enough: int | None) -> None:
        teacher = student(dspyc.ScriptedLM(slow if enough else added))
        settings = {"race": False, "stop_at_score": enough, "num_threads": 2, "num_candidate_programs": 40}
        compiled = search(tmp_path / str(enough), **settings).compile(
            student(dspyc.ScriptedLM(added)), teacher=teacher, trainset=TRAIN, valset=VALIDATION[:4]
        )
        found.append((compiled.report.winner, teacher.lm.engine.calls))

    found: list[tuple[int, int]] = []
    for enough in (80, None):
        compiling = threading.Thread(target=compile, args=(enough,), daemon=True)
        compiling.start()
        compiling.join(timeout=120)
    assert [winner for winner, _ in found] == [-3, -3]
    assert found[0][1] < found[1][1]  # the other candidates were not made whole


# ------------------------------------------------------------------------------------------------------------------ the race


def test_the_race_finds_the_same_winner_with_fewer_calls(tmp_path: Path) -> None:
    full, raced = simulated_lm(), simulated_lm()
    all_of_them = search(tmp_path / "a", race=False).compile(student(full), trainset=TRAIN, valset=VALIDATION)
    compiled = search(tmp_path / "b").compile(student(raced), trainset=TRAIN, valset=VALIDATION, testset=TEST)
    assert compiled.report.winner == all_of_them.candidate_programs[0]["seed"]
    assert [dict(demo) for demo in compiled.demos] == [dict(demo) for demo in all_of_them.demos]
    judged = sum(candidate.score.examples for candidate in compiled.report.candidates)
    assert judged < len(all_of_them.candidate_programs) * len(VALIDATION) / 2
    assert len(raced.engine.asked) - len(TEST) < len(full.engine.asked)  # with what was begun ahead of a look
    best = compiled.report.best
    assert (best.ended, best.score.examples) == ("won", len(VALIDATION))
    assert compiled.candidate_programs[0]["score"] == all_of_them.candidate_programs[0]["score"]


def test_every_candidate_says_what_it_saw_and_why_it_left(tmp_path: Path) -> None:
    report = search(tmp_path).compile(student(simulated_lm()), trainset=TRAIN, valset=VALIDATION, testset=TEST).report
    assert [candidate.number for candidate in report.candidates] == list(range(-3, 6))
    for candidate in report.candidates:
        low, high = candidate.score.interval
        assert low <= candidate.score.mean <= high
        if candidate.score.examples < len(VALIDATION):
            assert f"behind candidate {report.winner}" in candidate.ended
    assert {candidate.score.examples for candidate in report.candidates} > {len(VALIDATION)}
    kept = {found["id"]: found["score"] for found in read_run(tmp_path).candidates()}
    assert kept == {str(candidate.number): candidate.score.mean for candidate in report.candidates}


def test_the_same_seed_gives_the_same_search_however_fast_its_threads(tmp_path: Path) -> None:
    reports = []
    for threads in (1, 3, 16):
        lm = simulated_lm()
        compiled = search(tmp_path / str(threads), num_threads=threads, seed=5).compile(
            student(lm), trainset=TRAIN, valset=VALIDATION
        )
        reports.append((compiled.report.candidates, compiled.report.final, chosen(compiled)))
    assert reports[0] == reports[1] == reports[2]


def test_a_score_that_is_enough_ends_the_race(tmp_path: Path) -> None:
    lm = simulated_lm(base=0.9)
    compiled = search(tmp_path, stop_at_score=70).compile(student(lm), trainset=TRAIN, valset=VALIDATION)
    assert compiled.candidate_programs[0]["score"] >= 70
    ended = [c.ended for c in compiled.report.candidates if c.number != compiled.report.winner]
    assert any("reached `stop_at_score`" in reason for reason in ended)
    assert all(c.score.examples < 60 for c in compiled.report.candidates if c.number != compiled.report.winner)


# ----------------------------------------------------------------------------------------- what the winner is really worth


def test_the_final_score_is_of_examples_that_the_search_did_not_use(tmp_path: Path) -> None:
    lm = simulated_lm()
    compiled = search(tmp_path).compile(student(lm), trainset=TRAIN, valset=VALIDATION, testset=TEST)
    asked = lm.engine.asked
    assert sorted(q for q in asked if q in {e.question for e in TEST}) == sorted(e.question for e in TEST)
    assert compiled.report.final.examples == len(TEST)
    with dspy.context(lm=lm):
        again = dspy.Evaluate(devset=TEST, metric=right, num_threads=4, display_progress=False)(compiled)
    assert compiled.report.final.mean == pytest.approx(again.score / 100, abs=1e-4)


def test_without_a_testset_training_examples_that_had_no_part_in_the_winner_are_asked(tmp_path: Path) -> None:
    lm = simulated_lm()
    compiled = search(tmp_path).compile(student(lm), trainset=TRAIN, valset=VALIDATION)
    final = lm.engine.asked[-compiled.report.final.examples :]
    demos = {demo.question for demo in compiled.demos}
    assert set(final) <= {example.question for example in TRAIN} - demos
    assert len(set(final)) == len(final) >= 30
    assert "training examples that had no part in it" in compiled.report.final_on


def test_of_many_training_examples_the_final_score_takes_a_sample(tmp_path: Path) -> None:
    asked = []
    for seed in (0, 0, 1):
        lm = simulated_lm()
        compiled = search(tmp_path / f"{len(asked)}", seed=seed).compile(
            student(lm), trainset=questions(400, 130), valset=VALIDATION, restrict=[-3]
        )
        asked.append(set(lm.engine.asked) - {e.question for e in VALIDATION})
        assert compiled.report.final.examples == 100
    assert compiled.report.final_on == "100 training examples, drawn from 130 that had no part in it"
    assert asked[0] == asked[1] != asked[2]


@pytest.mark.parametrize("known", [20, 40])
def test_examples_that_choose_are_not_those_of_the_final_score(tmp_path: Path, known: int) -> None:
    compiled = search(tmp_path).compile(student(simulated_lm()), trainset=TRAIN, valset=TRAIN[:known], restrict=[-3])
    assert (compiled.report.final.examples if compiled.report.final else 0) == 40 - known


def test_training_examples_may_hold_arrays(tmp_path: Path) -> None:
    def held(examples: list[dspy.Example]) -> list[dspy.Example]:
        return [dspy.Example(weights=np.arange(3), **example).with_inputs("question") for example in examples]

    compiled = search(tmp_path).compile(
        student(simulated_lm()), trainset=held(TRAIN), valset=held(VALIDATION), restrict=[-2]
    )
    assert len(compiled.demos) == 4
    assert compiled.report.final.examples == len(TRAIN) - 4


def test_where_all_training_examples_had_a_part_there_is_no_final_score(tmp_path: Path) -> None:
    lm = simulated_lm()
    compiled = search(tmp_path, max_labeled_demos=16).compile(student(lm), trainset=TRAIN[:8], valset=VALIDATION)
    assert compiled.report.final is None
    assert "pass a `testset`" in compiled.report.conclusion


def test_without_a_valset_training_examples_are_kept_aside_for_it(tmp_path: Path) -> None:
    lm = simulated_lm()
    compiled = search(tmp_path).compile(student(lm), trainset=TRAIN)
    assert compiled.report.validation == "16 examples of `trainset`, kept aside because there is no `valset`"
    assert compiled.report.final.examples == 8
    learned_from = {demo.question for c in compiled.candidate_programs for demo in c["program"].demos}
    assert learned_from <= {example.question for example in divide(TRAIN, None, None, seed=0).train}


@pytest.mark.parametrize(("valset", "testset"), [(None, None), (None, TEST), (VALIDATION, None), (VALIDATION, TEST)])
def test_no_example_is_in_two_folds(valset: Any, testset: Any) -> None:
    folds = divide(TRAIN, valset, testset, seed=3)
    together = [example.question for fold in (folds.train, folds.validation, folds.final) for example in fold]
    given = [example.question for examples in (TRAIN, valset or [], testset or []) for example in examples]
    assert sorted(together) == sorted(given)  # all of them, each once


@pytest.mark.parametrize("testset", [None, TEST])
def test_equal_examples_are_not_learned_from_and_held_out(testset: Any, caplog: pytest.LogCaptureFixture) -> None:
    folds = divide(TRAIN + TRAIN, None, testset, seed=3)
    questions_of = [{e.question for e in fold} for fold in (folds.train, folds.validation, folds.final)]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(questions_of, 2))
    assert set().union(*questions_of) == {e.question for e in [*TRAIN, *(testset or [])]}
    assert folds.validation_name.startswith(f"{len(folds.validation)} examples")
    dropped = sum(map(int, re.findall(r"(\d+) of \d+ examples of `trainset` to (?:learn from|choose by)", caplog.text)))
    held_out = 0 if testset else len(folds.final)
    assert dropped == 2 * len(TRAIN) - len(folds.train) - len(folds.validation) - held_out > 0
    with pytest.raises(DataError, match="to choose by equal ones that are held out"):
        divide(TRAIN[:1] * 8, None, None, seed=3)


def test_examples_that_were_given_twice_are_counted_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    divide(TRAIN, VALIDATION + TRAIN[:7], TEST + TRAIN[:2], seed=0)
    assert "2 of 52 examples of `testset` are in `trainset` too" in caplog.text
    assert "7 of 67 examples of `valset` are in `trainset` too" in caplog.text
    assert "2 of 52 examples of `testset` are in `valset` too" in caplog.text
    caplog.clear()
    divide(TRAIN, VALIDATION, TEST, seed=0)
    assert not caplog.text


def test_a_metric_gets_the_trace_in_a_bootstrap_and_none_in_a_score(tmp_path: Path) -> None:
    seen: dict[str, set[bool]] = {}

    def watching(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        seen.setdefault(example.question, set()).add(trace is not None)
        return right(example, prediction)

    search(tmp_path, metric=watching).compile(student(simulated_lm()), trainset=TRAIN, valset=VALIDATION, testset=TEST)
    assert set().union(*(seen[e.question] for e in VALIDATION)) == {False}
    assert set().union(*(seen.get(e.question, {True}) for e in TRAIN)) == {True}


# ------------------------------------------------------------------------------------------------------- what goes wrong


def test_bad_runs_score_nothing_and_are_told(tmp_path: Path) -> None:
    def moody(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> Any:
        return "good" if share("moody", example.question) < 0.1 else right(example, prediction)

    compiled = search(tmp_path, metric=moody, race=False, max_errors=100).compile(
        student(simulated_lm()), trainset=TRAIN, valset=VALIDATION
    )
    failed = sum(share("moody", example.question) < 0.1 for example in VALIDATION)
    assert failed
    assert {candidate.failed for candidate in compiled.report.candidates} == {failed}


def test_a_metric_that_always_fails_ends_the_search_with_its_words(tmp_path: Path) -> None:
    def broken(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return bool(prediction.no_such_field)

    with pytest.raises(BootstrapError, match="no_such_field"):
        search(tmp_path, metric=broken).compile(student(simulated_lm()), trainset=TRAIN, valset=VALIDATION)


@pytest.mark.parametrize("race", [True, False])
def test_a_search_in_which_no_run_could_be_scored_ends_with_the_reason(tmp_path: Path, race: bool) -> None:
    def broken(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return bool(prediction.no_such_field)

    def unreadable(request: Any) -> Any:
        raise RuntimeError("out of order")

    few: dict[str, Any] = {"trainset": TRAIN, "valset": VALIDATION[:4], "restrict": [-3, -2]}
    lm = simulated_lm()
    with pytest.raises(ConfigError, match=r"The metric failed on every one of 8 validation runs.*no_such_field"):
        search(tmp_path / "metric", metric=broken, race=race).compile(student(lm), **few)
    lm.engine.complete = unreadable
    with pytest.raises(BootstrapError, match=r"8 of 8 validation runs failed.*8 × program raised .*out of order"):
        search(tmp_path / "program", race=race).compile(student(lm), **few)


def test_a_teacher_with_no_good_run_ends_the_search(tmp_path: Path) -> None:
    def never(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return trace is None and right(example, prediction)

    with pytest.raises(BootstrapError, match="No run of the teacher on 40 examples was good"):
        search(tmp_path, metric=never).compile(student(simulated_lm()), trainset=TRAIN, valset=VALIDATION)


def test_what_cannot_be_searched_is_refused_before_any_call(tmp_path: Path) -> None:
    lm = simulated_lm()
    for arguments, error, words in (
        ({"restrict": [6, 7]}, ConfigError, "-3 to 5"),
        ({"restrict": 1}, ConfigError, r"`restrict` is 1; a list of .* -3 to 5.*restrict=\[1\]"),
        ({"restrict": "-3"}, ConfigError, "`restrict` is '-3'"),
        ({"restrict": [[1]]}, ConfigError, r"`restrict` is \[\[1\]\]"),
        ({"valset": []}, DataError, "valset"),
        ({"trainset": TRAIN[:2], "valset": None}, DataError, "no `valset`"),
        ({"testset": [1]}, DataError, "testset"),
    ):
        data: dict[str, Any] = {"trainset": TRAIN, "valset": VALIDATION, **arguments}
        with pytest.raises(error, match=words):
            search(tmp_path).compile(student(lm), **data)
    with pytest.raises(ConfigError, match="risk"):
        search(tmp_path, risk=0)
    with pytest.raises(ConfigError, match="`stop_at_score` is '90'; a finite number is allowed"):
        search(tmp_path, stop_at_score="90")
    assert lm.engine.asked == []


# ---------------------------------------------------------------------------------------------------------- going on later


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tests.optimizers import test_random_search as t
    lm = t.simulated_lm()
    answer = lm.engine.complete

    def complete(request):
        if len(lm.engine.asked) >= 120:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(request)

    lm.engine.complete = complete
    t.search(Path(sys.argv[1])).compile(t.student(lm), trainset=t.TRAIN, valset=t.VALIDATION)
"""


def test_a_search_that_was_killed_goes_on_with_the_answers_that_it_had(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    here = Path(__file__).parent.parent.parent
    assert subprocess.run(command, check=False, cwd=here).returncode == -signal.SIGKILL
    before = len(read_run(tmp_path).call_keys())
    assert before > 60
    resumed, fresh = simulated_lm(), simulated_lm()
    one = search(tmp_path).compile(student(resumed), trainset=TRAIN, valset=VALIDATION)
    two = search(tmp_path / "fresh").compile(student(fresh), trainset=TRAIN, valset=VALIDATION)
    assert one.report.candidates == two.report.candidates
    new = len(read_run(tmp_path).call_keys()) - before
    assert new <= len(resumed.engine.asked) <= new + 8  # threads, of which two may ask the same at once


INTERRUPTED = """
    import os, signal, sys, threading, time
    import dspyc
    from tests.optimizers import test_random_search as t

    join, waits = threading.Thread.join, []

    def joined(thread, timeout=None):
        waits.append(timeout)
        join(thread, timeout)

    def answer(inputs):
        os.write(1, b"asked\\n")
        time.sleep(60)  # a provider that takes its time

    def interrupt(*_):
        threading.Thread.join = joined  # from now on it is noted who waits for a thread, and how long at most
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        t.search(sys.argv[1], num_threads=2).compile(
            t.student(dspyc.ScriptedLM(answer)), trainset=t.TRAIN, valset=t.VALIDATION
        )
    except KeyboardInterrupt:
        print(sum(waits), flush=True)
"""


def test_ctrl_c_waits_one_moment_for_runs_and_for_the_candidates_that_they_are_of(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(tmp_path)]
    here = Path(__file__).parent.parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here) as process:
        assert process.stdout is not None
        for _ in range(2):  # all threads wait for the provider
            assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        waited, error = process.communicate(timeout=30)  # the provider would take 60 seconds
    assert process.returncode == 0, error
    assert 0.9 < float(waited) <= 1  # two moments would be 2 seconds


@pytest.mark.parametrize("calls", [60, 150])
def test_a_budget_ends_the_search_with_the_best_so_far(tmp_path: Path, calls: int) -> None:
    lm = simulated_lm()
    compiled = search(tmp_path, budget=Budget(calls=calls)).compile(student(lm), trainset=TRAIN, valset=VALIDATION)
    assert compiled.report.stopped == f"{calls} calls"
    assert compiled.report.final is None
    assert f"not finished: its budget ended it ({calls} calls)." in compiled.report.conclusion
    assert len(lm.engine.asked) <= calls
    finished = search(tmp_path).compile(student(lm), trainset=TRAIN, valset=VALIDATION)
    assert finished.report.stopped is None


@pytest.mark.parametrize("calls", [25, 60, 110, 150])
def test_a_search_that_its_budget_stopped_finds_the_same_again(tmp_path: Path, calls: int) -> None:
    found = []
    for _ in range(2):
        lm = simulated_lm()
        settings = {"num_candidate_programs": 3, "max_rounds": 2, "budget": Budget(calls=calls)}
        report = search(tmp_path, **settings).compile(student(lm), trainset=TRAIN, valset=VALIDATION).report
        assert report.stopped == f"{calls} calls"
        found.append((report.winner, report.candidates))
    assert lm.engine.asked == []
    assert found[0] == found[1]


def test_a_budget_that_ends_in_the_final_score_leaves_that_of_the_runs_before(tmp_path: Path) -> None:
    def compiled(folder: str, budget: Budget | None = None) -> tuple[Any, list[str]]:
        lm = simulated_lm()
        report = (
            search(tmp_path / folder, num_threads=1, budget=budget)
            .compile(student(lm), trainset=TRAIN, valset=VALIDATION, testset=TEST)
            .report
        )
        return report, lm.engine.asked

    whole, asked = compiled("whole")
    # Which runs of the race are under way when it is decided differs by some from one search to another.
    budget = Budget(calls=len(asked) - len(TEST) // 2)
    part, first = compiled("part", budget)
    assert part.candidates == whole.candidates
    assert 10 < part.final.examples < 40
    assert part.final_on == f"{part.final.examples} of 50 examples of `testset`, before the budget was spent"
    assert part.stopped is None
    assert "not finished" not in part.conclusion
    again, nothing = compiled("part", budget)
    assert nothing == []
    assert (again.final, again.final_on, again.stopped) == (part.final, part.final_on, None)
    finished, rest = compiled("part")
    tested = [e.question for e in TEST]
    assert sorted([q for q in first if q in tested] + rest) == sorted(tested)  # no run of the race among them
    assert finished.final == whole.final


@pytest.mark.parametrize(
    ("budget", "stopped"),
    [(Budget(calls=6), "^6 calls$"), (Budget(usd=1), r"^The price of .* is unknown, so .* cannot be kept")],
)
def test_a_teacher_without_budget_leaves_the_runs_that_cost_nothing(
    tmp_path: Path, budget: Budget, stopped: str
) -> None:
    def mostly(inputs: dict[str, str]) -> dict[str, Any]:
        return added(inputs) if share("known", inputs["question"]) < 0.7 else {"answer": "?"}

    compiled = search(tmp_path, race=False, budget=budget).compile(
        student(dspyc.ScriptedLM(mostly, provider=LocalProvider())),
        teacher=student(simulated_lm()),
        trainset=TRAIN,
        valset=VALIDATION,
        testset=TEST,
    )
    assert re.search(stopped, compiled.report.stopped)
    made = [candidate for candidate in compiled.report.candidates if not candidate.ended.startswith("not made")]
    assert {-3, -2} <= {candidate.number for candidate in made} < set(range(-3, 6))
    assert {candidate.score.examples for candidate in made} == {len(VALIDATION)}
    assert compiled.report.final.examples == len(TEST)


def test_a_finished_search_makes_no_call_again(tmp_path: Path) -> None:
    first, second = simulated_lm(), simulated_lm()
    one = search(tmp_path).compile(student(first), trainset=TRAIN, valset=VALIDATION)
    two = search(tmp_path).compile(student(second), trainset=TRAIN, valset=VALIDATION)
    assert second.engine.asked == []
    assert one.report.candidates == two.report.candidates
    assert two.report.replayed > 100


class Priced(dspy.BaseLM):  # type: ignore[misc]
    """Every answer is a quarter of a dollar."""

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        message = SimpleNamespace(content="[[ ## answer ## ]]\n1\n\n[[ ## completed ## ]]", tool_calls=None)
        choices = [SimpleNamespace(message=message, finish_reason="stop")]
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        return SimpleNamespace(
            model=self.model, choices=choices, usage=usage, _hidden_params={"response_cost": 0.25}, cache_hit=False
        )


def test_runs_that_candidates_share_count_once(tmp_path: Path) -> None:
    """A teacher without demos of its own runs the same for every candidate."""

    def compiled() -> Any:
        chosen = search(tmp_path, max_labeled_demos=0, max_bootstrapped_demos=2, race=False, metric=lambda *_: True)
        return chosen.compile(student(Priced("priced/one")), trainset=TRAIN[:8], valset=VALIDATION[:4]).report

    first, again = compiled(), compiled()
    calls = sum(first.calls.values())
    assert (first.replayed, again.replayed) == (0, calls)
    assert first.spent == again.spent
    assert (first.spent["calls"], first.spent["usd"]) == (calls, 0.25 * calls)


@pytest.mark.parametrize("race", [True, False])
def test_another_metric_scores_what_is_recorded_and_asks_nothing(tmp_path: Path, race: bool) -> None:
    def half(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        return 0.5 * right(example, prediction)

    first, second = simulated_lm(), simulated_lm()
    one = search(tmp_path, race=race).compile(student(first), trainset=TRAIN, valset=VALIDATION)
    two = search(tmp_path, race=race, metric=half).compile(student(second), trainset=TRAIN, valset=VALIDATION)
    assert second.engine.asked == []
    assert two.report.best.score.mean == pytest.approx(one.report.best.score.mean / 2)


class Sterner(dspy.ChatAdapter):  # type: ignore[misc]
    """Asks another thing of a judge."""

    def format_task_description(self, signature: type[dspy.Signature]) -> str:
        return f"{super().format_task_description(signature)} Be stern."


@pytest.mark.parametrize("change", ["lm", "adapter"])
def test_another_judge_of_the_metrics_is_asked(tmp_path: Path, change: str) -> None:
    """One that is DSPy's language model, under DSPy's adapter."""

    def judged(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return bool(dspy.Predict("answer -> verdict")(answer=prediction.answer).verdict == "yes")

    def compiled(judge: str, verdict: str, adapter: dspy.Adapter) -> float:
        program = dspy.Predict("question -> answer")
        program.set_lm(lm)
        adapt(program, dspy.ChatAdapter())
        with dspy.context(lm=dspyc.ScriptedLM(lambda inputs: {"verdict": verdict}, model=judge), adapter=adapter):
            found = search(tmp_path, metric=judged).compile(
                program, trainset=TRAIN[:8], valset=VALIDATION[:6], restrict=[-3, -2]
            )
        return float(found.report.best.score.mean)

    lm = simulated_lm()
    assert compiled("scripted/mild", "yes", dspy.ChatAdapter()) == 1.0
    asked = len(lm.engine.asked)
    other = ("scripted/mild", "no", Sterner()) if change == "adapter" else ("scripted/stern", "no", dspy.ChatAdapter())
    assert compiled(*other) == 0.0
    assert len(lm.engine.asked) == asked  # the candidates' answers are in the ledger
    assert compiled(*other) == 0.0


# --------------------------------------------------------------------------------------------------------------- the report


def test_an_artifact_is_json_where_a_score_of_one_example_has_no_bounds(tmp_path: Path) -> None:
    def length(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        return len(prediction.answer) / 8

    with dspy.context(lm=simulated_lm()):
        compiled = search(tmp_path / "run", metric=length).compile(
            dspy.Predict("question -> answer"), trainset=TRAIN, valset=VALIDATION[:1], testset=TEST[:1], restrict=[-3]
        )
    assert compiled.report.final.interval == (-math.inf, math.inf)
    compiled.save(tmp_path / "adder")
    assert "Infinity" not in (tmp_path / "adder" / "artifact.json").read_text()
    assert dspyc.load(tmp_path / "adder").report == compiled.report
    kept = read_run(tmp_path / "run")
    assert "inf" not in str(kept.candidates()) + str(kept.events())


def test_the_report_is_told_in_a_table_in_html_and_in_the_artifact(tmp_path: Path) -> None:
    with dspy.context(lm=simulated_lm()):  # an artifact holds no language model that is DSPy's setting
        compiled = search(tmp_path / "run", num_candidate_programs=2).compile(
            dspy.Predict("question -> answer"), trainset=TRAIN, valset=VALIDATION
        )
    assert compiled.report.table().row_count == 5
    assert "<td><b>" in compiled.report._repr_html_()
    assert "training examples that had no part in it" in compiled.report.conclusion
    compiled.save(tmp_path / "adder")
    loaded = dspyc.load(tmp_path / "adder")
    assert loaded.report == compiled.report
    assert compiled.report.conclusion in (tmp_path / "adder" / "README.md").read_text()
