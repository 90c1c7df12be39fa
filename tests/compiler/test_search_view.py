"""The search while it goes on: on a terminal a table that changes, elsewhere nothing."""

import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

from rich.console import Console

from dspyc.compiler.search_view import picture, search_view

from .test_race import run

SEARCH = """
    import sys
    from pathlib import Path
    from tests.optimizers import test_random_search as t
    t.search(Path(sys.argv[1])).compile(t.student(t.simulated_lm()), trainset=t.TRAIN, valset=t.VALIDATION)
"""


def test_a_picture_has_candidates_calls_and_the_time_that_remains(tmp_path: Path) -> None:
    pictures = []

    def draw(race: object) -> None:
        console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(picture(race, 10.0))  # type: ignore[arg-type]
        pictures.append(console.export_text())

    run(tmp_path, [0.2, 0.9, 0.5], watch=draw)
    assert "s more" in pictures[10]
    assert "calls" in pictures[10]
    assert "2 out" in pictures[-1]
    assert "100 of 100" in pictures[-1]


def test_nothing_is_drawn_where_nobody_looks(tmp_path: Path) -> None:
    with search_view(show=True) as watch:
        assert watch is None
    command = [sys.executable, "-c", textwrap.dedent(SEARCH), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent.parent, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_on_a_terminal_the_candidates_are_seen(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", textwrap.dedent(SEARCH), str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen(command, stderr=theirs, env=environment, cwd=Path(__file__).parent.parent.parent)
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
