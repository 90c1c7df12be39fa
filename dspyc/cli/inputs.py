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

    They are the input fields of the signature that it was made with; without one the parameters that its `forward` names;
    where it names none, the input fields of its predictors that no predictor answers.

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
    """The inputs of `program` as far as can be seen, in its own order."""
    if known := declared_inputs(program) or [p.name for p in _named(program)]:
        return known
    from ..signatures import predictors

    signatures = [predictor.signature for predictor in predictors(program).values()]
    answered = {name for signature in signatures for name in signature.output_fields}
    return list(dict.fromkeys(n for s in signatures for n in s.input_fields if n not in answered))


def required_inputs(program: "dspy.Module") -> list[str]:
    """The inputs that `forward` has no default for; empty where it does not say."""
    return [p.name for p in _named(program) if p.default is p.empty]


def declared_inputs(program: "dspy.Module") -> list[str]:
    """The input fields of the signature that a program, such as an agent, was made with and whose `forward` takes whatever
    it is given; empty where there is none."""
    import dspy

    made = program.predict if isinstance(program, dspy.ChainOfThought) else program
    return list(getattr(getattr(made, "signature", None), "input_fields", ())) if takes_any(program) else []


def takes_any(program: "dspy.Module") -> bool:
    """Whether `forward` takes inputs that it does not name."""
    return any(p.kind is p.VAR_KEYWORD for p in _parameters(program))


def _named(program: "dspy.Module") -> list[inspect.Parameter]:
    return [p for p in _parameters(program) if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _parameters(program: "dspy.Module") -> list[inspect.Parameter]:
    """Those of `forward` but `self`; read from the class, since DSPy warns of a module's own `forward`."""
    return list(inspect.signature(type(program).forward).parameters.values())[1:]
