"""An artifact as a command needs it: loaded, and with its program found."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtifactError, ConfigError
from .loading import load_program

if TYPE_CHECKING:
    import dspy


def load_artifact(folder: Path, program: str | None) -> "dspy.Module":
    """The program in `folder`: `program` where it is given, else the reference that the artifact was compiled from.

    Raises:
        ArtifactError: The artifact, or the program that it names, cannot be had.
    """
    from ..compiler import load, verify

    if program is not None:
        return load(folder, load_program(program))
    source = verify(folder)["program"].get("source")
    if not source:
        return load(folder)
    try:
        found = load_program(source)
    except ConfigError as error:
        raise ArtifactError(
            f"The program {source} that {folder} was compiled from cannot be loaded: {error.message}",
            hint="Say where it is now with --program module.py:program.",
        ) from error
    return load(folder, found)
