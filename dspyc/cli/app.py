"""The Typer application, and what is true of all its commands."""

from typing import Annotated

import typer

from .compile import compile_program
from .data import data
from .demo import demo
from .eval import evaluate
from .failures import debug as show_tracebacks
from .jobs import jobs
from .run import run
from .runs import runs
from .train import train

app = typer.Typer(
    name="dspyc",
    help="Compile DSPy programs into weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, which may hold keys
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dspyc {version('dspyc')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; DSPYC_DEBUG=1 does the same.")
    ] = False,
) -> None:
    """Compile DSPy programs into weights."""
    if debug:
        show_tracebacks()


app.command("demo")(demo)
app.command("compile")(compile_program)
app.command("eval")(evaluate)
app.command("run")(run)
app.command("train")(train)
app.add_typer(jobs)
app.add_typer(data)
app.add_typer(runs)
