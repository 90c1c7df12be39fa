"""dspyc run: one answer from an artifact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError, DspycError, ProgramError
from .artifacts import load_artifact
from .failures import explained
from .inputs import declared_inputs, expected_inputs, required_inputs, takes_any
from .loading import read_object
from .output import Json, console, emit

if TYPE_CHECKING:
    import dspy


@explained
def run(
    artifact: Annotated[Path, typer.Argument(help="The folder that `dspyc compile` wrote.")],
    given: Annotated[str, typer.Option("--input", help="""The inputs, as '{"ticket": "Where is my parcel?"}'.""")],
    program: Annotated[str | None, typer.Option(help="module.py:program. Default: as compiled.")] = None,
    as_json: Json = False,
) -> None:
    """Run a compiled program on one input."""
    inputs = read_object(given, "--input")
    loaded = load_artifact(artifact, program)
    check_inputs(loaded, inputs)
    answer = _answer(loaded, inputs)
    if as_json:
        emit(answer)
    else:
        console(as_json).print(_table(answer))


def check_inputs(program: "dspy.Module", inputs: dict[str, Any]) -> None:
    """Raises DataError where inputs are missing, or the program takes none of that name."""
    expected, declared = expected_inputs(program), declared_inputs(program)
    missing = [name for name in declared or required_inputs(program) if name not in inputs]
    unknown = [name for name in inputs if (declared or not takes_any(program)) and name not in expected]
    if missing or unknown:
        said = [f"lacks {missing}"] if missing else []
        said += [f"has {unknown}, which the program does not take"] if unknown else []
        raise DataError(f"--input {' and '.join(said)}.", hint=f"The program takes {expected}.")


def _answer(program: "dspy.Module", inputs: dict[str, Any]) -> dict[str, Any]:
    from dspy.utils.exceptions import AdapterParseError

    try:
        prediction = program(**inputs)
    except AdapterParseError as error:
        raise ProgramError(
            f"The model's reply cannot be read as {list(error.signature.output_fields)}: {error.lm_response!r}",
            hint="Its training did not teach it this input: compare with `dspyc eval`.",
        ) from error
    except DspycError:
        raise
    except Exception as error:  # whatever the program or its language model raises
        raise ProgramError(
            f"The program raised {type(error).__name__}: {error}", hint="Run `dspyc --debug run …` to see where."
        ) from error
    return dict(prediction.items()) if hasattr(prediction, "items") else {"answer": prediction}


def _table(answer: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for name, value in answer.items():
        table.add_row(name, Text(str(value)), style=None)
    return table
