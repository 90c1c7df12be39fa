"""Every error that dspyc raises, in one tree, each with what to do next.

DspycError
├── ConfigError        an argument or a setting that cannot be used
├── ProgramError       a program that cannot be compiled, or a teacher that is not its equal
├── RenderError        a call that cannot be written as a training row
├── DataError          examples or rows that cannot be used
├── BootstrapError     no good run, or more bad examples than `max_errors` allows
├── BudgetError        a limit that is reached: no further call may be paid for
├── LedgerError        a run folder that cannot be read or written
├── ModelError         weights that cannot be found, read or run
├── ProviderError      a provider that refuses, or that cannot be reached
│   └── TransientError a fault that may pass: a rate limit, a server's own error, a lost connection
├── TrainingError      a training run that cannot start or go on
├── RegressionError    the compiled program is worse, and `on_regression="raise"`
└── ArtifactError      a saved program that cannot be written, read or trusted
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class DspycError(Exception):
    """What arrived and what is allowed (`message`), and what to do next (`hint`)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = redact(message)
        self.hint = redact(hint)
        super().__init__(f"{self.message} {self.hint}".strip())

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint)


@contextmanager
def needing(packages: str, message: str) -> Iterator[None]:
    """Around imports of what may not be installed: there, a ConfigError with `message` and how pip installs `packages`."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(message, hint=f"pip install {packages}") from error


class ConfigError(DspycError):
    """An argument or a setting that cannot be used."""


class ProgramError(DspycError):
    """A program that cannot be compiled, or a teacher that is not its equal."""


class RenderError(DspycError):
    """A call that cannot be written as a training row."""


class DataError(DspycError):
    """Examples or rows that cannot be used."""


class BootstrapError(DspycError):
    """No good run, or more bad examples than `max_errors` allows."""


class BudgetError(DspycError):
    """A limit that is reached: no further call may be paid for."""


class LedgerError(DspycError):
    """A run folder that cannot be read or written."""


class ModelError(DspycError):
    """Weights that cannot be found, read or run."""


class ProviderError(DspycError):
    """A provider that refuses, or that cannot be reached."""


class TransientError(ProviderError):
    """A fault that may pass. `retry_after`: the seconds that the provider asks to wait, where it does."""

    retry_after: float | None = None


class TrainingError(DspycError):
    """A training run that cannot start or go on."""


class RegressionError(DspycError):
    """The compiled program is worse than the student, and `on_regression="raise"`."""


class ArtifactError(DspycError):
    """A saved program that cannot be written, read or trusted."""


_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)S?$")
_SECRET_SHAPE = re.compile(
    r"\b(?:sk|pk|rk|hf|ghp|gsk|xai|dapi|fw)[-_][A-Za-z0-9_-]{12,}|\bAKIA[0-9A-Z]{16}\b|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret, by its last word: `OPENAI_API_KEY`, `HF_TOKEN`."""
    return _SECRET_NAME.search(name.upper()) is not None


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the secrets of this environment, those given, and anything in the shape of a provider's key."""
    found = {v for name, v in os.environ.items() if is_secret_name(name) and len(v) >= 8}
    for secret in sorted(found | {s for s in secrets if len(s) >= 8}, key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    return _SECRET_SHAPE.sub("[secret]", text)


def _rebuild(kind: type[DspycError], message: str, hint: str) -> DspycError:
    return kind(message, hint=hint)
