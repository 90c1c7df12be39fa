"""What may stand in `train_kwargs`: names that the provider has, and never a secret, for settings are kept and shown."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import ConfigError, is_secret_name, redact

LIMITS = ("max_usd", "timeout")  # USD and seconds, of any job

_COUNTS = re.compile(r"(^|_)(max|min|num|n|total|trained)(_.*)?_?tokens$")  # of tokens, which are no secrets


def refuse_secrets(train_kwargs: Mapping[str, Any], credentials: str) -> None:
    """Raises ConfigError where a setting, at any depth, is a secret by its name or by its look; it names the setting only."""
    for path, value in _leaves(train_kwargs, ""):
        name = re.split(r"[.\[]", path)[-1] if path else ""
        named = is_secret_name(name) and not _COUNTS.search(name) and value is not None
        if named or (isinstance(value, str) and redact(value) != value):
            raise ConfigError(
                f"`{path}` in train_kwargs is a secret by its name or look: settings are kept on the disk, and in artifacts.",
                hint=credentials,
            )


def check_names(train_kwargs: Mapping[str, Any], allowed: Sequence[str], provider: str) -> None:
    """Raises ConfigError where a setting has a name that the provider does not know; it says which one may be meant."""
    for name in train_kwargs:
        if name in allowed:
            continue
        near = difflib.get_close_matches(str(name), allowed, n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{provider} has no setting {name!r}.{meant}", hint=f"It has {', '.join(sorted(allowed))}.")


def check_job_limits(train_kwargs: Mapping[str, Any]) -> None:
    """Raises ConfigError where one of `LIMITS` is no number from 0 up."""
    for name in LIMITS:
        value = train_kwargs.get(name)
        if value is not None and not (_is_number(value) and value >= 0):
            raise ConfigError(f"`{name}` is {value!r}.", hint="Use a number from 0 up, or leave it out.")


def check_whole_setting(settings: Mapping[str, Any], name: str, least: int = 1) -> None:
    """Raises ConfigError where a setting is no whole number of at least `least`; None stands for one that is left out."""
    value = settings.get(name)
    if value is not None and not (isinstance(value, int) and _is_number(value) and value >= least):
        raise ConfigError(f"`{name}` is {value!r}.", hint=f"Use a whole number of at least {least}, or leave it out.")


def check_rate(settings: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError where a setting is no number above 0; None stands for one that is left out."""
    value = settings.get(name)
    if value is not None and not (_is_number(value) and 0 < value < math.inf):
        raise ConfigError(f"`{name}` is {value!r}.", hint="Use a number above 0, or leave it out.")


def check_mapping(settings: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError where a setting does not map names to values; None stands for one that is left out."""
    value = settings.get(name)
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise ConfigError(f"`{name}` is {value!r}.", hint="Use a dict with texts as its keys, or leave it out.")


def check_choice(settings: Mapping[str, Any], name: str, allowed: Sequence[str]) -> None:
    """Raises ConfigError where a setting is none of those allowed; None stands for one that is left out."""
    value = settings.get(name)
    if value is not None and value not in allowed:
        raise ConfigError(
            f"`{name}` is {value!r}.", hint=f"Use one of {', '.join(map(repr, allowed))}, or leave it out."
        )


def matched(
    settings: Mapping[str, Any], name: str, pattern: re.Pattern[str], form: str, why: str = ""
) -> re.Match[str]:
    """A required setting as the pattern reads it.

    Raises:
        ConfigError: There is none, or it has another form. It says `why` it is needed, and to pass it as `form`.
    """
    value = settings.get(name)
    found = pattern.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        arrived = f"There is no `{name}`" if value is None else f"`{name}` is {value!r}"
        raise ConfigError(f"{arrived}{why}.", hint=f"Pass it as {form}.")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of all that is not a container. `validation_data` holds rows, which are not settings."""
    if isinstance(value, Mapping):
        pair = {str(name).lower(): inner for name, inner in value.items()}
        if pair.keys() == {"key", "value"} and isinstance(pair["key"], str):  # as AWS writes tags
            yield path, pair["key"]
            value = {pair["key"]: pair["value"]}
        for name, inner in value.items():
            if not path and name == "validation_data":
                continue
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{i}]")
    else:
        yield path, value
