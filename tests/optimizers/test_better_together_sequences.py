"""BetterTogether: sequences of real optimizers, this library's and DSPy's."""

import json
from pathlib import Path
from typing import Any

import dspy

import dspyc
from dspyc.compiler import Ledger
from dspyc.models.weights import identity
from tests.optimizers import desk
from tests.optimizers.test_better_together import counter, numbers, right


def teacher() -> desk.Desk:
    program = desk.Desk()
    program.set_lm(dspyc.ScriptedLM(desk.expert))
    return program


def weights(**settings: Any) -> dspyc.BootstrapFinetune:
    return dspyc.BootstrapFinetune(
        desk.metric, train_kwargs={**desk.QUICK, **settings}, holdout_fraction=0, show_progress=False
    )


def test_the_strategy_of_the_default_with_the_optimizers_of_the_default(tmp_path: Path) -> None:
    search = dspyc.BootstrapFewShotWithRandomSearch(
        desk.metric, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=1, show_progress=False
    )
    default = dspyc.BetterTogether(desk.metric)
    optimizer = dspyc.BetterTogether(desk.metric, p=search, w=weights())
    assert {name: type(one) for name, one in optimizer.optimizers.items()} == {
        name: type(one) for name, one in default.optimizers.items()
    }
    student, expert = desk.student(), teacher()
    compiled = optimizer.compile(
        student, trainset=desk.examples(10), teacher=expert, valset=desk.examples(2), run_dir=tmp_path
    )
    steps = [step.strategy for step in compiled.report.steps]
    assert steps == ["", "p", "p -> w", "p -> w -> p"]
    made = {candidate["strategy"]: candidate["program"] for candidate in compiled.candidate_programs}
    models = [made[step].name.lm.model for step in steps]
    assert models[0] == models[1] != models[2] == models[3]
    for step in ("step-1-p", "step-3-p"):
        with Ledger(tmp_path / step) as ledger:
            assert ledger.calls().keys() == {"teacher", "candidate"}


def test_weights_that_are_trained_twice_go_on_from_where_they_were(tmp_path: Path) -> None:
    few = dspyc.BootstrapFewShot(desk.metric, max_bootstrapped_demos=1, max_labeled_demos=0, show_progress=False)
    optimizer = dspyc.BetterTogether(desk.metric, w=weights(), p=few)
    data: dict[str, Any] = {"trainset": desk.examples(8), "valset": [], "run_dir": tmp_path}
    compiled = optimizer.compile(desk.student(), teacher=teacher(), strategy="w -> p -> w", **data)
    made = {candidate["strategy"]: candidate["program"] for candidate in compiled.candidate_programs}
    first, last = (made[step].name.lm.engine for step in ("w", "w -> p -> w"))
    assert (first.model, last.model) == ("dspyc/tiny", "dspyc/tiny")
    assert first.model_string != last.model_string == compiled.name.lm.model
    (key,) = (tmp_path / "step-3-w" / "training").glob("*/key.json")
    assert json.loads(key.read_text())["adapter"] == identity(first.adapter)
    again = optimizer.compile(desk.student(), teacher=teacher(), strategy="w -> p -> w", **data)
    assert again.name.lm.model == compiled.name.lm.model


def scored(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    return float(right(gold, pred))


def test_a_teacher_is_not_given_to_optimizers_that_refuse_one(tmp_path: Path) -> None:
    reflection = dspyc.ScriptedLM(lambda _: {"new_instruction": "Count."})
    gepa = dspy.GEPA(scored, max_metric_calls=4, reflection_lm=reflection, num_threads=1)
    data: dict[str, Any] = {"trainset": numbers(4), "valset": numbers(2), "teacher": counter(4)}
    compiled = dspyc.BetterTogether(right, gepa=gepa).compile(counter(), strategy="gepa", run_dir=tmp_path, **data)
    assert [step.strategy for step in compiled.report.steps] == ["", "gepa"]
    assert len(compiled.count.demos) == 2
