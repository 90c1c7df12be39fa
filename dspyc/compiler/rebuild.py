"""How an artifact's program comes back: its class by name, DSPy's own modules by their signature."""

import inspect
import types
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import dspy

from ..errors import ArtifactError
from ..signatures import predictors, signature_fingerprint
from ..signatures.importing import imported
from ..signatures.mixins import written_class

_BUILT_IN: dict[str, type[dspy.Module]] = {"Predict": dspy.Predict, "ChainOfThought": dspy.ChainOfThought}


def describe(program: dspy.Module) -> dict[str, Any]:
    """The program's class, and its signature as text where that is enough to make it again."""
    own = written_class(type(program))
    facts: dict[str, Any] = {"class": f"{own.__module__}:{own.__qualname__}", "module": None, "signature": None}
    for name, built_in in _BUILT_IN.items():
        if own is built_in and (text := _signature_text(name, program)):
            facts |= {"module": name, "signature": text}
    return facts


def make(facts: dict[str, Any], program: dspy.Module | Callable[[], dspy.Module] | None, path: Path) -> dspy.Module:
    """The given program, or a new one by what `describe` wrote.

    Raises:
        ArtifactError: It cannot be made; the message says how to pass one.
    """
    if isinstance(program, dspy.Module):
        return program
    if program is None and facts["module"]:
        return _BUILT_IN[facts["module"]](facts["signature"])
    maker = program if program is not None else _import(facts["class"], path)
    try:
        made = maker()
    except Exception as error:
        raise ArtifactError(f"Making the program of {path} by {maker!r} failed: {error}.", hint=_HINT) from error
    if not isinstance(made, dspy.Module):
        raise ArtifactError(f"{maker!r} made a {type(made).__name__}; a dspy.Module is needed.", hint=_HINT)
    return made


_HINT = "Pass it: dspyc.load(path, program=MyProgram())."


def _import(reference: str, path: Path) -> Callable[[], dspy.Module]:
    try:
        found = imported(reference)
    except ImportError as error:
        raise ArtifactError(
            f"The program class {reference} of {path} cannot be imported: {error}.", hint=_HINT
        ) from error
    if not (inspect.isclass(found) and issubclass(found, dspy.Module)):
        raise ArtifactError(f"{reference}, which {path} names, is no dspy.Module.", hint=_HINT)
    return found


def _signature_text(name: str, program: dspy.Module) -> str | None:
    """The signature in DSPy's string form, if a module made from it has the very same fields."""
    ((key, predictor),) = predictors(program).items()
    signature = predictor.signature
    if name == "ChainOfThought":
        signature = signature.delete("reasoning")
    try:
        inputs, outputs = (
            ", ".join(f"{field}: {_type_text(info.annotation)}" for field, info in fields.items())
            for fields in (signature.input_fields, signature.output_fields)
        )
        made = _BUILT_IN[name](f"{inputs} -> {outputs}")
        twin = predictors(made)[key]
        twin.signature = twin.signature.load_state(predictor.signature.dump_state())
    except Exception:  # a type that text cannot say: the artifact then asks for the program
        return None
    same = signature_fingerprint(twin.signature) == signature_fingerprint(predictor.signature)
    return f"{inputs} -> {outputs}" if same else None


def _type_text(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        if any(isinstance(a, Enum) for a in args):
            raise ValueError("an enum member has no text")
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin in (Union, types.UnionType):
        rest = [_type_text(a) for a in args if a is not type(None)]
        inner = rest[0] if len(rest) == 1 else f"Union[{', '.join(rest)}]"
        return f"Optional[{inner}]" if type(None) in args else inner
    if origin in (list, dict, tuple, set):
        return f"{origin.__name__}[{', '.join(map(_type_text, args))}]"
    if annotation in (str, int, float, bool, list, dict):
        return str(annotation.__name__)
    raise ValueError(f"{annotation!r} has no text")
