"""events.jsonl: one JSON object a line, for people, plots and tools, while a run is going on."""

import json
import time
from pathlib import Path
from typing import Any

from ..files import json_bytes, numbered_lines, write_bytes


class EventLog:
    """Appends to a run's events. On a resume, lines from steps that will be run again are dropped.

    `seconds` in every line is the training time since the run's first step, without the time between a kill and a resume.
    Where several processes train, one of them `writes`.
    """

    def __init__(self, path: Path, resumed_step: int | None = None, writes: bool = True) -> None:
        self.path, self._writes = path, writes
        kept = [] if resumed_step is None else [e for e in read_events(path) if e.get("step", 0) <= resumed_step]
        self._before = max((float(e.get("seconds", 0.0)) for e in kept), default=0.0)
        self._started = time.monotonic()
        if writes:
            write_bytes(path, b"".join(json_bytes(event) + b"\n" for event in kept))
        self.last_loss = next((float(e["loss"]) for e in reversed(kept) if "loss" in e), None)
        self.last_validation_loss = next((e["validation_loss"] for e in reversed(kept) if "validation_loss" in e), None)

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def write(self, step: int, epoch: float, **facts: Any) -> None:
        line = {"step": step, "epoch": round(epoch, 4), **facts, "seconds": round(self.seconds(), 3)}
        if self._writes:
            with self.path.open("ab") as stream:
                stream.write(json_bytes(line) + b"\n")
        self.last_loss = facts.get("loss", self.last_loss)
        self.last_validation_loss = facts.get("validation_loss", self.last_validation_loss)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events so far; none where there is no file."""
    return parse_events(path.read_text(encoding="utf-8")) if path.exists() else []


def parse_events(text: str) -> list[dict[str, Any]]:
    """The events in a file's text; a last line that was cut short is left out."""
    found = []
    for _, line in numbered_lines(text):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
