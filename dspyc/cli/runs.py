"""dspyc runs: what compiles have asked, paid for and got: list, show, diff, export."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError, DspycError
from .failures import explained
from .output import Json, console, emit

runs = typer.Typer(name="runs", help="Compiles: what they asked, paid for and got.", no_args_is_help=True)

_Run = Annotated[str, typer.Argument(help="A run folder, or a name that `dspyc runs list` shows.")]

_ERRORS_SHOWN = 5
_COUNTED = "Calls are of all models; tokens and USD of those that do not run on this machine."


@runs.command("list")
@explained
def list_runs(
    folder: Annotated[Path | None, typer.Argument(help="Where to look. Default: the runs under $DSPYC_HOME.")] = None,
    as_json: Json = False,
) -> None:
    """The runs in a folder, newest first."""
    from rich.table import Table

    found = sorted((_glance(path) for path in _folders(folder)), key=lambda facts: facts["last"] or 0, reverse=True)
    if as_json:
        emit({"runs": found})
        return
    table = Table("run", "last at work", "calls", "tokens", "USD", "state")
    for facts in found:
        totals = [sum(part[name] for part in facts["calls"].values()) for name in ("calls", "tokens", "usd")]
        state = facts.get("problem") or ("finished" if facts["finished"] else "unfinished")
        numbers = (f"{totals[0]:,}", f"{totals[1]:,}", f"{totals[2]:.4f}")
        table.add_row(Path(facts["run_dir"]).name, _time(facts["last"]), *numbers, state)
    table.caption = _COUNTED
    console(as_json).print(table)


@runs.command()
@explained
def show(run: _Run, as_json: Json = False) -> None:
    """What one run has done so far; a compile may be going on in it."""
    from rich.table import Table

    from ..compiler.records import read_run

    record = read_run(run)
    facts, failures = record.summary(), record.failures()
    if as_json:
        emit({**facts, "candidates": record.candidates(), "failures": failures})
        return
    screen = console(as_json)
    screen.print(f"{facts['run_dir']}: from {_time(facts['began'])} to {_time(facts['last'])}", soft_wrap=True)
    table = Table("part", "calls", "tokens", "USD", "runs", "failed", "mean score")
    for role in sorted({*facts["calls"], *facts["traces"]}):
        paid = facts["calls"].get(role, {"calls": 0, "tokens": 0, "usd": 0.0})
        done = facts["traces"].get(role, {"traces": 0, "failed": 0, "score": None})
        score = "–" if done["score"] is None else f"{done['score']:.3f}"
        counts = (f"{paid['calls']:,}", f"{paid['tokens']:,}", f"{paid['usd']:.4f}", f"{done['traces']:,}")
        table.add_row(role, *counts, f"{done['failed']:,}", score)
    table.caption = _COUNTED
    screen.print(table)
    for failure in failures[:_ERRORS_SHOWN]:
        screen.print(f"{failure['traces']:,} × {failure['role']}: {failure['error']}", soft_wrap=True)
    if len(failures) > _ERRORS_SHOWN:
        screen.print(f"{len(failures) - _ERRORS_SHOWN:,} other errors; --json lists them.")
    if facts["candidates"]:
        screen.print(f"{facts['candidates']:,} candidates; --json lists them.")
    if facts["report"] is None:
        screen.print("Not finished: the same compile goes on from here.")


@runs.command()
@explained
def diff(first: _Run, second: _Run, as_json: Json = False) -> None:
    """Which calls and traces two runs share, and whose outcome differs."""
    from rich.table import Table

    from ..compiler.records import differences, read_run

    found = differences(read_run(first), read_run(second))
    if as_json:
        emit(found)
        return
    table = Table("", "in both", "only in the first", "only in the second")
    for kind in ("calls", "traces"):
        table.add_row(kind, *(f"{found[kind][where]:,}" for where in ("both", "first", "second")))
    screen = console(as_json)
    screen.print(table)
    for change in found["changed"]:
        before, after = (
            error or f"scored {score}" for score, error in zip(change["scores"], change["errors"], strict=True)
        )
        screen.print(f"{change['role']} {change['trace']}: {before} → {after}", soft_wrap=True)


@runs.command()
@explained
def export(
    run: _Run,
    out: Annotated[Path, typer.Option(help="The JSONL file for the traces, one a line.")],
    role: Annotated[str | None, typer.Option(help="Only the traces of this part, as `teacher`.")] = None,
    as_json: Json = False,
) -> None:
    """Write a run's traces where every optimizer can learn from them: compile(..., traces=dspyc.load_traces(OUT))."""
    from ..compiler import read_run, save_traces

    record = read_run(run)
    if role is not None and role not in (known := record.summary()["traces"]):
        raise DataError(
            f"The run {run} has no traces of {role!r}; it has traces of {sorted(known)}.",
            hint="Without --role all are exported.",
        )
    count = save_traces(record.traces(role), out)
    console(as_json).print(f"{count:,} traces in {out}", soft_wrap=True)
    if as_json:
        emit({"traces": count, "out": str(out)})


def _folders(folder: Path | None) -> list[Path]:
    from ..files import home

    return [path.parent for path in (folder or home() / "runs").glob("*/ledger.sqlite")]


def _glance(folder: Path) -> dict[str, Any]:
    """A run's summary without its report; of one that cannot be read, what is wrong with it."""
    from ..compiler.records import RunRecord

    try:
        facts = RunRecord(folder).summary()
    except DspycError as error:
        return {"run_dir": str(folder), "last": None, "finished": False, "calls": {}, "problem": error.message}
    return {name: value for name, value in facts.items() if name != "report"}


def _time(at: float | None) -> str:
    return "–" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
