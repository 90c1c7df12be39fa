"""The demo itself, on a few tickets: what it leaves, what it says, and what the next one does."""

import json
import shlex
import shutil
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from dspyc.cli import app
from dspyc.cli.demo import _tell
from dspyc.demo import DemoResult, load_examples, run_demo
from dspyc.demo.expert import mistaken
from dspyc.demo.run import TRAIN_KWARGS
from dspyc.demo.support_desk import Intent, Queue, Urgency
from dspyc.errors import ArtifactError


def small(out: Path) -> DemoResult:
    train, _, test = load_examples()
    quick = {name: value for name, value in TRAIN_KWARGS.items() if name != "epochs"}
    return run_demo(out=out, trainset=train[:12], valset=test[:3], train_kwargs={**quick, "max_steps": 1})


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(out: Path) -> DemoResult:
    return small(out)


def test_the_metric_keeps_the_experts_mistakes_out_of_what_is_learned(result: DemoResult) -> None:
    train, _, test = load_examples()
    right = [ticket for ticket in train[:12] if not mistaken(ticket.ticket)]
    assert 0 < len(right) < 12
    assert sum(result.report.rows.values()) == 2 * len(right)
    assert result.teacher == sum(not mistaken(ticket.ticket) for ticket in test[:3]) / 3
    assert result.calls == {"teacher": 30, "student": 6, "compiled": 6}


def test_json_holds_the_figures_and_the_next_command_runs_the_artifact(
    out: Path, result: DemoResult, capsys: pytest.CaptureFixture[str]
) -> None:
    _tell(result, as_json=True)
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts == {
        "before": result.before,
        "teacher": result.teacher,
        "after": result.after,
        "interval": list(result.interval),
        "seconds": result.seconds,
        "calls": result.calls,
        "artifact": str(out / "artifact"),
    }

    assert "student after" in said.err
    (line,) = [line for line in said.err.splitlines() if line.startswith("Next: ")]
    program, *arguments = shlex.split(line.removeprefix("Next: "))
    assert program == "dspyc"
    ran = CliRunner().invoke(app, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert (answer["intent"] in get_args(Intent), answer["urgency"] in get_args(Urgency)) == (True, True)
    assert answer["queue"] in get_args(Queue)
    assert isinstance(answer["order_number"], str)


def test_a_demo_that_was_stopped_goes_on_and_one_that_ended_begins_anew(out: Path, result: DemoResult) -> None:
    shutil.rmtree(out / "artifact")  # as where it was stopped just before the artifact was there
    assert small(out).report.replayed == sum(result.calls.values())
    again = small(out)
    assert again.report.replayed == 0
    figures = ("before", "teacher", "after", "interval", "calls")
    assert [getattr(again, name) for name in figures] == [getattr(result, name) for name in figures]


def test_an_out_that_cannot_be_used_is_found_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "notes.txt").write_text("mine")
    refused = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert refused.exit_code == 1
    assert "artifact exists and is not an artifact" in refused.stderr
    assert not (tmp_path / "run").exists()

    (tmp_path / "artifact" / "artifact.json").write_text("{}")
    (tmp_path / "run").write_text("no folder")
    with pytest.raises(ArtifactError, match="run cannot be removed"):
        run_demo(out=tmp_path)
    assert (tmp_path / "artifact" / "notes.txt").exists()
