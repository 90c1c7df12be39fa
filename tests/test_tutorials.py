"""Every notebook in tutorials/ runs from a clean state, and what it says about its results is true."""

from pathlib import Path

import nbformat
import pytest

from .notebooks import execute

TUTORIALS = Path(__file__).parents[1] / "tutorials"
# What a notebook claims: expressions that its kernel must find true once all its cells have run.
CLAIMS = {
    "01_first_compile.ipynb": [
        "report.after - report.before >= 0.4",
        "report.interval[0] > 0",
        "report.teacher < 1",
        "report.rows['self'] < len(train)",
        "str(again(said='Could I have two coffee?').drink) == 'coffee'",
        "type(program.lm.engine) is type(again.lm.engine) and program.lm.model != again.lm.model",
    ],
    "02_prompt_search.ipynb": [
        "scores['no demos'] < scores['eight labelled'] < scores['bootstrapped'] < scores['four nearest']",
        "scores['searched'] > scores['eight labelled']",
        "best.report.final.interval[0] > scores['no demos'] / 100",
        "best.report.final.mean == scores['searched'] / 100",
        "sum(candidate.score.examples for candidate in best.report.candidates) < 19 * len(val) / 2",
        "asked < 19 * len(val) + len(test)",
        "sum(best.report.calls.values()) <= plan.calls <= 5000",
        "calls_again == (0, 0)",
        "again.report.winner == best.report.winner and again.report.final == best.report.final",
        "both.report.best == 2 and both.report.steps[2].score.mean >= 0.6 and both.report.steps[1].score.mean < 0.1",
        "[str(waiter_again(said=e.said).drink) for e in test[:20]] == [str(both(said=e.said).drink) for e in test[:20]]",
    ],
    "03_providers.ipynb": [
        "compiled.report.after - compiled.report.before >= 0.4",
        "compiled.report.interval[0] > 0",
        "started == [facts['remote_id']]",
        "{one.lm.model for one in (compiled, again, elsewhere, loaded)} == {facts['model']} != {program.lm.model}",
        "len(refused) == 2 and all('The limit is 0 USD' in reason for reason in refused.values())",
        "'about 0.0' in refused['bedrock/amazon.nova-lite-v1']",
        "not any(b'not-needed-here' in file.read_bytes() for file in (folder / 'artifact').rglob('*') if file.is_file())",
        "server.wait(60) is not None",
    ],
}


def test_every_tutorial_has_claims() -> None:
    assert {path.name for path in TUTORIALS.glob("*.ipynb")} == set(CLAIMS)


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_a_tutorial_runs_and_its_claims_hold(name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(TUTORIALS / name, as_version=4)
    claims = "\n".join(f"assert {claim}, {claim!r}" for claim in CLAIMS[name])
    notebook.cells.append(nbformat.v4.new_code_cell(claims))
    folder = tmp_path / "tutorials"  # where it finds what it does in a clone, and leaves nothing behind
    folder.mkdir()
    (tmp_path / "examples").symlink_to(TUTORIALS.parent / "examples")
    execute(notebook, tmp_path, folder)
