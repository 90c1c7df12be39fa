"""Steps by optimizers that keep no record: a compile that goes on takes what they made, and runs them again where it cannot."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import Teleprompter

import dspyc
from dspyc.signatures import program_fingerprint
from tests.optimizers.test_better_together import Counts, Fail, Learn, answer, counter, numbers, right, together

DATA: dict[str, Any] = {"trainset": numbers(40), "valset": numbers(8)}


def test_a_compile_that_goes_on_pays_for_no_finished_step_again(tmp_path: Path) -> None:
    def sequence(folder: Path, last: Teleprompter) -> tuple[Learn, Any]:
        first = Learn(+1)
        try:
            return first, together(p=first, f=last).compile(counter(), **DATA, strategy="p -> f", run_dir=folder)
        except RuntimeError:
            return first, None

    stopped, _ = sequence(tmp_path / "stopped", Fail())
    last = Learn(+1)
    again, compiled = sequence(tmp_path / "stopped", last)
    assert len(stopped.given) == 1
    assert again.given == []
    assert [given["known"] for given in last.given] == [3]
    assert len(compiled.count.demos) == 4
    assert compiled.count.lm is not None
    _, whole = sequence(tmp_path / "whole", Learn(+1))
    assert [step.score for step in compiled.report.steps] == [step.score for step in whole.report.steps]


def runs(folder: str) -> int:
    """How many steps a compile in a folder ran, of two."""
    learn = Learn(+1)
    together(p=learn).compile(
        counter(),
        **DATA,
        strategy="p -> p",
        optimizer_compile_args={"p": {"note": "x"}},
        teacher=counter(4),
        run_dir=folder,
    )
    return len(learn.given)


PRINT = "import sys; from tests.optimizers.test_kept_steps import runs; print(runs(sys.argv[1]))"


def test_so_does_another_process(tmp_path: Path) -> None:
    assert runs(str(tmp_path)) == 2
    code, environment = [sys.executable, "-c", PRINT, str(tmp_path)], {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) == 0


class Careful(Learn):
    def compile(self, student: dspy.Module, *, trainset: Any, teacher: Any = None, note: str = "") -> dspy.Module:
        return super().compile(student, trainset=trainset, teacher=teacher, note="careful")


class Judged(Learn):
    def __init__(self, metric: Any) -> None:
        super().__init__(+1)
        self.metric = metric


class Ruled(Learn):
    def __init__(self, rules: list[str]) -> None:
        super().__init__(+1)
        self._rules = rules


def instructed() -> Counts:
    program = counter()
    program.count.signature = program.count.signature.with_instructions("Count.")
    return program


@pytest.mark.parametrize(
    ("optimizer", "changed"),
    [
        (lambda: Learn(+2), {}),
        (lambda: Careful(+1), {}),
        (lambda: Ruled(["long"]), {}),
        (lambda: Judged(right), {}),
        (lambda: Judged(lambda example, prediction, trace=None: False), {}),
        (lambda: Learn(+1), {"trainset": numbers(41)}),
        (lambda: Learn(+1), {"seed": 2}),  # another order of the examples
        (lambda: Learn(+1), {"optimizer_compile_args": {"p": {"note": "other"}}}),
        (lambda: Learn(+1), {"teacher": counter(3)}),
        (lambda: Learn(+1), {"student": instructed()}),
    ],
    ids=[
        "a setting",
        "code",
        "a private setting",
        "a metric",
        "another metric",
        "data",
        "order",
        "an argument",
        "a teacher",
        "the student",
    ],
)
def test_a_step_that_is_another_is_run(tmp_path: Path, optimizer: Any, changed: dict[str, Any]) -> None:
    given = {"student": counter(), **DATA, "strategy": "p", "run_dir": tmp_path}
    for _ in range(2):
        together(p=Learn(+1)).compile(**given)
        together(p=Ruled(["short"])).compile(**given)
        together(p=Judged(lambda example, prediction, trace=None: True)).compile(**given)
    for runs in (1, 0):
        other = optimizer()
        together(p=other).compile(**{**given, **changed})
        assert len(other.given) == runs


def close(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    return dspy.Prediction(score=float(pred.number == gold.number), feedback="Count better.")


def test_gepa_is_paid_once(tmp_path: Path) -> None:
    def compiled() -> tuple[int, Any]:
        lm = dspyc.ScriptedLM(lambda inputs: "```\nCount the words.\n```")
        gepa = dspy.GEPA(metric=close, max_metric_calls=30, reflection_lm=lm, track_stats=True)
        few = dspyc.LabeledFewShot(1)
        with dspy.context(lm=dspyc.ScriptedLM(answer)):
            made = together(gepa=gepa, few=few).compile(
                counter(), trainset=numbers(8), valset=numbers(8), strategy="gepa -> few -> gepa", run_dir=tmp_path
            )
        return lm.engine.calls, made

    (paid, first), (again, second) = compiled(), compiled()
    assert paid > 0
    assert again == 0
    programs = [{c["strategy"]: c["program"] for c in made.candidate_programs} for made in (first, second)]
    assert [len(found) for found in programs] == [4, 4]
    for strategy, program in programs[1].items():
        before = programs[0][strategy]
        assert program.count.signature.instructions == before.count.signature.instructions
        assert [dict(demo) for demo in program.count.demos] == [dict(demo) for demo in before.count.demos]
    assert hasattr(programs[0]["gepa"], "detailed_results")


class Moves(Teleprompter):  # type: ignore[misc]
    """An optimizer that changes more than prompts."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.runs = what, []

    def compile(self, student: Any, *, trainset: Any) -> dspy.Module:
        self.runs.append(len(trainset))
        if self.what == "lm":
            student.set_lm(dspyc.ScriptedLM(answer, model="scripted/tuned"))
        elif self.what == "setting":
            student.hint = "count"
        else:
            student.more = dspy.Predict("word -> number: int")
            student.more.lm = student.count.lm
        return student


@pytest.mark.parametrize("what", ["lm", "setting", "predictor"])
def test_a_step_that_changes_more_than_prompts_is_run_again(tmp_path: Path, what: str, caplog: Any) -> None:
    for _ in range(2):
        moves = Moves(what)
        compiled = together(m=moves).compile(counter(), **DATA, strategy="m", run_dir=tmp_path)
        assert len(moves.runs) == 1
        assert compiled.report.steps[1].score is not None
    assert "What this step made is not kept" in caplog.text
    assert not list(tmp_path.glob("step-1-m/*"))


def test_a_kept_program_that_cannot_be_read_is_made_again(tmp_path: Path, caplog: Any) -> None:
    for damage in (None, "{", '{"program": "", "predictors": {}}', None):
        learn = Learn(+1)
        for path in tmp_path.glob("step-1-p/made-*.json"):
            if damage is not None:
                path.write_text(damage)
        compiled = together(p=learn).compile(counter(), **DATA, strategy="p", run_dir=tmp_path)
        assert len(compiled.count.demos) == 3
        assert len(learn.given) == (0 if damage is None and "again" in caplog.text else 1)
    assert caplog.text.count("its step is run again") == 2


class Instructs(Teleprompter):  # type: ignore[misc]
    def compile(self, student: Any, *, trainset: Any) -> dspy.Module:
        student.count.signature = student.count.signature.with_instructions("Count the words.")
        student.count.demos = [dict(example) for example in trainset[:3]]
        return student


class Count(dspy.Signature):  # type: ignore[misc]
    """Count."""

    word: str = dspy.InputField()
    known: str = dspy.InputField()
    number: int = dspy.OutputField(desc="from 1")


def test_what_was_kept_is_the_very_program(tmp_path: Path) -> None:
    student = counter()
    student.count.signature = Count
    made = [together(p=Instructs()).compile(student, **DATA, strategy="p", run_dir=tmp_path) for _ in range(2)]
    for program in made:
        assert program.count.signature.instructions == "Count the words."
        del program.candidate_programs, program.flag_compilation_error_occurred
    assert program_fingerprint(made[0]) == program_fingerprint(made[1]) != program_fingerprint(student)
    assert (Count.instructions, Count.__name__) == ("Count.", "Count")


class Searches(Teleprompter):  # type: ignore[misc]
    """An optimizer of a user's own around one of dspyc, which returns its best so far where a budget ends it."""

    def compile(self, student: Any, *, trainset: Any) -> dspy.Module:
        few = dspyc.BootstrapFewShot(right, max_bootstrapped_demos=4, max_labeled_demos=0, num_threads=1)
        return few.compile(student, trainset=trainset, teacher=counter(4))


def test_a_step_that_a_budget_cut_short_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    found = []
    for calls in (11, 100):
        sequence = together(p=Searches())
        given = {**DATA, "strategy": "p", "run_dir": tmp_path, "budget": dspyc.Budget(calls=calls)}
        compiled = sequence.compile(counter(), **given)
        found.append((compiled.report.stopped, len(list(tmp_path.glob("step-1-p/made-*.json")))))
    assert found[0][1] == 0
    assert found[0][0] is not None
    assert found[1] == (None, 1)


class Idle(Teleprompter):  # type: ignore[misc]
    """An optimizer that returns the program as it was, as some of DSPy's do when all that they ask fails."""

    def compile(self, student: Any, *, trainset: Any) -> dspy.Module:
        return student


def test_a_step_that_had_changed_nothing_is_passed_over_aloud(tmp_path: Path, caplog: Any) -> None:
    for said in (0, 1):
        together(i=Idle()).compile(counter(), **DATA, strategy="i", run_dir=tmp_path)
        assert caplog.text.count("Step i changed nothing when it was taken. To take it again, remove") == said
    (kept,) = tmp_path.glob("step-1-i/made-*.json")
    assert str(kept) in caplog.text
