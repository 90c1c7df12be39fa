"""Text that is not ours, in what is printed: square brackets in it are text, and no markup of the printer's."""

import io
from typing import Any

import pytest
from rich.console import Console

from dspyc.cli.output import console
from dspyc.compiler.plan import Plan, Stage
from dspyc.compiler.score import Score
from dspyc.compiler.search_report import CandidateReport, SearchReport
from dspyc.compiler.sequence_report import SequenceReport, StepReport
from dspyc.progress import bar

TEXTS = ("[INST] hi [/INST]", "[openai/gpt-5]", "[/]", ":smile: [bold]", "ends with \\")


def printed(shown: Any) -> str:
    screen = Console(width=200, record=True, file=io.StringIO())
    screen.print(shown)
    return " ".join(screen.export_text().split())  # captions are as wide as their tables


def search(text: str) -> SearchReport:
    candidates = [
        CandidateReport(0, "bootstrapped", {text: 1}, Score(1.5, (1.0, 2.0), 9), 0, "won"),
        CandidateReport(1, "bootstrapped", {}, None, 9, f"9 of its runs failed, the first: {text}"),
    ]
    facts: dict[str, Any] = {"calls": {}, "seconds": 1.0, "run_dir": "run", "seed": 0}
    return SearchReport(0, candidates, "9 examples", None, "none", stopped=f"refused: {text}", **facts)


@pytest.mark.parametrize("text", TEXTS)
def test_tables_show_it_as_it_is(text: str) -> None:
    assert printed(search(text)).count(text) == 3
    steps = [StepReport(text, None, None, "not compared", 1.0)]
    assert printed(SequenceReport(steps, 0, 0, calls={}, seconds=1.0, run_dir="run", seed=0)).count(text) == 2
    plan = Plan([Stage(f"{text}: teacher", text, 1, 1, 1, 1, None, True)], 8, [text])
    assert printed(plan.table()).count(text) == 4


@pytest.mark.parametrize("text", TEXTS)
def test_bars_and_commands_show_it_as_it_is(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    with bar(text, 2) as advance:
        advance(note=text)
    assert capsys.readouterr().err.count(text) >= 2
    monkeypatch.delenv("FORCE_COLOR")
    console(as_json=False).print(f"Artifact: {text}")
    assert text in capsys.readouterr().out


def test_a_report_of_one_example_is_json() -> None:
    score = Score.of([2.5])
    assert score is not None
    assert score.to_dict() == {"mean": 2.5, "interval": [None, None], "examples": 1}
    assert Score.from_dict(score.to_dict()) == score
