"""dspyc jobs: training at providers, from any process: list, status, wait, cancel, stop-endpoint, events, forget."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .failures import INTERRUPTED, explained
from .output import Json, console, emit

if TYPE_CHECKING:
    from ..providers import RemoteJob

jobs = typer.Typer(name="jobs", help="Training jobs at providers.", no_args_is_help=True)

_Id = Annotated[str, typer.Argument(help="The job's id: ours, or the provider's.")]
_TIMED_OUT = 3  # the exit code of a wait that ended before its job


@jobs.command("list")
@explained
def list_jobs(as_json: Json = False) -> None:
    """The jobs that were started here, oldest first, as they stood when somebody last looked."""
    from rich.table import Table

    from ..providers.store import job_store

    records = job_store().all()
    if as_json:
        emit({"jobs": [asdict(record) for record in records]})
        return
    table = Table()
    for name in ("job", "at the provider", "base", "status", "started", "model"):
        whole = name in ("job", "status")  # however narrow the screen: an id is what other commands take
        table.add_column(name, no_wrap=whole, overflow="fold")
    for r in records:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(r.created_at))
        table.add_row(r.id, r.remote_id or "-", r.model, r.status, started, r.tuned or "-")
    console(as_json).print(table)


@jobs.command()
@explained
def status(id: _Id, as_json: Json = False) -> None:
    """Ask the provider where a job stands."""
    from ..providers import attach

    job = attach(id)
    job.status()
    _show(job, as_json)


@jobs.command()
@explained
def wait(
    id: _Id,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds. Exit code 3 when they are over.")] = None,
    as_json: Json = False,
) -> None:
    """Wait for a job's end; exit code 1 where it failed or was cancelled."""
    from ..providers import attach

    job = attach(id)
    try:
        ended = job.wait(timeout)
    except TimeoutError as error:
        typer.secho(str(error), err=True)
        raise typer.Exit(_TIMED_OUT) from error
    except KeyboardInterrupt:
        typer.secho(f"\nStopped waiting. The job goes on: dspyc jobs wait {job.id}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    _show(job, as_json)
    if ended != "succeeded":
        raise typer.Exit(1)


@jobs.command()
@explained
def cancel(id: _Id, as_json: Json = False) -> None:
    """Cancel a job at its provider; exit code 1 where it was over already."""
    from ..providers import attach

    job = attach(id)
    done = job.cancel()
    _show(job, as_json)
    if not done:
        raise typer.Exit(1)


@jobs.command("stop-endpoint")
@explained
def stop_endpoint(id: _Id, as_json: Json = False) -> None:
    """End what serves a job's model, and its cost; the same order, or the job's result, serves it again."""
    from ..providers import attach

    job = attach(id)
    job.stop_endpoint()
    if as_json:
        emit(asdict(job.record))
    else:
        typer.echo(f"Nothing serves the model of {job.id} any more.")


@jobs.command()
@explained
def events(id: _Id, as_json: Json = False) -> None:
    """What happened at the provider, oldest first."""
    from ..providers import attach

    found = attach(id).events()
    if as_json:
        emit({"events": [asdict(event) for event in found]})
        return
    for event in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
        typer.echo(f"{at}  {event.level:<5}  {event.message}")


@jobs.command()
@explained
def forget(
    id: _Id,
    yes: Annotated[
        bool, typer.Option("--yes", help="Forget it though it or its endpoint may go on, and cost.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let the same order start another job, where this one's model was deleted; nothing changes at the provider."""
    from ..providers import forget as forget_job

    record = forget_job(id, even_if_unfinished=yes)
    if as_json:
        emit(asdict(record))
    else:
        endpoint = record.facts.get("endpoint")
        left = f" Its endpoint may be up, and cost, until you end it at the provider: {endpoint}." if endpoint else ""
        typer.echo(f"{record.id} ({record.remote_id}) is forgotten: the same order starts another job.{left}")


def _show(job: "RemoteJob", as_json: bool) -> None:
    record: dict[str, Any] = asdict(job.record)
    if as_json:
        emit(record)
        return
    ended = f": {record['tuned']}" if record["tuned"] else f": {record['error']}" if record["error"] else ""
    typer.echo(f"{job.id} ({job.remote_id}) is {record['status']}{ended}")
