"""The commands themselves, run as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dspyc.cli import app

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


def test_an_artifact_whose_program_has_gone_asks_for_it(shop: Path) -> None:
    assert compile_shop().exit_code == 0
    (shop / "shop.py").unlink()
    ran = dspyc("run", "built", "--input", '{"thing": "a red thing"}')
    assert ran.exit_code == 1
    assert "--program module.py:program" in ran.stderr
