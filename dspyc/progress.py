"""One progress bar for every room: what is being done, how far it is, and the time that remains."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[..., None]


def is_main() -> bool:
    """Whether this process is the one that speaks, draws progress and writes files; a launcher may have started others."""
    return int(os.environ.get("RANK", "0")) == 0


def tell(text: str) -> None:
    """A line on stderr, drawn only where a person can see it."""
    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        console.print(text, highlight=False, markup=False)


@contextmanager
def bar(text: str, total: int, *, show: bool = True) -> Iterator[Advance]:
    """A bar on stderr, drawn only where a person can see it; yields `advance(steps=1, note="")`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    drawn = show and (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, disable=not drawn) as progress:
        task = progress.add_task(text, total=total, note="")

        def advance(steps: int = 1, note: str | None = None) -> None:
            progress.update(task, advance=steps)
            if note is not None:
                progress.update(task, note=note)

        yield advance
