"""The commands themselves, run as a user runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dspyc.cli import app

from ..providers.openai_server import KEY, OpenAIServer

ROOT = Path(__file__).parent.parent.parent
QUICK = '{"method": "full", "max_steps": 2, "batch_size": 4}'


def dspyc(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def compile_shop(*more: str) -> Result:
    options = ["--trainset", "train.jsonl", "--metric", "shop.py:metric", "--out", "built", "--train-kwargs", QUICK]
    return dspyc("compile", "shop.py:with_student", *options, *more)


def last_object(result: Result) -> dict[str, object]:
    found = json.loads(result.stdout.strip().split("\n")[-1])
    assert isinstance(found, dict)
    return found


def test_version() -> None:
    result = dspyc("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"dspyc \d+\.\d+\.\d+\n", result.stdout)


def test_every_command_explains_itself() -> None:
    for command in ("demo", "compile", "eval", "run"):
        assert dspyc(command, "--help").exit_code == 0


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    script = "import sys, dspyc.cli; print(*sorted({'torch', 'transformers', 'dspy', 'litellm'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


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


def test_debug_shows_the_traceback(shop: Path) -> None:
    command = [sys.executable, "-c", "from dspyc.cli import app; app()", "--debug", "run", "nowhere", "--input", "{}"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=shop)
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "ArtifactError" in ran.stderr


def test_compile_then_run_then_eval(shop: Path) -> None:
    built = compile_shop("--teacher", "shop.py:teacher", "--json")
    assert built.exit_code == 0, built.stderr
    facts = last_object(built)
    assert facts["teacher"] == 1.0
    assert facts["artifact"] == "built"
    assert isinstance(facts["interval"], list)
    assert len(built.stdout.strip().split("\n")) == 1

    wrong = dspyc("run", "built", "--input", '{"thnig": "a red thing"}')
    assert wrong.exit_code == 1
    assert "lacks ['thing'] and has ['thnig']" in wrong.stderr

    ran = dspyc("run", "built", "--input", '{"thing": "a red thing"}', "--json")
    # Two steps of training teach nothing reliable: an answer is one of the two, or an error that shows the reply.
    if ran.exit_code == 0:
        assert last_object(ran)["colour"] in ("red", "blue")
    else:
        assert "reply cannot be read as ['colour']" in ran.stderr


def written(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_artifact_is_replaced_only_where_that_is_said(shop: Path) -> None:
    assert compile_shop().exit_code == 0
    first, kept = written(shop / "built"), (shop / "built.run").rename(shop / "kept")
    again = compile_shop("--seed", "1")
    assert again.exit_code == 1
    assert "built holds an artifact already" in again.stderr
    assert "--overwrite" in again.stderr
    assert written(shop / "built") == first
    assert not (shop / "built.run").exists()  # nothing was asked or trained
    assert compile_shop("--overwrite", "--seed", "1", "--run-dir", str(kept)).exit_code == 0
    assert written(shop / "built") != first


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


def test_labels_teach_where_there_is_no_teacher_and_tables_go_to_stdout(shop: Path) -> None:
    built = compile_shop()
    assert built.exit_code == 0, built.stderr
    assert "student after" in built.stdout
    assert "dspyc run built --input" in built.stdout


def test_eval_scores_a_program_that_is_passed(shop: Path) -> None:
    assert compile_shop().exit_code == 0
    options = ["--devset", "train.jsonl", "--metric", "shop.py:metric", "--program", "shop.py:with_student", "--json"]
    scored = dspyc("eval", "built", *options)
    if scored.exit_code == 0:
        facts = last_object(scored)
        assert facts["examples"] == 12
        assert 0 <= float(str(facts["score"])) <= 1
    else:
        assert "All 12 examples failed" in scored.stderr


def test_eval_says_why_examples_failed_and_nothing_else_where_nobody_looks(shop: Path) -> None:
    assert compile_shop().exit_code == 0
    command = [sys.executable, "-m", "dspyc", "eval", "built", "--devset", "train.jsonl", "--program", "shop.py:Strict"]
    piped = {"capture_output": True, "text": True, "cwd": shop, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    ran = subprocess.run([*command, "--metric", "shop.py:metric"], **piped)  # type: ignore[call-overload]
    assert ran.stderr == "1 × program raised ValueError: a thing too many\n"
    assert re.fullmatch(r"Score: 0\.917 on 12 examples, 1 of them failed, in \d+\.\d s\.\n", ran.stdout)
    failed = dspyc(*command[3:], "--metric", "shop.py:broken")
    assert failed.exit_code == 1
    assert "All 12 examples failed:\n11 × metric raised KeyError" in failed.stderr


def test_an_artifact_whose_program_has_gone_asks_for_it(shop: Path) -> None:
    assert compile_shop().exit_code == 0
    (shop / "shop.py").unlink()
    ran = dspyc("run", "built", "--input", '{"thing": "a red thing"}')
    assert ran.exit_code == 1
    assert "--program module.py:program" in ran.stderr
