"""The search while it goes on: on a terminal or in a notebook a table that changes, elsewhere nothing."""

import io
import itertools
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
from rich.console import Console

from dspyc.compiler.race import Race
from dspyc.compiler.search_view import Picture, picture, search_view

from ..notebooks import execute
from .test_race import run

ROOT = Path(__file__).parents[2]
SEARCH = """
    import sys
    from pathlib import Path
    from tests.optimizers import test_random_search as t
    t.search(Path(sys.argv[1])).compile(t.student(t.simulated_lm()), trainset=t.TRAIN, valset=t.VALIDATION);
"""


QUIET = """
    quiet = t.search(Path("quiet"), show_progress=False)
    quiet.compile(t.student(t.simulated_lm()), trainset=t.TRAIN, valset=t.VALIDATION);
"""


def drawn(shown: Picture, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(shown.table())
    return console.export_text()


def test_a_picture_has_candidates_calls_and_the_time_that_remains(tmp_path: Path) -> None:
    pictures: list[str] = []
    run(tmp_path, [0.2, 0.9, 0.5], watch=lambda race: pictures.append(drawn(picture(race, 10.0))))
    assert any("s more" in shown for shown in pictures[:-1])
    assert "calls" in pictures[10]
    assert "2 out" in pictures[-1]
    assert "100 of 100" in pictures[-1]


def test_many_candidates_fit_a_terminal_of_any_width(tmp_path: Path) -> None:
    pictures: list[Picture] = []
    calls = itertools.count()

    def draw(race: Race) -> None:
        if next(calls) % 200 == 0:
            pictures.append(picture(race, 1.0))

    run(tmp_path, [0.5 + i / 200 for i in range(50)], watch=draw)
    for width in (20, 40, 200):
        for shown in pictures:
            assert max(map(len, drawn(shown, width).splitlines())) <= width
    assert max(len(drawn(shown, 200).splitlines()) for shown in pictures) <= 20
    assert "38 more in the race, 0 out" in drawn(pictures[0], 200)


def test_a_notebook_has_one_view_that_changes_and_ends_with_the_whole_search(tmp_path: Path) -> None:
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = ['run']"
    cells = [f"{path}\n{textwrap.dedent(SEARCH)}", textwrap.dedent(QUIET)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    execute(notebook, tmp_path, tmp_path)
    (view,), *others = [cell.outputs for cell in notebook.cells]
    assert others == [[]]  # with show_progress=False
    shown = view["data"]["text/html"]
    assert shown.count("<table>") == 1
    assert "60 of 60" in shown
    assert "to the end" in shown
    assert "more" not in shown
    assert re.search(r"\d+ calls · \d+ s<", shown)


def test_nothing_is_drawn_where_nobody_looks(tmp_path: Path) -> None:
    with search_view(show=True) as watch:
        assert watch is None
    command = [sys.executable, "-c", textwrap.dedent(SEARCH), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_on_a_terminal_the_candidates_are_seen(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", textwrap.dedent(SEARCH), str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen(command, stderr=theirs, env=environment, cwd=ROOT)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the child has closed its end
            break
        if not piece:
            break
        drawn += piece
    os.close(ours)
    assert child.wait() == 0
    assert b"in the race" in drawn
