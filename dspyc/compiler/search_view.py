"""The search while it goes on: a table that changes, on a terminal or in a notebook, and nothing elsewhere."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .race import Lane, Race
from .search_report import Score

Watch = Callable[[Race], None]
_PERIOD = 0.25  # seconds between two pictures
_SHOWN = 12  # candidates


@contextmanager
def search_view(*, show: bool) -> Iterator[Watch | None]:
    """What a race is to be watched by; None where nobody would see it."""
    console = Console(stderr=True)
    if not show or not (console.is_terminal or console.is_jupyter):
        yield None
    elif console.is_jupyter:
        yield _Watcher(_notebook())
    else:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _Watcher(lambda table: live.update(table, refresh=True))


class _Watcher:
    def __init__(self, draw: Callable[[Table], None]) -> None:
        self._draw, self._started, self._drawn = draw, time.monotonic(), 0.0

    def __call__(self, race: Race) -> None:
        now = time.monotonic()
        if now - self._drawn >= _PERIOD:
            self._drawn = now
            self._draw(picture(race, now - self._started))


def picture(race: Race, seconds: float) -> Table:
    """Candidates by their scores so far, calls, cost, and the time that remains at most."""
    done = sum(lane.seen for lane in race.lanes)
    table = Table(caption=_caption(race, done, seconds), caption_justify="left")
    for name in ("candidate", "score (95 %)", "examples", ""):
        table.add_column(name, justify="right" if name == "examples" else "left")
    ranked = sorted(race.running, key=lambda lane: -_mean(lane))
    for lane in ranked[:_SHOWN]:
        table.add_row(*_cells(lane, len(race.order)), "in the race" if lane.subject else "being made")
    hidden, out = max(0, len(ranked) - _SHOWN), len(race.lanes) - len(ranked)
    if hidden or out:
        table.add_row(f"{hidden} more in the race, {out} out" if hidden else f"{out} out", "", "", "", style="dim")
    return table


def _caption(race: Race, done: int, seconds: float) -> str:
    parts = [f"{race.usage.calls} calls", f"{race.usage.replayed} of them from the ledger"]
    parts = parts if race.usage.replayed else parts[:1]
    if race.usage.cost is not None:
        parts.append(f"{race.usage.cost:.4f} USD")
    missing = sum(len(race.order) - lane.seen for lane in race.running)
    if done:
        parts.append(f"{seconds:.0f} s, at most {seconds / done * missing:.0f} s more")
    return " · ".join(parts)


def _cells(lane: Lane, total: int) -> tuple[str, str, str]:
    score = Score.of([float(score) for score in lane.judged])
    return str(lane.number), str(score) if score else "—", f"{lane.seen} of {total}"


def _mean(lane: Lane) -> float:
    return float(lane.judged.mean()) if lane.seen else 0.0


def _notebook() -> Callable[[Table], None]:
    from IPython import display

    shown: Any = display  # it has no types
    handle = shown.display(shown.HTML(""), display_id=True)

    def draw(table: Table) -> None:
        console = Console(record=True, width=100, file=io.StringIO(), force_jupyter=False)
        console.print(table)
        handle.update(shown.HTML(console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")))

    return draw
