"""dspyc runs, on run folders that real bootstraps wrote."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import dspyc as library
from dspyc.cli import app
from dspyc.compiler import Ledger, bootstrap, observe
from tests.optimizers import desk


def dspyc(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["runs", *arguments])


def wrong(inputs: dict[str, str]) -> dict[str, object]:
    return {"colour": "red"} if "thing" in inputs else {"total": 2}


def record(folder: Path, examples: int, answer: object = desk.expert) -> None:
    program = desk.Desk()
    program.set_lm(library.ScriptedLM(answer))
    with Ledger(folder) as ledger:
        subject = observe(program, "teacher", identity="x")
        bootstrap(subject, desk.examples(examples), metric=desk.metric, ledger=ledger)
        ledger.record_candidate("c1", 0.5, {"demos": 3})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$DSPYC_HOME with two runs; the second has two examples more, and other answers."""
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path))
    record(tmp_path / "runs" / "first", 4)
    record(tmp_path / "runs" / "second", 6, wrong)
    return tmp_path


def test_list_shows_every_run_and_what_is_wrong_with_one(home: Path) -> None:
    broken = home / "runs" / "broken"
    broken.mkdir()
    (broken / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    found = json.loads(dspyc("list", "--json").stdout)["runs"]
    assert [Path(facts["run_dir"]).name for facts in found] == ["second", "first", "broken"]
    assert found[1]["calls"]["teacher"]["calls"] == 12
    assert "not a database" in found[2]["problem"]
    assert all(name in dspyc("list").stdout for name in ("first", "second"))
    assert json.loads(dspyc("list", str(home / "elsewhere"), "--json").stdout) == {"runs": []}


def test_show_reads_a_run_that_is_going_on(home: Path) -> None:
    with Ledger(home / "runs" / "first") as ledger:
        ledger.event("compile")
        facts = json.loads(dspyc("show", "first", "--json").stdout)
        assert facts["calls"]["teacher"]["calls"] == 12
        assert facts["traces"]["teacher"] == {"traces": 4, "failed": 0, "score": 1.0}
        assert facts["candidates"] == [{"id": "c1", "score": 0.5, "demos": 3}]
        assert facts["finished"] is False
    said = dspyc("show", str(home / "runs" / "first")).stdout
    assert "teacher" in said
    assert "1.000" in said
    assert "Not finished" in said


def test_show_lists_why_runs_failed_the_most_frequent_first(tmp_path: Path) -> None:
    def failing(inputs: dict[str, str]) -> dict[str, object]:
        if "thing" in inputs and inputs["thing"].endswith("0"):
            raise ValueError("no colour for this one")
        raise KeyError("lost")

    record(tmp_path / "run", 4, failing)
    found = json.loads(dspyc("show", str(tmp_path / "run"), "--json").stdout)["failures"]
    assert [(failure["role"], failure["traces"]) for failure in found] == [("teacher", 3), ("teacher", 1)]
    said = dspyc("show", str(tmp_path / "run")).stdout
    assert f"3 × teacher: {found[0]['error']}" in said
    assert "lost" in found[0]["error"]
    assert f"1 × teacher: {found[1]['error']}" in said
    assert "no colour for this one" in found[1]["error"]
    assert library.compiler.read_run(str(tmp_path / "run")).failures() == found


def test_read_run_takes_the_names_that_list_shows(home: Path) -> None:
    (named,) = [
        run for run in json.loads(dspyc("list", "--json").stdout)["runs"] if Path(run["run_dir"]).name == "first"
    ]
    for run in ("first", named["run_dir"], home / "runs" / "first"):
        assert library.compiler.read_run(run).summary()["calls"] == named["calls"]
    with pytest.raises(library.LedgerError, match="There is no run at third"):
        library.compiler.read_run("third")


def test_list_looks_in_the_folder_that_it_is_given(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "here" / "first", 1)  # of the name of a run under $DSPYC_HOME
    monkeypatch.chdir(tmp_path / "here")
    (found,) = json.loads(dspyc("list", ".", "--json").stdout)["runs"]
    assert found["traces"]["teacher"]["traces"] == 1


def test_diff_names_what_is_shared_and_whose_outcome_differs(home: Path) -> None:
    found = json.loads(dspyc("diff", "first", "second", "--json").stdout)
    assert found["traces"] == {"both": 4, "first": 0, "second": 2}
    assert found["calls"]["both"] + found["calls"]["second"] == 18
    assert [change["scores"] for change in found["changed"]] == [[1.0, 0.0]] * 4
    assert dspyc("diff", "first", "first").stdout.count("→") == 0
    assert dspyc("diff", "first", "second").stdout.count("→") == 4


def test_export_writes_what_load_traces_reads(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "traces" / "teacher.jsonl"
    result = dspyc("export", "first", "--out", str(out), "--role", "teacher", "--json")
    assert json.loads(result.stdout) == {"traces": 4, "out": str(out)}
    assert [trace.score for trace in library.load_traces(out)] == [1.0] * 4


def test_export_explains_what_it_cannot_do_and_leaves_the_file_that_was_there(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "traces.jsonl"
    out.write_text("kept")
    result = dspyc("export", "first", "--out", str(out), "--role", "nobody")
    assert result.exit_code == 1
    assert "no traces of 'nobody'" in result.stderr
    assert "teacher" in result.stderr
    result = dspyc("export", "first", "--out", str(out / "below" / "a_file.jsonl"))
    assert result.exit_code == 1
    assert "cannot be written to" in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert out.read_text() == "kept"


def test_what_is_shown_as_json_is_json(home: Path) -> None:
    with Ledger(home / "runs" / "first") as ledger:  # as earlier versions wrote it
        ledger.record_candidate("c1", 0.5, {"interval": [float("-inf"), float("inf")], "odd": [float("nan"), 1.5]})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    facts = json.loads(dspyc("show", "first", "--json").stdout, parse_constant=refuse)
    assert facts["candidates"] == [{"id": "c1", "score": 0.5, "interval": [None, None], "odd": [None, 1.5]}]


def test_names_with_brackets_are_shown_as_they_are(home: Path) -> None:
    record(home / "runs" / "[third]", 1)
    assert "[third]" in dspyc("list").stdout
    assert "[third]" in dspyc("show", "[third]").stdout


def test_mistakes_are_explained(home: Path) -> None:
    for arguments in (["show", "third"], ["diff", "first", "third"], ["export", "third", "--out", "x.jsonl"]):
        result = dspyc(*arguments)
        assert result.exit_code == 1
        assert "There is no run at third" in result.stderr
        assert "dspyc runs list" in result.stderr
