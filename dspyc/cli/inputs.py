"""Which of a program's fields are its inputs."""

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    import dspy


def listed(names: str | None) -> list[str]:
    """The names in `a,b`."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def chosen_inputs(
    program: "dspy.Module", given: str | None, rows: Iterable[Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """The inputs that are `given` as `a,b`, or else those of `program` that rows have; and which of them no row may lack.

    Raises:
        ConfigError: Nothing in the rows is an input.
    """
    if names := listed(given):
        return names, names
    return input_names(program, set().union(*rows)), required_inputs(program)


def input_names(program: "dspy.Module", fields: Collection[str]) -> list[str]:
    """The inputs of `program` among `fields`, the names that the rows have.

    They are the parameters that its `forward` names; where it names none, as `dspy.Predict` does not, the input fields of
    its predictors that no predictor answers.

    Raises:
        ConfigError: Nothing in `fields` is an input.
    """
    expected = expected_inputs(program)
    found = [name for name in expected if name in fields]
    if not found:
        raise ConfigError(
            f"None of the fields {sorted(fields)} is an input of the program, which takes {expected}.",
            hint="Name the inputs with --inputs a,b.",
        )
    return found


def expected_inputs(program: "dspy.Module") -> list[str]:
    """All inputs that `program` can take, in its own order; empty where it does not say."""
    named = [p.name for p in _parameters(program) if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if named:
        return named
    from ..signatures import predictors

    signatures = [predictor.signature for predictor in predictors(program).values()]
    answered = {name for signature in signatures for name in signature.output_fields}
    return list(dict.fromkeys(n for s in signatures for n in s.input_fields if n not in answered))


def required_inputs(program: "dspy.Module") -> list[str]:
    """The inputs that `forward` has no default for; empty where it does not say."""
    named = [p for p in _parameters(program) if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [p.name for p in named if p.default is p.empty]


def _parameters(program: "dspy.Module") -> list[inspect.Parameter]:
    """Those of `forward` but `self`; read from the class, since DSPy warns of a module's own `forward`."""
    return list(inspect.signature(type(program).forward).parameters.values())[1:]
