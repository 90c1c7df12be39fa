"""The demos chosen are those that DSPy's own classes choose, though the teacher runs on many examples at once."""

import random
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc

from . import few_shot_programs as programs
from .few_shot_programs import PROGRAMS, demos, graded, half, lm, rare, trainset

SETTINGS: list[dict[str, Any]] = [
    {"metric": None},
    {"metric": half},
    {"metric": half, "max_bootstrapped_demos": 8, "max_labeled_demos": 4},
    {"metric": half, "max_bootstrapped_demos": 3, "max_labeled_demos": 0},
    {"metric": half, "max_bootstrapped_demos": 0, "max_labeled_demos": 5},
    {"metric": graded, "metric_threshold": 0.6, "max_bootstrapped_demos": 6},
    {"metric": graded, "max_bootstrapped_demos": 40, "max_labeled_demos": 50},
    {"metric": rare, "max_bootstrapped_demos": 2, "max_rounds": 3, "max_errors": 100},
]


def compiled(
    kind: Any, program: dspy.Module, settings: dict[str, Any], examples: list[dspy.Example], **more: Any
) -> Any:
    with dspy.context(lm=lm()):
        return kind(**settings, **more).compile(program, trainset=examples)


@pytest.mark.parametrize("make", PROGRAMS)
@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_bootstrapped_demos_are_dspys(make: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    examples = trainset()
    random.Random(str(settings.keys())).shuffle(examples)
    theirs = compiled(dspy.BootstrapFewShot, make(), settings, examples)
    ours = compiled(dspyc.BootstrapFewShot, make(), settings, examples, num_threads=7, run_dir=tmp_path)
    assert demos(ours) == demos(theirs)
    assert ours._compiled


def test_some_of_these_choices_are_among_several_calls_and_not_always_the_last(tmp_path: Path) -> None:
    """So that the comparison above has shown something."""
    ours = compiled(
        dspyc.BootstrapFewShot, programs.Hops(), {"max_bootstrapped_demos": 30}, trainset(), run_dir=tmp_path
    )
    chosen = [demo for demo in demos(ours)["hop"] if demo.get("augmented")]
    last = [demo["question"].endswith(f" {programs.draw(demo['question'].split()[0]) % 4}") for demo in chosen]
    assert any(last)
    assert not all(last)
    assert {demo["style"] for demo in chosen} == {"short"}


@pytest.mark.parametrize("teacher_is_compiled", [False, True])
@pytest.mark.parametrize("labels", [0, 6])
def test_a_teacher_of_its_own_gives_dspys_demos(teacher_is_compiled: bool, labels: int, tmp_path: Path) -> None:
    examples = trainset()

    def run(kind: Any, **more: Any) -> Any:
        teacher = programs.Hops()
        teacher.hop.demos = [dspy.Example(context=[], question="shown", answer="x")]
        teacher._compiled = teacher_is_compiled
        settings = {"metric": half, "max_labeled_demos": labels, "teacher_settings": {"lm": lm()}}
        return kind(**settings, **more).compile(programs.Hops(), teacher=teacher, trainset=examples)

    assert demos(run(dspyc.BootstrapFewShot, run_dir=tmp_path)) == demos(run(dspy.BootstrapFewShot))


def prompts_seen(kind: Any, tmp_path: Path | None) -> set[str]:
    """Every prompt that a teacher with labelled demos is sent."""
    seen: set[str] = set()

    class Listener(dspy.utils.callback.BaseCallback):  # type: ignore[misc]
        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            seen.add(repr(inputs["messages"]))

    more: dict[str, Any] = {"run_dir": tmp_path, "num_threads": 8} if tmp_path else {}
    with dspy.context(lm=lm(), callbacks=[Listener()]):
        settings = {"metric": half, "max_bootstrapped_demos": 100, "max_labeled_demos": 12}
        kind(**settings, **more).compile(programs.Answer(), trainset=trainset())
    return seen


def test_the_teacher_reads_the_prompts_that_dspys_reads_and_never_its_own_example(tmp_path: Path) -> None:
    """Runs go on at once on one teacher, and each leaves another example out of its demos."""
    ours = prompts_seen(dspyc.BootstrapFewShot, tmp_path)
    assert ours == prompts_seen(dspy.BootstrapFewShot, None)
    lengths = {prompt.count("[[ ## question ## ]]") for prompt in ours}
    assert len(lengths) > 1  # those whose example was drawn show fewer


@pytest.mark.parametrize("make", PROGRAMS)
@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("k", [0, 5, 100])
def test_labelled_demos_are_dspys(make: Any, sample: bool, k: int) -> None:
    examples = trainset()
    theirs = dspy.LabeledFewShot(k).compile(make(), trainset=examples, sample=sample)
    ours = dspyc.LabeledFewShot(k).compile(make(), trainset=examples, sample=sample)
    assert demos(ours) == demos(theirs)


def test_dspys_arguments_are_taken_by_place() -> None:
    ours = dspyc.BootstrapFewShot(half, 0.5, {"lm": lm()}, 3, 5, 2, 7)
    theirs = dspy.BootstrapFewShot(half, 0.5, ours.teacher_settings, 3, 5, 2, 7)
    names = ("metric", "metric_threshold", "teacher_settings", "max_bootstrapped_demos", "max_labeled_demos")
    for name in (*names, "max_rounds", "max_errors"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert isinstance(ours, dspy.teleprompt.Teleprompter)
    assert isinstance(dspyc.LabeledFewShot(), dspy.teleprompt.Teleprompter)
