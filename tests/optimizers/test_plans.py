"""Plans of the prompt searches: bounds that what is then spent keeps to."""

from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.compiler.plan import between
from dspyc.errors import DataError
from tests.optimizers.simulated import questions, right, simulated_lm


def adder() -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    program.set_lm(simulated_lm(0.6))
    return program


def calls(student: dspy.Predict) -> int:
    return len(student.lm.engine.asked)


def check(optimizer: Any, student: dspy.Predict, **data: Any) -> tuple[dict[str, Any], Any]:
    """The plan by parts, after a compile that kept to it and shows it beside what it spent."""
    plan = optimizer.plan(student, **data)
    assert calls(student) == 0
    report = optimizer.compile(student, **data).report
    assert plan.least <= calls(student) == report.spent["calls"] <= plan.calls
    assert report.plan == plan.to_dict()
    assert report == type(report).from_dict(report.to_dict())
    columns = [list(column.cells) for column in report.spending().columns]
    assert columns[0] == ["calls", "tokens", "USD", "seconds"]
    assert columns[1][0] == between(plan.least, plan.calls)
    assert columns[2][0] == f"{calls(student):,}"
    return {stage.role: (stage.examples, stage.least, stage.calls) for stage in plan.stages}, plan


def test_labelled_demos_cost_nothing() -> None:
    plan = dspyc.LabeledFewShot(4).plan(adder(), trainset=questions(0, 10))
    assert (plan.calls, plan.tokens, plan.usd, plan.seconds) == (0, 0, 0.0, 0.0)


def test_a_bootstrap(tmp_path: Path) -> None:
    optimizer = dspyc.BootstrapFewShot(right, max_bootstrapped_demos=3, max_rounds=2, num_threads=4, run_dir=tmp_path)
    parts, plan = check(optimizer, adder(), trainset=questions(0, 20))
    assert parts == {"teacher": (20, 3, 40)}
    assert plan.threads == 4
    assert plan.unknown_prices == ["simulated/adder"]
    assert "at most 20 s of calls, 4 at once" in str(plan.table().caption)


@pytest.mark.parametrize(
    ("settings", "candidate", "final"),
    [
        ({"race": False}, (40, 200, 200), None),
        ({"race": True}, (40, 40 + 4 * 16, 200), (20, 0, 20)),
        ({"race": False, "stop_at_score": 100}, (40, 40, 200), None),
    ],
)
def test_a_search_with_and_without_the_race(
    tmp_path: Path, settings: dict[str, Any], candidate: tuple[int, int, int], final: Any
) -> None:
    search = dspyc.BootstrapFewShotWithRandomSearch(
        right, num_candidate_programs=2, max_bootstrapped_demos=2, num_threads=4, run_dir=tmp_path, **settings
    )
    parts, _ = check(search, adder(), trainset=questions(0, 20), valset=questions(50, 40))
    assert parts["candidate"] == candidate
    assert parts.get("final") == final
    assert parts["teacher"][0] == 20
    assert 3 <= parts["teacher"][1] <= 6  # -1 looks for two good runs, 0 and 1 for one or two
    assert parts["teacher"][2] == 60


@pytest.mark.parametrize(("known", "final"), [(0, (100, 0, 100)), (60, (70, 0, 70)), (130, None)])
def test_a_final_score_on_training_examples(tmp_path: Path, known: int, final: Any) -> None:
    search = dspyc.BootstrapFewShotWithRandomSearch(right, num_threads=4, run_dir=tmp_path)
    train = questions(0, 130)
    parts, _ = check(search, adder(), trainset=train, valset=train[:known] or questions(200, 40), restrict=[-3])
    assert parts.get("final") == final


def test_a_teacher_without_labels_makes_each_run_once_for_all_candidates(tmp_path: Path) -> None:
    search = dspyc.BootstrapFewShotWithRandomSearch(
        right, num_candidate_programs=4, max_labeled_demos=0, num_threads=1, run_dir=tmp_path
    )
    parts, _ = check(search, adder(), trainset=questions(0, 20), valset=questions(50, 20), restrict=range(-1, 4))
    assert parts["teacher"] == (20, 4, 20)


def test_a_sequence_is_the_sum_of_its_steps(tmp_path: Path) -> None:
    together = dspyc.BetterTogether(
        right, p=dspyc.BootstrapFewShot(right, num_threads=2), k=dspyc.LabeledFewShot(2), own=dspy.COPRO(metric=right)
    )
    data = {"trainset": questions(0, 20), "valset": questions(50, 10)}
    plan = together.plan(adder(), strategy="p -> own -> k", **data)
    assert [stage.role for stage in plan.stages] == ["1. p: teacher", "held-out"]
    assert (plan.least, plan.calls) == (4 + 40, 20 + 40)
    assert plan.unknown == ["2. own"]
    assert "nothing is known of 2. own" in str(plan.table().caption)
    student = adder()
    report = together.compile(student, strategy="p -> k -> p", run_dir=tmp_path, **data).report
    assert report.plan["least"] <= report.spent["calls"] == calls(student) <= report.plan["calls"]
    assert report == type(report).from_dict(report.to_dict())
    assert report.spending().row_count == 4


def test_prices_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    program = dspy.Predict("question -> answer")
    program.set_lm(dspy.LM("openai/gpt-4o-mini"))
    search = dspyc.BootstrapFewShotWithRandomSearch(right, num_candidate_programs=16)
    plan = search.plan(program, trainset=questions(0, 60), valset=questions(100, 200))
    assert plan.unknown_prices == []
    assert plan.usd is not None
    assert 0.3 < plan.usd < 3  # some 5,000 prompts of up to 16 demos at 0.15 USD a million tokens
    with pytest.raises(DataError, match="`valset` is empty"):
        search.plan(program, trainset=questions(0, 60), valset=[])
