"""Settings that several optimizers take, checked before anything is run."""

from typing import Any, get_args

from ..compiler.budget import Budget
from ..compiler.ray_workers import Executor
from ..errors import ConfigError


def check_count(name: str, value: Any, *, least: int = 0) -> None:
    """Raises ConfigError unless `value` is a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"`{name}` is {value!r}; a whole number from {least} is allowed.")


def check_fit(value: Any) -> None:
    """Raises ConfigError unless `value` can say what prompts have to fit."""
    if not isinstance(value, bool):
        check_count("fit_context", value, least=1)


def check_limits(max_errors: Any, budget: Any = None) -> None:
    """Raises ConfigError unless these can end a compile early; None leaves `max_errors` to DSPy, and spending unlimited."""
    if max_errors is not None:
        check_count("max_errors", max_errors, least=1)
    if budget is not None and not isinstance(budget, Budget):
        raise ConfigError(
            f"`budget` is {budget!r}; a dspyc.Budget is allowed.", hint="For example dspyc.Budget(usd=5)."
        )


def check_executor(value: Any) -> None:
    """Raises ConfigError unless `value` names who makes requests."""
    if value not in get_args(Executor):
        raise ConfigError(f"`executor` is {value!r}; {' and '.join(map(repr, get_args(Executor)))} are allowed.")


def check_share(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is a part of the examples that leaves some over."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"`{name}` is {value!r}; a share from 0 up to, not including, 1 is allowed.")
