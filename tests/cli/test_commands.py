"""The commands themselves, run as a user runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import dspy
import pytest
from typer.testing import Result

from dspyc.cli.loading import load_program, read_records
from dspyc.compiler import load, save
from dspyc.errors import ArtifactError

from ..providers.openai_server import KEY, OpenAIServer
from ..test_rooms import HEAVY
from .commands import QUICK, compile_shop, dspyc, last_object

ROOT = Path(__file__).parent.parent.parent


def test_version() -> None:
    result = dspyc("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"dspyc \d+\.\d+\.\d+\n", result.stdout)


def test_help_loads_nothing_heavy() -> None:
    heavy = {"dspy", *HEAVY} - {"rich"}  # which draws it
    script = f"import sys, dspyc.cli as c; c.app(['--help'], standalone_mode=False); print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "compile" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere", "--input", "{}"], "no artifact at nowhere"),
        (["run", "nowhere", "--input", "{thing}"], "--input is not JSON"),
        (["eval", "nowhere", "--devset", "train.jsonl", "--metric", "shop.py:nothing"], "has no 'nothing'"),
        (["compile", "shop.py:program", "--trainset", "train.jsonl", "--out", "x"], "no language model to train"),
        (["compile", "shop.py:program", "--trainset", "none.jsonl", "--out", "x"], "none.jsonl cannot be read"),
        (
            ["compile", "shop.py:program", "--trainset", "train.jsonl", "--out", "x", "--student", "./no-folder"],
            "does not exist",
        ),
    ],
)
def test_a_mistake_is_explained_on_stderr_without_a_traceback(shop: Path, arguments: list[str], said: str) -> None:
    result = dspyc(*arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(("given", "variable"), [(["--debug"], ""), ([], "1"), ([], "yes")])
def test_debug_lets_an_error_show_its_traceback(
    shop: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], variable: str
) -> None:
    monkeypatch.setenv("DSPYC_DEBUG", variable)
    result = dspyc(*given, "run", "nowhere", "--input", "{}")
    assert isinstance(result.exception, ArtifactError)  # which leaves the command: Python shows it
    assert "Error:" not in result.stderr
    monkeypatch.setenv("DSPYC_DEBUG", "0")
    assert "Error: There is no artifact at nowhere" in dspyc("run", "nowhere", "--input", "{}").stderr


def test_compile_then_run_then_eval(shop: Path) -> None:
    built = compile_shop("--teacher", "shop.py:teacher", "--json")
    facts = last_object(built)
    assert facts["teacher"] == 1.0
    assert facts["artifact"] == "built"
    assert isinstance(facts["interval"], list)
    assert len(built.stdout.strip().split("\n")) == 1

    wrong = dspyc("run", "built", "--input", '{"thnig": "a red thing"}')
    assert wrong.exit_code == 1
    assert "lacks ['thing'] and has ['thnig']" in wrong.stderr

    # Two steps of training teach nothing reliable, but a constrained student answers with one of the two.
    asked = ("run", "built", "--input", '{"thing": "a red thing"}')
    answer = last_object(dspyc(*asked, "--json"))
    assert answer in ({"colour": "red"}, {"colour": "blue"})
    table = dspyc(*asked)
    assert re.fullmatch(rf"\W*colour\W+{answer['colour']}\W*", table.stdout), table.stdout

    loaded, rows = load("built", load_program("shop.py:Shop")), read_records(Path("train.jsonl"))
    right = sum(loaded(thing=row["thing"]).colour == row["colour"] for row in rows)
    scored = last_object(dspyc("eval", "built", "--devset", "train.jsonl", "--metric", "shop.py:metric", "--json"))
    assert scored == {"score": right / 12, "examples": 12, "failed": 0, "seconds": scored["seconds"]}


def written(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_artifact_is_replaced_only_where_that_is_said(built: Path) -> None:
    first = written(built)
    again = compile_shop("--seed", "1")
    assert again.exit_code == 1
    assert "built holds an artifact already" in again.stderr
    assert "--overwrite" in again.stderr
    assert written(built) == first
    assert not built.with_name("built.run").exists()  # nothing was asked or trained
    assert compile_shop("--overwrite", "--seed", "1", "--run-dir", "kept").exit_code == 0
    assert written(built) != first
    assert Path("kept/ledger.sqlite").exists()
    assert not built.with_name("built.run").exists()


def test_the_folder_that_one_works_in_is_no_place_for_an_artifact(shop: Path) -> None:
    refused = compile_shop("--out", ".")
    assert refused.exit_code == 1
    assert "is the folder that this process works in" in refused.stderr


@pytest.mark.parametrize("thing", ["file", "folder"])
def test_an_out_that_cannot_be_written_is_found_before_anything_is_asked(shop: Path, thing: str) -> None:
    if thing == "folder":
        (shop / "built").mkdir()
        (shop / "built" / "notes.txt").write_text("mine")
    else:
        (shop / "built").write_text("mine")
    for more in ([], ["--overwrite"]):
        refused = compile_shop("--teacher", "shop.py:teacher", *more)
        assert refused.exit_code == 1
        assert "built exists and is not an artifact" in refused.stderr
    assert not (shop / "built.run").exists()


def test_what_is_worse_than_the_student_is_said_refused_or_not_kept(shop: Path) -> None:
    given = ["shop.py:proud", "--trainset", "train.jsonl", "--metric", "shop.py:metric", "--train-kwargs", QUICK]
    given += ["--valset", "train.jsonl", "--run-dir", "run", "--json"]
    refused = dspyc("compile", *given, "--out", "refused", "--on-regression", "raise")
    assert refused.exit_code == 1
    assert "scored 0.000 on 12 held-out examples, the student 1.000" in refused.stderr
    assert not (shop / "refused").exists()

    kept = dspyc("compile", *given, "--out", "kept", "--on-regression", "keep_student")
    facts = last_object(kept)
    assert (facts["outcome"], facts["before"], facts["after"], facts["kept_student"]) == ("worse", 1.0, 0.0, True)
    assert facts["stopped"] is None
    assert "1.000 before, 0.000 after. The artifact holds the student as it was." in " ".join(kept.stderr.split())

    warned = dspyc("compile", *given, "--out", "warned")
    assert last_object(warned)["kept_student"] is False
    assert "Worse than the student" in warned.stderr
    assert "The artifact holds it all the same." in " ".join(warned.stderr.split())


def test_a_plan_is_said_and_nothing_is_asked(shop: Path) -> None:
    planned = compile_shop("--teacher", "openai/gpt-4.1-mini-2025-04-14", "--plan", "--max-usd", "5")
    assert planned.exit_code == 0, planned.stderr
    assert "an estimate, before anything is spent" in planned.stdout
    assert "Training itself is not in it." in planned.stdout
    facts = last_object(compile_shop("--teacher", "openai/gpt-4.1-mini-2025-04-14", "--plan", "--json"))
    assert facts["calls"] == 12
    assert 0 < float(str(facts["usd"])) < 0.1
    assert sorted(path.name for path in shop.iterdir() if path.name != "__pycache__") == ["shop.py", "train.jsonl"]


def test_a_limit_in_usd_holds_for_the_calls_of_a_student_that_is_trained_here(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(request: dict[str, object]) -> str:
        colour = "red" if "a red thing" in str(request["messages"]) else "blue"
        return f"[[ ## colour ## ]]\n{colour}\n\n[[ ## completed ## ]]"

    with OpenAIServer() as server:
        server.reply = reply
        monkeypatch.setenv("SERVER", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        limited = compile_shop("--teacher", "shop.py:paid", "--num-threads", "1", "--max-usd", "0.000001", "--json")
    assert limited.exit_code == 0, limited.stderr
    facts = last_object(limited)
    assert str(facts["stopped"]).endswith("USD of 1e-06")
    assert facts["calls"]["teacher"] == 1  # type: ignore[index]
    assert "Stopped early:" in limited.stderr


def test_a_limit_that_cannot_be_kept_is_refused_before_anything_is_asked(shop: Path) -> None:
    unknown = compile_shop("--teacher", "shop.py:teacher", "--max-usd", "5")
    assert unknown.exit_code == 1
    assert "is unknown, so --max-usd 5 cannot be kept" in unknown.stderr
    nothing = compile_shop("--max-usd", "0")
    assert nothing.exit_code == 1
    assert "--plan" in nothing.stderr
    assert not (shop / "built.run").exists()


def test_labels_teach_where_there_is_no_teacher_and_tables_go_to_stdout(compiled_once: tuple[Path, Result]) -> None:
    said = compiled_once[1].stdout
    assert "student after" in said
    assert re.search(r"Calls: 2 of the student, 2 of the compiled\.", said)
    assert """Next: dspyc run built --input '{"thing": "…"}'""" in said


def test_a_program_that_is_passed_runs_in_the_place_of_the_one_that_was_compiled(built: Path) -> None:
    passed, asked = ("--program", "shop.py:Green"), ("run", "built", "--json", "--input", '{"thing": "a blue thing 3"}')
    assert last_object(dspyc(*asked, *passed)) == {"colour": "green"}
    assert last_object(dspyc(*asked)) != {"colour": "green"}
    scored = ("eval", "built", "--json", "--devset", "train.jsonl", "--metric", "shop.py:metric")
    facts = last_object(dspyc(*scored, *passed))
    assert facts == {"score": 11 / 12, "examples": 12, "failed": 0, "seconds": facts["seconds"]}
    assert last_object(dspyc(*scored))["score"] != 11 / 12


def test_an_input_with_a_default_is_passed_where_a_row_has_it(built: Path) -> None:
    rows = [{"thing": "a", "colour": "green"}, {"thing": "b", "colour": "red", "told": "red"}]
    Path("some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = ("eval", "built", "--json", "--devset", "some.jsonl", "--metric", "shop.py:metric", "--program")
    assert last_object(dspyc(*scored, "shop.py:Told"))["score"] == 1.0
    Path("some.jsonl").write_text(json.dumps(rows[1]) + "\n" + json.dumps({"colour": "red", "told": "red"}) + "\n")
    assert "example 2 has no 'thing'" in dspyc(*scored, "shop.py:Told").stderr


def test_an_answer_that_is_no_prediction_is_told_as_it_is(built: Path) -> None:
    asked = ("run", "built", "--json", "--input", '{"thing": "a blue thing"}', "--program", "shop.py:Bare")
    assert last_object(dspyc(*asked)) == {"answer": "blue"}


def test_what_a_program_raises_is_explained(built: Path) -> None:
    ran = dspyc("run", "built", "--program", "shop.py:Strict", "--input", '{"thing": "a red thing 3"}')
    assert ran.exit_code == 1
    assert "The program raised ValueError: a thing too many\nRun `dspyc --debug run …` to see where." in ran.stderr
    assert isinstance(ran.exception, SystemExit)


def test_eval_says_why_examples_failed_and_nothing_else_where_nobody_looks(shop: Path) -> None:
    program = load_program("shop.py:Strict")
    program.set_lm(dspy.LM("openai/never-asked"))
    save(program, "built")
    command = [sys.executable, "-m", "dspyc", "eval", "built", "--devset", "train.jsonl", "--program", "shop.py:Strict"]
    piped = {"capture_output": True, "text": True, "cwd": shop, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    ran = subprocess.run([*command, "--metric", "shop.py:metric"], **piped)  # type: ignore[call-overload]
    assert ran.stderr == "1 × program raised ValueError: a thing too many\n"
    assert re.fullmatch(r"Score: 0\.917 on 12 examples, 1 of them failed, in \d+\.\d s\.\n", ran.stdout)
    failed = dspyc(*command[3:], "--metric", "shop.py:broken")
    assert failed.exit_code == 1
    assert "All 12 examples failed:\n11 × metric raised KeyError" in failed.stderr


def test_an_artifact_whose_program_has_gone_asks_for_it(built: Path) -> None:
    built.with_name("shop.py").unlink()
    ran = dspyc("run", "built", "--input", '{"thing": "a red thing"}')
    assert ran.exit_code == 1
    assert "--program module.py:program" in ran.stderr
