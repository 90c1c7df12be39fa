"""Where a command's words go: tables for people on stdout, or one JSON object there and everything else on stderr."""

import json
import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..files import json_bytes

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="One JSON object, last, on stdout.")]


def console(as_json: bool) -> "Console":
    """The console for tables and sentences; with --json stdout is kept for the object."""
    from rich.console import Console

    return Console(stderr=as_json, markup=False, emoji=False, highlight=False)  # names and paths as they are


def emit(facts: dict[str, Any]) -> None:
    """One JSON object on one line of stdout; numbers that JSON has no word for, infinity and NaN, are null."""
    text = json.dumps(facts, ensure_ascii=False, default=_readable)
    typer.echo(json_bytes(json.loads(text, parse_constant=lambda _: None)).decode())


def _readable(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)


def quiet() -> None:
    """Without DSPy's warning for every reply that an untrained student does not end: the report counts failures."""
    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)


def summary(calls: dict[str, int], seconds: float) -> str:
    """What a compile cost."""
    counted = ", ".join(f"{count:,} of the {role}" for role, count in calls.items())
    return f"Calls: {counted or 'none'}. Time: {seconds:.0f} s."
