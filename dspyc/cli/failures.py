"""How a command ends when something goes wrong: a message and a hint for people, an exit code for scripts."""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from ..errors import DspycError
from ..progress import is_main

Command = TypeVar("Command", bound=Callable[..., Any])

DEBUG = "DSPYC_DEBUG"  # any value but "" and "0" shows tracebacks
INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended
# Seconds that the main one of several processes has to say what went wrong in all of them; its launcher then ends the rest.
_HEAD_START = 5.0


def explained(command: Command) -> Command:
    """A DspycError becomes its message and hint on stderr and exit code 1; with --debug its traceback comes too."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except DspycError as error:
            if not is_main():
                time.sleep(_HEAD_START)
            if _debugging():
                raise
            typer.secho(f"Error: {error.message}", fg=typer.colors.RED, err=True)
            if error.hint:
                typer.secho(error.hint, fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from error

    return wrapped  # type: ignore[return-value]


def interrupted(run_dir: object) -> typer.Exit:
    """Say that the work is kept, and give the exit to raise."""
    if is_main():
        typer.secho(
            f"\nStopped. Nothing finished is lost: the same command goes on from {run_dir}.",
            fg=typer.colors.YELLOW,
            err=True,
        )
    return typer.Exit(INTERRUPTED)


def debug() -> None:
    """Let errors show their tracebacks, for the rest of this process."""
    os.environ[DEBUG] = "1"


def _debugging() -> bool:
    return os.environ.get(DEBUG, "") not in ("", "0")
