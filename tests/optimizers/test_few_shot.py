"""What BootstrapFewShot and LabeledFewShot do beyond DSPy's: concurrency, resuming, bad input, and the caller's objects.

Every row of the field notes' list of what DSPy 3.4.1's BootstrapFewShot gets wrong is a test here.
"""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

import dspyc
from dspyc.compiler import Ledger
from dspyc.compiler.budget import Budget
from dspyc.compiler.pool import Pool
from dspyc.errors import BootstrapError, BudgetError, ConfigError, DataError, ProgramError
from dspyc.optimizers.demonstrate import Sizes, demonstrate
from dspyc.optimizers.teachers import demo_teacher

from . import desk
from . import few_shot_programs as programs
from .few_shot_programs import demos, trainset


def question() -> dspy.Module:
    return dspy.Predict("question -> answer")


def echo(inputs: dict[str, str]) -> dict[str, str]:
    return {"answer": inputs["question"]}


def scripted(answer: Any = echo, name: str = "teacher") -> dspy.LM:
    return dspyc.ScriptedLM(answer, model=f"scripted/{name}")


def examples(number: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"q{i}", answer=f"q{i}").with_inputs("question") for i in range(number)]


def exact(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer)


def bootstrap(tmp_path: Path, **settings: Any) -> dspyc.BootstrapFewShot:
    return dspyc.BootstrapFewShot(**{"metric": exact, "run_dir": tmp_path, "num_threads": 4, **settings})


# ------------------------------------------------------------------------------------------- whose language model, whose demos


def test_an_output_that_the_student_could_never_write_is_refused_before_any_teacher_call(tmp_path: Path) -> None:
    student, given = dspy.Predict("question -> answer: Literal['one\\ntwo', 'three']"), scripted()
    student.lm = dspyc.LocalLM("dspyc/tiny")
    with pytest.raises(ConfigError, match="Predictor `self`: Output `answer`"):
        bootstrap(tmp_path, teacher_settings={"lm": given}).compile(student, trainset=examples(3))
    assert given.engine.calls == 0


def test_a_teachers_own_lm_is_kept_beside_labelled_demos(tmp_path: Path) -> None:
    own, given, everywhere = scripted(name="own"), scripted(name="given"), scripted(name="global")
    teacher = question()
    teacher.lm = own
    with dspy.context(lm=everywhere):
        bootstrap(tmp_path, teacher_settings={"lm": given}).compile(question(), teacher=teacher, trainset=examples(5))
    assert (own.engine.calls, given.engine.calls, everywhere.engine.calls) == (4, 0, 0)


def test_without_a_teacher_the_students_program_is_run_by_the_lm_of_teacher_settings(tmp_path: Path) -> None:
    student, mine, given = question(), scripted(name="mine"), scripted(name="given")
    student.lm = mine
    bootstrap(tmp_path, teacher_settings={"lm": given}).compile(student, trainset=examples(5))
    assert (mine.engine.calls, given.engine.calls) == (0, 4)


def test_teacher_settings_hold_in_every_run(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Asks(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.answer = question()

        def forward(self, question: str) -> Any:
            seen.append(dspy.settings.get("shelf"))
            return self.answer(question=question)

    settings = {"lm": scripted(), "shelf": "books", "adapter": dspy.JSONAdapter()}
    with pytest.raises(BootstrapError):  # the teacher was asked for JSON, and its script answers in fields
        bootstrap(tmp_path, teacher_settings=settings).compile(Asks(), trainset=examples(3))
    assert set(seen) == {"books"}


def test_the_student_keeps_its_lm(tmp_path: Path) -> None:
    student, lm = programs.Hops(), programs.lm()
    student.set_lm(lm)
    for optimizer in (bootstrap(tmp_path, metric=None), dspyc.LabeledFewShot(4)):
        compiled = optimizer.compile(student, trainset=trainset())
        assert compiled.hop.lm is lm
        assert compiled.close.lm is lm
        assert len(compiled.hop.demos) >= 4


def test_student_teacher_and_examples_are_not_changed_though_the_teacher_fails(tmp_path: Path) -> None:
    student, teacher, train = programs.Hops(), programs.Hops(), trainset(6)
    shown = [dspy.Example(context=[], question="shown", answer="x"), train[0]]
    student.hop.demos, teacher.hop.demos = list(shown), list(shown)
    teacher._compiled = True
    teacher.set_lm(scripted(lambda inputs: 1 / 0))
    before = [dict(e.items()) for e in train]
    with pytest.raises(BootstrapError, match="division by zero"):
        bootstrap(tmp_path, max_errors=2).compile(student, teacher=teacher, trainset=train)
    assert student.hop.demos == shown
    assert teacher.hop.demos == shown
    assert type(teacher.hop) is dspy.Predict
    assert student.hop.lm is None
    assert [dict(e.items()) for e in train] == before
    teacher.set_lm(programs.lm())
    compiled = bootstrap(tmp_path, metric=None).compile(student, teacher=teacher, trainset=train)
    for demo in compiled.hop.demos:
        demo["answer"] = "changed"
    assert [dict(e.items()) for e in train] == before
    assert teacher.hop.demos == shown


def test_a_demo_shows_what_its_predictor_was_given_though_the_program_changed_it_since(tmp_path: Path) -> None:
    class Grows(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.step = dspy.Predict("notes: list[str], question -> answer")

        def forward(self, question: str) -> Any:
            notes: list[str] = []
            found = self.step(notes=notes, question=question)
            notes.append(f"the answer is {found.answer}")
            return found

    compiled = bootstrap(tmp_path, teacher_settings={"lm": scripted()}).compile(Grows(), trainset=examples(3))
    assert [demo.notes for demo in compiled.step.demos] == [[], [], []]


# ------------------------------------------------------------------------------------------------------------- which runs count


def test_a_threshold_of_zero_is_a_threshold(tmp_path: Path) -> None:
    def score(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        return float(int(example.question[1:]) - 2)  # q0 and q1 are below 0, q2 is 0

    def taught(**settings: Any) -> list[str]:
        folder = tmp_path / str(settings)
        settings |= {"metric": score, "max_bootstrapped_demos": 2, "max_labeled_demos": 0}
        compiled = bootstrap(folder, teacher_settings={"lm": scripted()}, **settings)
        return [d.question for d in compiled.compile(question(), trainset=examples(6)).demos]

    assert taught(metric_threshold=0) == ["q2", "q3"]
    assert taught(metric_threshold=-1) == ["q1", "q2"]
    assert taught() == ["q3", "q4"]


def test_the_metric_gets_the_trace(tmp_path: Path) -> None:
    lengths: list[int] = []

    def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
        lengths.append(len(trace))
        return True

    bootstrap(tmp_path, metric=metric, teacher_settings={"lm": scripted()}).compile(question(), trainset=examples(2))
    assert lengths == [1, 1]


def test_a_second_round_asks_anew_at_temperature_one_though_the_teacher_has_its_own_lm(tmp_path: Path) -> None:
    asked: list[Any] = []

    class Listener(dspy.utils.callback.BaseCallback):  # type: ignore[misc]
        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            asked.append((instance.kwargs.get("rollout_id"), instance.kwargs.get("temperature")))

    teacher, replies = question(), iter(["wrong", "wrong", "q0"])
    teacher.lm = scripted(lambda inputs: {"answer": next(replies)})
    with dspy.context(callbacks=[Listener()]):
        compiled = bootstrap(tmp_path, max_rounds=4).compile(question(), teacher=teacher, trainset=examples(1))
    assert asked == [(None, None), (1, 1.0), (2, 1.0)]
    assert [demo.answer for demo in compiled.demos] == ["q0"]
    assert teacher.lm.kwargs.get("temperature") is None


@pytest.mark.parametrize(
    ("answer", "shown"),
    [("good", "'good'"), (None, "None"), (float("nan"), "nan"), (ValueError("no label"), "no label")],
    ids=str,
)
def test_a_metric_that_gives_no_score_is_an_event_and_then_an_error(answer: Any, shown: str, tmp_path: Path) -> None:
    def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> Any:
        if example.question in ("q0", "q1"):
            if isinstance(answer, Exception):
                raise answer
            return answer
        return True

    optimizer = bootstrap(tmp_path, metric=metric, teacher_settings={"lm": scripted()}, max_bootstrapped_demos=2)
    compiled = optimizer.compile(question(), trainset=examples(5))
    assert [d.question for d in compiled.demos[:2]] == ["q2", "q3"]
    with Ledger(tmp_path) as ledger:
        events = ledger.events("bad example")
    assert [shown in event["error"] for event in events] == [True, True]
    optimizer.max_errors = 2
    with pytest.raises(BootstrapError, match="metric raised"):
        optimizer.compile(question(), trainset=examples(5))


@pytest.mark.parametrize("score", [np.float32(1), np.bool_(True), np.int64(1), 1, dspy.Prediction(score=0.5)], ids=repr)
def test_scores_of_any_number_type_count(score: Any, tmp_path: Path) -> None:
    optimizer = bootstrap(tmp_path, metric=lambda *_: score, teacher_settings={"lm": scripted()})
    assert len(optimizer.compile(question(), trainset=examples(3)).demos) == 3


def test_no_good_run_is_an_error_that_shows_three_and_says_what_to_try(tmp_path: Path) -> None:
    def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        if example.question == "q1":
            raise KeyError("colour")
        return 0.0

    with pytest.raises(BootstrapError) as caught:
        bootstrap(tmp_path, metric=metric, teacher_settings={"lm": scripted()}).compile(
            question(), trainset=examples(9)
        )
    text = str(caught.value)
    assert "on 9 examples" in text
    assert "'q0'" in text
    assert "scored 0 with {'answer': 'q0'}, labels {'answer': 'q0'}" in text
    assert "metric raised KeyError: 'colour'" in text
    assert "'q2'" in text
    assert "'q3'" not in text
    assert "teacher_settings" in caught.value.hint


def test_an_example_that_lacks_a_field_is_an_event(tmp_path: Path) -> None:
    train = [
        dspy.Example(topic="none").with_inputs("topic"),
        dspy.Example(question="q").with_inputs("question"),
        *examples(2),
    ]
    program = programs.Answer()
    optimizer = bootstrap(tmp_path, teacher_settings={"lm": scripted(lambda i: {"reasoning": "", **echo(i)})})
    compiled = optimizer.compile(program, trainset=train)
    assert [d.question for d in demos_of(compiled) if "augmented" in d] == ["q0", "q1"]
    with Ledger(tmp_path) as ledger:
        assert (
            len(ledger.events("bad example")) == 2
        )  # `topic` is no argument of the program; `q` has no answer to compare


def demos_of(compiled: Any) -> list[Any]:
    return list(compiled.answer.predict.demos)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"metric": "exact"}, ConfigError),
        ({"max_rounds": 0}, ConfigError),
        ({"max_bootstrapped_demos": -1}, ConfigError),
        ({"max_labeled_demos": 2.5}, ConfigError),
        ({"max_errors": 0}, ConfigError),
        ({"fit_context": 0}, ConfigError),
    ],
    ids=str,
)
def test_settings_are_checked_at_once(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        dspyc.BootstrapFewShot(**wrong)


def test_programs_that_cannot_teach_or_learn_are_refused(tmp_path: Path) -> None:
    optimizer = bootstrap(tmp_path, teacher_settings={"lm": scripted()})
    compiled = optimizer.compile(question(), trainset=examples(3))
    with pytest.raises(ProgramError, match="compiled already"):
        optimizer.compile(compiled, trainset=examples(3))
    with pytest.raises(ProgramError, match="answer"):
        optimizer.compile(question(), teacher=dspy.Predict("question -> reply"), trainset=examples(3))
    with pytest.raises(ProgramError, match="Teacher 0 is a list"):
        optimizer.compile(question(), teacher=[question()], trainset=examples(3))  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="no language model"):
        bootstrap(tmp_path).compile(question(), trainset=examples(3))
    with pytest.raises(DataError, match="is empty"):
        optimizer.compile(question(), trainset=[])
    with pytest.raises(DataError, match="inputs"):
        optimizer.compile(question(), trainset=[dspy.Example(question="q")])


def test_labelled_demos_need_no_inputs_and_no_examples() -> None:
    assert dspyc.LabeledFewShot(3).compile(question(), trainset=[]).demos == []
    assert len(dspyc.LabeledFewShot(3).compile(question(), trainset=[dspy.Example(question="q")]).demos) == 1
    with pytest.raises(DataError):
        dspyc.LabeledFewShot(3).compile(question(), trainset=["q"])  # type: ignore[list-item]


def test_a_seed_draws_other_labelled_demos(tmp_path: Path) -> None:
    drawn = [demos(dspyc.LabeledFewShot(3, seed=seed).compile(question(), trainset=examples(20))) for seed in (0, 1, 1)]
    assert drawn[0] != drawn[1] == drawn[2]


# ------------------------------------------------------------------------------------------------------------ at once, and once


def test_runs_that_are_needed_for_sure_go_on_at_once_and_none_is_wasted(tmp_path: Path) -> None:
    """The barrier opens only if all eight runs are under way together."""
    together = threading.Barrier(8, timeout=60)

    def answer(inputs: dict[str, str]) -> dict[str, str]:
        together.wait()
        return echo(inputs)

    lm = scripted(answer)
    optimizer = bootstrap(tmp_path, teacher_settings={"lm": lm}, max_bootstrapped_demos=8, num_threads=32)
    compiled = optimizer.compile(question(), trainset=examples(50))
    assert lm.engine.calls == 8
    assert [d.question for d in compiled.demos[:8]] == [f"q{i}" for i in range(8)]


def test_where_runs_fail_fewer_examples_than_threads_are_run_beyond_those_needed(tmp_path: Path) -> None:
    lm = scripted(lambda inputs: {"answer": inputs["question"] if int(inputs["question"][1:]) % 10 == 9 else "wrong"})
    optimizer = bootstrap(tmp_path, teacher_settings={"lm": lm}, max_bootstrapped_demos=3, num_threads=8)
    compiled = optimizer.compile(question(), trainset=examples(200))
    assert [d.question for d in compiled.demos[:3]] == ["q9", "q19", "q29"]
    assert compiled.report.dataset["runs"] == 30
    assert 30 <= lm.engine.calls < 30 + 8


def test_a_slow_first_example_does_not_hold_up_those_that_are_needed(tmp_path: Path) -> None:
    others = threading.Semaphore(0)

    def answer(inputs: dict[str, str]) -> dict[str, str]:
        if inputs["question"] == "q0":
            for _ in range(11):
                assert others.acquire(timeout=60)
        else:
            others.release()
        return echo(inputs)

    optimizer = bootstrap(tmp_path, teacher_settings={"lm": scripted(answer)}, max_bootstrapped_demos=12, num_threads=2)
    compiled = optimizer.compile(question(), trainset=examples(12))
    assert [d.question for d in compiled.demos[:12]] == [f"q{i}" for i in range(12)]


def test_a_run_that_several_candidates_need_is_paid_for_once(tmp_path: Path) -> None:
    """Candidates in threads over one open pool, as a search makes them, each with its own order of the examples."""
    lm = scripted()
    teacher = demo_teacher(question(), None, {"lm": lm})
    train, made = examples(12), {}
    with Ledger(tmp_path) as ledger, Pool(ledger, metric=exact, num_threads=4) as pool:

        def candidate(size: int) -> None:
            order = train[size:] + train[:size]
            made[size] = demonstrate(question(), teacher, order, pool=pool, sizes=Sizes(size, 0)).program

        threads = [threading.Thread(target=candidate, args=(size,)) for size in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert lm.engine.calls == 12
    assert [d.question for d in made[5].demos] == [f"q{i}" for i in range(5, 10)]


def test_a_budget_ends_the_search_with_the_demos_that_it_paid_for(tmp_path: Path) -> None:
    lm = scripted()
    settings = {"teacher_settings": {"lm": lm}, "max_bootstrapped_demos": 10, "max_labeled_demos": 0, "num_threads": 3}
    compiled = bootstrap(tmp_path, budget=Budget(calls=4), **settings).compile(question(), trainset=examples(20))
    assert lm.engine.calls == 4
    assert len(compiled.demos) == 4
    assert compiled.report.dataset["budget_spent"] == "4 calls"
    whole = bootstrap(tmp_path, **settings).compile(question(), trainset=examples(20))
    assert lm.engine.calls == 10
    assert len(whole.demos) == 10
    assert whole.report.dataset["budget_spent"] is None
    with pytest.raises(BudgetError):
        bootstrap(tmp_path / "new", budget=Budget(usd=1), **settings).compile(question(), trainset=examples(5))


COMPILE = """
import json, sys
from pathlib import Path
import dspy, dspyc
from tests.optimizers import desk
from tests.optimizers import few_shot_programs as programs

folder, die_at, threads = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
lm = dspyc.ScriptedLM(desk.LoggedExpert(folder / "answers.log", die_at))
optimizer = dspyc.BootstrapFewShot(
    desk.metric, teacher_settings={"lm": lm}, run_dir=folder / "run", num_threads=threads, max_bootstrapped_demos=8
)
compiled = optimizer.compile(desk.Desk(), trainset=desk.examples(10))
demos = programs.demos(compiled)
print(json.dumps({"answered": lm.engine.calls, "replayed": compiled.report.replayed, "demos": demos}))
"""


def test_a_killed_compile_resumes_with_no_call_repeated(tmp_path: Path) -> None:
    def start(die_at: int | None) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", COMPILE, str(tmp_path), json.dumps(die_at), "1"]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert start(10).returncode == -signal.SIGKILL
    resumed = start(None)
    assert resumed.returncode == 0, resumed.stderr
    result = json.loads(resumed.stdout.splitlines()[-1])
    assert (result["answered"], result["replayed"]) == (14, 10)  # eight examples, three calls each
    optimizer = dspyc.BootstrapFewShot(
        desk.metric,
        teacher_settings={"lm": scripted(desk.expert)},
        run_dir=tmp_path / "whole",
        max_bootstrapped_demos=8,
    )
    assert result["demos"] == demos(optimizer.compile(desk.Desk(), trainset=desk.examples(10)))


# ------------------------------------------------------------------------------------------------------------------ the result


def test_the_result_saves_and_loads_with_its_demos(tmp_path: Path) -> None:
    compiled = bootstrap(tmp_path / "run", teacher_settings={"lm": scripted()}).compile(
        question(), trainset=examples(9)
    )
    assert compiled.report.calls == {"teacher": 4}
    assert compiled.report.dataset["demos"] == {"self": 9}
    compiled.save(tmp_path / "saved")
    assert demos(dspyc.load(tmp_path / "saved")) == demos(compiled)
    compiled.save(tmp_path / "state.json")
    plain = question()
    plain.load(tmp_path / "state.json")
    assert [dict(d) for d in plain.demos] == demos(compiled)["self"]
