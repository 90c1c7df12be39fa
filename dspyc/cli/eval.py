"""dspyc eval: an artifact's score on examples."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ProgramError
from .artifacts import load_artifact
from .failures import INTERRUPTED, explained
from .inputs import input_names
from .loading import load_metric, read_examples, read_rows
from .output import console, emit

if TYPE_CHECKING:
    import dspy


@explained
def evaluate(
    artifact: Annotated[Path, typer.Argument(help="The folder that `dspyc compile` wrote.")],
    devset: Annotated[Path, typer.Option(help="JSONL, one example a line.")],
    metric: Annotated[str, typer.Option(help="module.py:metric.")],
    program: Annotated[str | None, typer.Option(help="module.py:program. Default: as compiled.")] = None,
    inputs: Annotated[str | None, typer.Option(help="Input fields, as a,b. Default: what forward takes.")] = None,
    num_threads: Annotated[int, typer.Option(min=1, help="Examples that run at once.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")] = False,
) -> None:
    """Score a compiled program. An example that fails counts as 0."""
    judged_by = load_metric(metric)
    rows = read_rows(devset)
    loaded = load_artifact(artifact, program)
    names = [name.strip() for name in inputs.split(",")] if inputs else input_names(loaded, set(rows[0]))
    examples = read_examples(devset, names)
    started = time.monotonic()
    try:
        scores = _scores(loaded, examples, judged_by, num_threads)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    failed = sum(score is None for score in scores)
    mean = sum(score or 0.0 for score in scores) / len(scores)
    seconds = round(time.monotonic() - started, 1)
    console(as_json).print(f"Score: {mean:.3f} on {len(scores):,} examples, {failed} of them failed, in {seconds} s.")
    if as_json:
        emit({"score": mean, "examples": len(scores), "failed": failed, "seconds": seconds})


def _scores(
    program: "dspy.Module", examples: "list[dspy.Example]", metric: object, num_threads: int
) -> list[float | None]:
    """One score an example, None where the program or the metric failed."""
    import dspy

    from ..evaluation import call_metric

    def score(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return call_metric(metric, example, prediction, [])  # type: ignore[arg-type]

    harness = dspy.Evaluate(
        devset=examples,
        metric=score,
        num_threads=num_threads,
        display_progress=True,
        max_errors=len(examples) + 1,
    )
    # Evaluate answers for an example that failed with an empty prediction.
    scores = [float(value) if prediction.keys() else None for _, prediction, value in harness(program).results]
    if all(score is None for score in scores):
        raise ProgramError(
            f"All {len(scores)} examples failed; the errors are above.",
            hint="Run one of them by hand: dspyc --debug run DIR --input '{…}'.",
        )
    return scores
