"""A compile's report as a person sees it: a table on a terminal, HTML in a notebook."""

import json

from dspyc.compiler import CompileReport, Verdict
from dspyc.compiler.gate import judge
from dspyc.compiler.trace import Trace


def report(verdict: Verdict | None, **more: object) -> CompileReport:
    facts = {"calls": {"teacher": 1200}, "seconds": 3.2, "rows": {}, "dataset": {}}
    return CompileReport(verdict, **{**facts, "training": [], "run_dir": "run", "seed": 0, **more})  # type: ignore[arg-type]


def test_a_notebook_shows_the_comparison_and_what_it_cost() -> None:
    verdict = Verdict(before=0.25, after=0.75, teacher=0.9, interval=(0.3, 0.7), examples=40, failed={})
    shown = report(verdict, spent={"calls": 9, "tokens": 90, "usd": 0.5}, stopped="calls < 9 & all spent")._repr_html_()
    assert "<td><b>student after</b></td><td><b>0.750</b></td>" in shown
    assert "+0.300 to +0.700" in shown
    assert "calls &lt; 9 &amp; all spent" in shown
    assert "better, on 40 examples" in shown
    assert "1,200 of the teacher · 0.5000 USD · 3 s" in shown


def test_without_a_comparison_it_says_so() -> None:
    shown = report(None)._repr_html_()
    assert "Compiled without a held-out comparison" in shown
    assert "Calls: 1,200 of the teacher · 3 s" in shown
    assert report(None).table().row_count == 0


def cells(shown: CompileReport) -> list[tuple[str, str]]:
    first, second = shown.table().columns
    return [(str(name), str(figure)) for name, figure in zip(first.cells, second.cells, strict=True)]


def test_without_a_comparison_it_says_what_was_learned_from() -> None:
    facts = {
        "traces": 1200,
        "threshold": 1.0,
        "failed": 3,
        "below": 40,
        "duplicates": 0,
        "unrenderable": {"too long": 2},
        "rows": {"a": 1},
    }
    trained = report(None, dataset=facts, rows={"name": 1157})
    assert cells(trained) == [
        ("runs", "1,200"),
        ("failed runs", "3"),
        ("runs that scored too low", "40"),
        ("rows that could not be written", "2"),
        ("training rows of `name`", "1,157"),
    ]
    assert cells(report(None, dataset={"traces": 9, "threshold": None}))[0] == ("labelled examples", "9")
    shown = report(None, dataset={"runs": 6, "failed": 0, "bootstrapped": 4, "demos": {"name": 16, "count": 4}})
    assert cells(shown)[1:] == [("good runs", "4"), ("demos of `name`", "16"), ("demos of `count`", "4")]
    assert "<td><span>demos of `name`</span></td><td><span>16</span></td>" in shown._repr_html_()
    assert CompileReport.from_dict(json.loads(json.dumps(shown.to_dict()))).to_dict() == shown.to_dict()


def test_the_same_scores_in_another_order_are_no_regression() -> None:
    def runs(scores: list[float]) -> list[Trace]:
        return [Trace(str(i), "student", i, str(i), score=score) for i, score in enumerate(scores)]

    before, after = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    verdict = judge(runs(before), runs(after), None)
    assert verdict is not None
    assert verdict.after < verdict.before  # as floats
    assert not verdict.regressed
    worse = judge(runs(before), runs([0.1, 0.2, 0.299]), None)
    assert worse is not None
    assert worse.regressed
