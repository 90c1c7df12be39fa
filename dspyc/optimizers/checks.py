"""Settings that several optimizers take, checked before anything is run."""

from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite
from numbers import Real
from typing import Any, get_args

import dspy

from ..compiler.budget import Budget
from ..compiler.ray_workers import Executor
from ..errors import ConfigError


def check_count(name: str, value: Any, *, least: int = 0) -> None:
    """Raises ConfigError unless `value` is a whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"`{name}` is {value!r}; a whole number from {least} is allowed.")


def check_number(name: str, value: Any) -> float | None:
    """`value`, None or a number that scores can be compared with, as Python's own; raises ConfigError where it is neither."""
    if value is None:
        return None
    if not isinstance(value, Real) or not isfinite(value):
        raise ConfigError(f"`{name}` is {value!r}; a finite number is allowed.")
    return float(value)


def check_teacher_settings(value: Any) -> None:
    """Raises ConfigError unless a teacher can run under `value`, DSPy settings by their names."""
    if value is None:
        return
    example = "teacher_settings={'lm': dspy.LM('openai/gpt-5')}"
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"`teacher_settings` is {value!r}; a dict of DSPy settings is allowed.", hint=f"For example {example}."
        )
    known = sorted(dspy.settings.config)
    for name in value:  # DSPy takes settings of any name, for programs that read their own: near misses are no such
        close = get_close_matches(str(name).lower(), known, n=1) if name not in known else []
        if close or not isinstance(name, str):
            raise ConfigError(
                f"`teacher_settings` names {name!r}; DSPy's settings are {', '.join(known)}.",
                hint=f"Did you mean `{close[0]}`? A setting of your own has to be in dspy.configure first."
                if close
                else f"For example {example}.",
            )
    for name, kind, allowed in (("lm", dspy.BaseLM, "dspy.LM"), ("adapter", dspy.Adapter, "dspy.Adapter")):
        given = value.get(name)
        if given is not None and not isinstance(given, kind):
            written = f"dspy.LM({given!r})" if isinstance(given, str) and name == "lm" else f"{allowed}(...)"
            raise ConfigError(
                f"`teacher_settings[{name!r}]` is {given!r}; a {allowed} is allowed.",
                hint=f"For example teacher_settings={{{name!r}: {written}}}.",
            )


def check_fit(value: Any) -> None:
    """Raises ConfigError unless `value` can say what prompts have to fit."""
    if value is not None and not isinstance(value, bool):
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


def check_threads(num_threads: int | None) -> int:
    """The number of threads to run: DSPy's own setting where none is given.

    Raises:
        ConfigError: It is not a positive whole number.
    """
    number = num_threads if num_threads is not None else (dspy.settings.num_threads or 8)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"`num_threads` is {number!r}; a whole number from 1 is allowed.")
    return number


def check_one_source(teacher: Any, traces: Any) -> None:
    """Raises ConfigError where a teacher and recorded traces were both passed."""
    if teacher is not None and traces is not None:
        raise ConfigError("`teacher` and `traces` both say what to learn from; pass one of them.")


def errors_allowed(max_errors: int | None) -> int:
    """The number of failed runs that stops a compile: DSPy's own setting where none is given."""
    allowed: int = max_errors if max_errors is not None else dspy.settings.max_errors
    return allowed
