"""A compile's report as a person sees it: a table on a terminal, HTML in a notebook."""

from dspyc.compiler import CompileReport, Verdict


def report(verdict: Verdict | None, **more: object) -> CompileReport:
    facts = {"calls": {"teacher": 1200}, "replayed": 0, "cost": None, "seconds": 3.2, "rows": {}, "dataset": {}}
    return CompileReport(verdict, **{**facts, "training": [], "run_dir": "run", "seed": 0, **more})  # type: ignore[arg-type]


def test_a_notebook_shows_the_comparison_and_what_it_cost() -> None:
    verdict = Verdict(before=0.25, after=0.75, teacher=0.9, interval=(0.3, 0.7), examples=40, failed={})
    shown = report(verdict, cost=0.5, stopped="calls < 9 & all spent")._repr_html_()
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
