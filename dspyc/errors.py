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
│   └── UnfinishedError a job that takes longer than its `timeout`, and goes on
├── RegressionError    the compiled program is worse, and `on_regression="raise"`
└── ArtifactError      a saved program that cannot be written, read or trusted
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any


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
    """A fault that may pass. `retry_after`: the seconds that the provider asks to wait, where it does. `borne`: the seconds for
    which it was waited out already."""

    retry_after: float | None = None
    borne: float = 0.0


class TrainingError(DspycError):
    """A training run that cannot start or go on."""


class UnfinishedError(TrainingError):
    """A provider's job that takes longer than its `timeout`, and goes on: it may be waited for again."""


class RegressionError(DspycError):
    """The compiled program is worse than the student, and `on_regression="raise"`."""


class ArtifactError(DspycError):
    """A saved program that cannot be written, read or trusted."""


# The one list of names under which a secret stands: of settings, of headers' neighbours, of environment variables. What
# ends in `_env` names a variable. Tokens and keys in the plural are counted more often than kept secret (`max_tokens`), so
# there it takes another word, or the capitals of an environment variable.
_SECRET_NAME = re.compile(
    r"(?!.*_(?:env|ENV)$)(?:.*(?:(?<!MAX_)TOKENS$|KEYS$)"
    r"|(?i:.*(?:(?:key|token)$|secret|passw(?:or)?d|passphrase|credential|header|authorization|(?:^|(?<=[_-]))auth$"
    r"|(?:api|access|private)[_-]?key|(?:api|access|auth|refresh|bearer|session|hub|hf)[_-]?tokens"
    r"|token[_-](?:provider|file))))"
)
# Words with hyphens are no key, though they begin as one does: "hf-training-datasets". A key has a long part without hyphens,
# or one of letters and digits.
_KEY_PART = r"[A-Za-z0-9]{16}|(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{8}"
_SECRET_SHAPE = re.compile(
    rf"\b(?:sk|pk|rk|hf|ghp|gsk|xai|dapi|fw)[-_](?=[A-Za-z0-9_-]*?(?:{_KEY_PART}))[A-Za-z0-9_-]{{12,}}"
    r"|\bdapi[0-9a-f]{32}\b|\bAKIA[0-9A-Z]{16}\b|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
)
_USER = re.compile(r"(?<=://)[^/?#\s]+@")  # of an address: https://user:password@host
_QUERY = re.compile(r"(?<=[?&])([^=&#\s]+)=[^&#\s]*&?")


def is_secret_name(name: object) -> bool:
    """Whether what stands under this name is a secret: `OPENAI_API_KEY`, `hub_token`, `extra_headers`; not `max_tokens`."""
    return isinstance(name, str) and _SECRET_NAME.match(name) is not None


def has_secret(value: Any) -> bool:
    """Whether a setting holds a secret, at any depth: under such a name, or in an address."""
    if isinstance(value, Mapping):
        return any(is_secret_name(name) or has_secret(inner) for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return any(map(has_secret, value))
    return isinstance(value, str) and public_address(value) != value


def public_address(text: str) -> str:
    """`text`, in which any address is without user information and without parameters whose names say that they are secret."""
    if "://" not in text:
        return text
    found = _QUERY.sub(lambda part: "" if is_secret_name(part[1]) else part[0], _USER.sub("", text))
    return found if found == text else found.rstrip("?&")


def public(value: Any, hidden: Callable[[object], bool] = is_secret_name) -> Any:
    """Settings without what is secret, at any depth: entries whose names are `hidden`, and parts of addresses.

    The properties of a JSON schema keep their names: a field called `key` says nothing about a key.
    """
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if not hidden(k)}
        return {k: _properties(v, hidden) if k == "properties" else public(v, hidden) for k, v in kept.items()}
    if isinstance(value, (list, tuple)):
        inner = [public(item, hidden) for item in value]
        return tuple(inner) if type(value) is tuple else inner
    return public_address(value) if isinstance(value, str) and not isinstance(value, Enum) else value


def _properties(value: Any, hidden: Callable[[object], bool]) -> Any:
    """`public` of what stands under `properties`, which is a schema's where every entry is a schema."""
    if isinstance(value, Mapping) and all(isinstance(schema, (Mapping, bool)) for schema in value.values()):
        return {name: public(schema, hidden) for name, schema in value.items()}
    return public(value, hidden)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the secrets of this environment, those given, users in addresses, and what is shaped like a key."""
    named = (v.strip() for name, v in os.environ.items() if is_secret_name(name))
    found = {v for v in named if len(v) >= 8}
    for secret in sorted(found | {s for s in secrets if len(s) >= 8}, key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    return _SECRET_SHAPE.sub("[secret]", _USER.sub("[secret]@", text))


def _rebuild(kind: type[DspycError], message: str, hint: str) -> DspycError:
    return kind(message, hint=hint)
