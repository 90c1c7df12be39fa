"""The search while it goes on: a table that changes, on a terminal or in a notebook, and nothing elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .html_table import html_table
from .race import Lane, Race
from .score import Score

Watch = Callable[[Race], None]
_PERIOD = 0.25  # seconds between two pictures
_SHOWN = 12  # candidates
_COLUMNS = ("candidate", "score (95 %)", "examples", "")


@contextmanager
def search_view(*, show: bool) -> Iterator[Watch | None]:
    """What a race is to be watched by; None where nobody would see it.

    A terminal's view goes when the search ends; a notebook's stays, as it was at the end.
    """
    console = Console(stderr=True)
    if not show or not (console.is_terminal or console.is_jupyter):
        yield None
    elif console.is_jupyter:
        watcher = _Watcher(_notebook())
        try:
            yield watcher
        finally:
            watcher.end()
    else:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _Watcher(lambda picture: live.update(picture.table(), refresh=True))


class _Watcher:
    def __init__(self, draw: "Callable[[Picture], None]") -> None:
        self._draw, self._started, self._drawn = draw, time.monotonic(), 0.0
        self._race: Race | None = None

    def __call__(self, race: Race) -> None:
        self._race, now = race, time.monotonic()
        if now - self._drawn >= _PERIOD:
            self._drawn = now
            self._draw(picture(race, now - self._started))

    def end(self) -> None:
        if self._race is not None:
            self._draw(picture(self._race, time.monotonic() - self._started, over=True))


@dataclass(frozen=True)
class Picture:
    """A race at one moment, as rows of text."""

    rows: list[tuple[str, str, str, str]]
    caption: str

    def table(self) -> Table:
        """For a terminal."""
        table = Table(caption=self.caption, caption_justify="left")
        for name in _COLUMNS:
            table.add_column(name, justify="right" if name == "examples" else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def html(self) -> str:
        """For a notebook."""
        return html_table(_COLUMNS, self.rows, caption=self.caption)


def picture(race: Race, seconds: float, *, over: bool = False) -> Picture:
    """Candidates by their scores so far, calls, cost, and the time that remains at most."""
    ranked = sorted(race.running, key=lambda lane: -_mean(lane))
    state = "in the race" if not over else "to the end"
    rows = [(*_cells(lane, len(race.order)), state if lane.subject else "being made") for lane in ranked[:_SHOWN]]
    hidden, out = max(0, len(ranked) - _SHOWN), len(race.lanes) - len(ranked)
    if hidden or out:
        rows.append((f"{hidden} more {state}, {out} out" if hidden else f"{out} out", "", "", ""))
    return Picture(rows, _caption(race, seconds, over))


def _caption(race: Race, seconds: float, over: bool) -> str:
    done, missing = sum(lane.seen for lane in race.lanes), sum(len(race.order) - lane.seen for lane in race.running)
    ledger = race.pool.ledger
    parts = [f"{sum(ledger.calls().values())} calls"]
    if ledger.replayed:
        parts.append(f"{ledger.replayed} in the ledger from before")
    if ledger.meter.spent.usd:
        parts.append(f"{ledger.meter.spent.usd:.4f} USD")
    if done:
        parts.append(f"{seconds:.0f} s" if over else f"{seconds:.0f} s, at most {seconds / done * missing:.0f} s more")
    return " · ".join(parts)


def _cells(lane: Lane, total: int) -> tuple[str, str, str]:
    score = Score.of([float(score) for score in lane.judged])
    return str(lane.number), str(score) if score else "—", f"{lane.seen} of {total}"


def _mean(lane: Lane) -> float:
    return float(lane.judged.mean()) if lane.seen else 0.0


def _notebook() -> Callable[[Picture], None]:
    from IPython import display

    shown: Any = display  # it has no types
    handle = shown.display(shown.HTML(""), display_id=True)
    return lambda picture: handle.update(shown.HTML(picture.html()))
