"""Plans: what is said before anything is spent, beside what was spent."""

import time
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.compiler.plan import plan_stages
from dspyc.compiler.prices import price_of
from dspyc.errors import BudgetError
from tests.optimizers import desk


def optimizer(folder: Path, **settings: Any) -> Any:
    teacher_lm = dspyc.ScriptedLM(desk.expert)
    made = dspyc.BootstrapFinetune(
        metric=desk.metric, teacher_lm=teacher_lm, train_kwargs=desk.QUICK, run_dir=folder, num_threads=2, **settings
    )
    return made, teacher_lm


def test_the_plan_of_a_compile_costs_nothing_and_stands_beside_what_was_spent(tmp_path: Path) -> None:
    made, teacher_lm = optimizer(tmp_path / "run")
    plan = made.plan(desk.student(), trainset=desk.examples(10))
    assert teacher_lm.engine.calls == 0
    assert not (tmp_path / "run").exists()
    parts = {stage.role: (stage.examples, stage.calls, stage.paid) for stage in plan.stages}
    assert parts == {
        "teacher": (8, 16, True),
        "student": (2, 4, False),
        "teacher, held out": (2, 4, True),
        "compiled": (2, 4, False),
    }
    assert plan.usd is None
    assert plan.unknown_prices == ["scripted/expert"]
    report = made.compile(desk.student(), trainset=desk.examples(10)).report
    assert report.plan == plan.to_dict()
    assert report.spent["calls"] == teacher_lm.engine.calls == 30  # one predictor is in a loop, which no plan can know
    assert plan.tokens / 2 < report.spent["tokens"] < plan.tokens * 4
    assert report.stopped is None
    assert report == type(report).from_dict(report.to_dict())
    columns = [list(column.cells) for column in report.spending().columns]
    assert columns[0] == ["calls", "tokens", "USD", "seconds"]
    assert (columns[1][0], columns[2][0]) == ("20", "30")


def test_a_spent_budget_leaves_the_best_so_far_and_says_so(tmp_path: Path) -> None:
    made, teacher_lm = optimizer(tmp_path / "run", budget=dspyc.Budget(calls=12))
    report = made.compile(desk.student(), trainset=desk.examples(10)).report
    assert teacher_lm.engine.calls == 12
    assert report.stopped == "12 calls"
    assert 3 <= report.dataset["traces"] <= 4
    assert report.verdict.examples == 2  # the models on this machine are still compared
    assert report.teacher is None
    assert "best so far" in str(report.table().caption)
    made, teacher_lm = optimizer(tmp_path / "run", budget=dspyc.Budget(calls=30))
    report = made.compile(desk.student(), trainset=desk.examples(10)).report
    assert teacher_lm.engine.calls == 18
    assert report.stopped is None
    with pytest.raises(BudgetError, match="1 calls"):  # not enough for a single example
        optimizer(tmp_path / "none", budget=dspyc.Budget(calls=1))[0].compile(
            desk.student(), trainset=desk.examples(10)
        )


def test_time_that_is_over_leaves_what_was_learned_to_be_compared_in_the_next_sitting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, teacher_lm = optimizer(tmp_path, budget=dspyc.Budget(seconds=3600))
    clock = time.monotonic

    def slow(inputs: dict[str, str]) -> dict[str, Any]:
        if teacher_lm.engine.calls >= 12:
            monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)  # an hour later
        return desk.expert(inputs)

    teacher_lm.engine.answer = slow
    report = made.compile(desk.student(), trainset=desk.examples(10)).report
    assert (report.stopped, report.verdict) == ("3600 seconds", None)
    assert set(report.calls) == {"teacher"}
    assert report.rows
    made, teacher_lm = optimizer(tmp_path)
    report = made.compile(desk.student(), trainset=desk.examples(10)).report
    assert (report.stopped, report.verdict.examples) == (None, 2)


def test_prices_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    known = price_of(dspy.LM("openai/gpt-4o-mini"))
    assert known is not None
    assert known.of(1_000_000, 0) == pytest.approx(0.15)
    assert known.of(0, 1_000_000) == pytest.approx(0.60)
    assert price_of(dspy.LM("openai/a-model-of-nobody")) is None
    tuned = price_of(dspy.LM("openai/ft:gpt-4.1-mini-2025-04-14:an-organisation::AbC123"))
    assert tuned == price_of(dspy.LM("openai/ft:gpt-4.1-mini-2025-04-14"))
    assert tuned is not None
    program = dspy.Predict("question -> answer")
    program.set_lm(dspy.LM("openai/gpt-4o-mini"))
    examples = [dspy.Example(question="why?" * 1000, answer="so").with_inputs("question")] * 100
    (stage,) = plan_stages(program, "teacher", examples)
    assert stage.calls == 100
    assert stage.usd is not None
    assert 0.015 < stage.usd < 0.03  # 100 prompts of 1,000 tokens and more, at 0.15 USD a million
