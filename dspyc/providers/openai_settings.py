"""What OpenAI's protocol lets an order say, checked before anything is sent, and written as its `method=`."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .settings import check_mapping

HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
METHODS = ("supervised", "dpo")
SETTINGS = (*HYPERPARAMETERS, "hyperparameters", "integrations", "metadata", "method", "seed", "suffix")

_RANGES: dict[str, tuple[type, float, float]] = {
    "n_epochs": (int, 1, 50),
    "batch_size": (int, 1, 256),
    "learning_rate_multiplier": (float, 0.0001, 10),
    "beta": (float, 0.0001, 2),
}
_LONGEST_SUFFIX = 64
_MOST_METADATA = 15  # one of the protocol's 16 is ours


def method_type(settings: Mapping[str, Any]) -> str:
    """ "supervised" or "dpo".

    Raises:
        ConfigError: Another method.
    """
    method = settings.get("method", "supervised")
    kind = method.get("type") if isinstance(method, Mapping) else method
    if kind not in METHODS:
        raise ConfigError(f"`method` is {method!r}.", hint=f"Use {' or '.join(map(repr, METHODS))}.")
    return str(kind)


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those given at the top, under `hyperparameters` or within `method`; nothing is sent that was not given.

    Raises:
        ConfigError: A name or value that the protocol does not have, or one name with two values.
    """
    kind, method = method_type(settings), settings.get("method")
    check_mapping(settings, "hyperparameters")
    inner = method if isinstance(method, Mapping) else {}
    for name in (kind, "hyperparameters"):
        check_mapping(inner, name)
        inner = inner.get(name) or {}
    found: dict[str, Any] = {}
    top = {name: settings[name] for name in HYPERPARAMETERS if name in settings}
    for group in (top, settings.get("hyperparameters") or {}, inner):
        for name, value in group.items():
            if found.setdefault(name, value) != value:
                raise ConfigError(f"`{name}` is both {found[name]!r} and {value!r}.", hint="Give it once.")
    for name, value in found.items():
        _check_hyperparameter(name, value, kind)
    return found


def method(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol's current form: `{"type": "supervised", "supervised": {"hyperparameters": {…}}}`."""
    kind = method_type(settings)
    return {"type": kind, kind: {"hyperparameters": hyperparameters(settings)}}


def check(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value that the server would refuse, or take for something else."""
    hyperparameters(settings)
    suffix, seed, metadata = settings.get("suffix"), settings.get("seed"), settings.get("metadata")
    if suffix is not None and not (isinstance(suffix, str) and 1 <= len(suffix) <= _LONGEST_SUFFIX):
        raise ConfigError(f"`suffix` is {suffix!r}.", hint=f"Use 1 to {_LONGEST_SUFFIX} characters.")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise ConfigError(f"`seed` is {seed!r}.", hint="Use a whole number.")
    if metadata is None:
        return
    texts = isinstance(metadata, Mapping) and all(isinstance(part, str) for item in metadata.items() for part in item)
    if not texts or len(metadata) > _MOST_METADATA:
        raise ConfigError(f"`metadata` is {metadata!r}.", hint=f"Use up to {_MOST_METADATA} names with texts.")


def _check_hyperparameter(name: str, value: Any, kind: str) -> None:
    if name not in _RANGES:
        raise ConfigError(f"There is no hyperparameter {name!r}.", hint=f"There are {', '.join(HYPERPARAMETERS)}.")
    if name == "beta" and kind != "dpo":
        raise ConfigError("`beta` belongs to method 'dpo'.", hint="Leave it out, or pass method='dpo'.")
    number, least, most = _RANGES[name]
    allowed = (int,) if number is int else (int, float)
    if value == "auto" or (isinstance(value, allowed) and not isinstance(value, bool) and least <= value <= most):
        return
    word = "whole number" if number is int else "number"
    raise ConfigError(f"`{name}` is {value!r}.", hint=f"Use 'auto' or a {word} from {least:g} to {most:g}.")
