"""SHA-256 sums of a folder's files, in the format of `sha256sum`, with a last line that guards the list itself."""

import hashlib
from pathlib import Path

from ..errors import ArtifactError
from ..files import sha256_of

NAME = "SHA256SUMS"
_SELF = "# the lines above: "


def write_sums(folder: Path) -> None:
    """Write the sums of every file under `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    lines = "".join(f"{sha256_of(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)
    (folder / NAME).write_text(f"{lines}{_SELF}{hashlib.sha256(lines.encode()).hexdigest()}\n", encoding="utf-8")


def check_sums(folder: Path) -> None:
    """Raises ArtifactError naming the file that is missing, was cut or was changed."""
    try:
        text = (folder / NAME).read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise ArtifactError(f"{folder} has no readable {NAME}: it is not a whole artifact.", hint=_HINT) from error
    lines, mark, own = text.rpartition(_SELF)
    if not mark or own != f"{hashlib.sha256(lines.encode()).hexdigest()}\n":
        raise ArtifactError(f"{folder / NAME} was cut or changed.", hint=_HINT)
    for line in lines.splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing from the artifact.", hint=_HINT)
        if sha256_of(path) != expected:
            raise ArtifactError(f"{path} was cut or changed: its checksum is not the one in {NAME}.", hint=_HINT)


_HINT = "Copy the artifact again from where it was made, or compile again: the same command resumes."
