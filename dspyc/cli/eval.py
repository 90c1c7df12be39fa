"""dspyc eval: an artifact's score on examples."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ProgramError
from .artifacts import load_artifact
from .failures import INTERRUPTED, explained
from .inputs import chosen_inputs
from .loading import as_examples, load_metric, read_records
from .output import Json, console, emit, quiet

if TYPE_CHECKING:
    import dspy

    from ..compiler import Trace


@explained
def evaluate(
    artifact: Annotated[Path, typer.Argument(help="The folder that `dspyc compile` wrote.")],
    devset: Annotated[Path, typer.Option(help="JSONL, one example a line.")],
    metric: Annotated[str, typer.Option(help="module.py:metric.")],
    program: Annotated[str | None, typer.Option(help="module.py:program. Default: as compiled.")] = None,
    inputs: Annotated[str | None, typer.Option(help="Input fields, as a,b. Default: what forward takes.")] = None,
    num_threads: Annotated[int, typer.Option(min=1, help="Examples that run at once.")] = 32,
    as_json: Json = False,
) -> None:
    """Score a compiled program. An example that fails counts as 0."""
    from ..compiler.failures import reasons

    judged_by = load_metric(metric)
    records = read_records(devset)
    loaded = load_artifact(artifact, program)
    examples = as_examples(records, devset, *chosen_inputs(loaded, inputs, records))
    started = time.monotonic()
    quiet()
    try:
        runs = _runs(loaded, examples, judged_by, num_threads)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    failed, why = sum(run.error is not None for run in runs), "\n".join(reasons(runs))
    if failed == len(runs):
        raise ProgramError(
            f"All {failed} examples failed:\n{why}",
            hint="Run one of them by hand: dspyc --debug run DIR --input '{…}'.",
        )
    if why:
        typer.secho(why, fg=typer.colors.YELLOW, err=True)
    mean = sum(run.counted for run in runs) / len(runs)
    seconds = round(time.monotonic() - started, 1)
    console(as_json).print(f"Score: {mean:.3f} on {len(runs):,} examples, {failed} of them failed, in {seconds} s.")
    if as_json:
        emit({"score": mean, "examples": len(runs), "failed": failed, "seconds": seconds})


def _runs(program: "dspy.Module", examples: "list[dspy.Example]", metric: Any, num_threads: int) -> "list[Trace]":
    """One run an example. Those that failed, the metric's own failures among them, say why and have no score."""
    from ..compiler import Ledger, bootstrap, observe
    from ..signatures import program_fingerprint

    subject = observe(program, "artifact", identity=program_fingerprint(program), traced=False)
    with tempfile.TemporaryDirectory(prefix="dspyc-eval-") as folder, Ledger(Path(folder)) as ledger:
        return bootstrap(subject, examples, metric=metric, ledger=ledger, num_threads=num_threads)
