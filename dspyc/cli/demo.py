"""dspyc demo: a support desk, from an expert's answers to weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .failures import explained, interrupted
from .output import Json, console, emit, quiet, summary

if TYPE_CHECKING:
    from ..demo import DemoResult

_TICKET = '{"ticket": "Hello, where is my parcel? My order number is A-48213. This is urgent."}'


@explained
def demo(
    as_json: Json = False,
    out: Annotated[Path, typer.Option(help="The folder for the run and the artifact.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
) -> None:
    """Compile a support desk into the bundled student: about two minutes on two cores, no network."""
    console(as_json).print("Compiling a support desk (14 intents, 1,000 training tickets) into dspyc/tiny …")
    from ..demo import run_demo

    quiet()
    try:
        result = run_demo(seed=seed, out=out)
    except KeyboardInterrupt:
        raise interrupted(out / "run") from None
    _tell(result, as_json)


def _tell(result: "DemoResult", as_json: bool) -> None:
    screen = console(as_json)
    screen.print(result.report.table())
    screen.print("The score is the share of unseen tickets with intent, urgency, queue and order number all right.")
    screen.print(summary(result.calls, result.seconds))
    screen.print(f"Artifact: {result.artifact}", soft_wrap=True)
    screen.print(f"Next: dspyc run {result.artifact} --input '{_TICKET}'", soft_wrap=True)
    if as_json:
        emit(result.to_dict())
