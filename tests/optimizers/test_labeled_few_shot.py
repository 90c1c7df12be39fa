"""LabeledFewShot beside DSPy's (`test_few_shot_parity.py`): what it gives is a compiled program like any other."""

import json
from pathlib import Path

import dspy

import dspyc
from dspyc.compiler import CompileReport

from .desk import Desk, expert
from .simulated import questions, simulated_lm

TRAIN = questions(0, 20)


def adder() -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    program.set_lm(simulated_lm())
    return program


def test_it_is_saved_as_an_artifact_with_a_report_that_says_what_was_done(tmp_path: Path) -> None:
    compiled = dspyc.LabeledFewShot(3, seed=5).compile(adder(), trainset=TRAIN)
    report = compiled.report
    assert (report.verdict, report.calls, report.run_dir, report.seed) == (None, {}, "", 5)
    assert report.dataset == {"demos": {"self": 3}}
    (row,) = zip(*(column.cells for column in report.table().columns), strict=True)
    assert row == ("demos of `self`", "3")
    compiled.lm = None  # an engine of Python code is in no file
    compiled.save(tmp_path / "built")
    loaded = dspyc.load(tmp_path / "built")
    assert [dict(demo) for demo in loaded.demos] == [dict(demo) for demo in compiled.demos]
    assert isinstance(loaded.report, CompileReport)
    assert loaded.report == report
    assert "Seed 5" in (tmp_path / "built" / "README.md").read_text()


def test_dspys_own_save_goes_on_working(tmp_path: Path) -> None:
    compiled = dspyc.LabeledFewShot(3).compile(adder(), trainset=TRAIN)
    compiled.lm = None
    compiled.save(tmp_path / "state.json")
    plain = dspy.Predict("question -> answer")
    plain.load(tmp_path / "state.json")
    assert [dict(demo) for demo in plain.demos] == [dict(demo) for demo in compiled.demos]


def test_the_fingerprint_is_of_the_examples_whether_or_not_their_inputs_are_named() -> None:
    program = Desk()
    program.set_lm(dspyc.ScriptedLM(expert))
    unnamed = [dspy.Example(thing="a red hat", colour="red"), dspy.Example(thing="a blue hat", colour="blue")]
    named = [dspyc.LabeledFewShot(2).compile(program, trainset=rows).report for rows in (unnamed, unnamed[:1])]
    assert named[0].fingerprints["data"] != named[1].fingerprints["data"]
    assert named[0].fingerprints["student"] == named[1].fingerprints["student"]
    assert json.loads(json.dumps(named[0].to_dict()))["plan"]["calls"] == 0
