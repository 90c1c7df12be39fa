"""Programs as their predictors: found by name, copied without touching the original, identified, compared.

predictors(program)                  {"classify": Predict(...), "steps[0].predict": Predict(...)}
copy_program(program)                a deep copy that asks the same language models
program_fingerprint(program)         16 hex digits, the same in every process
check_equivalent(student, teacher)   ProgramError unless the teacher's runs can train the student
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import dspy
from dspy.predict.parameter import Parameter

from ..errors import ProgramError
from .adapted import adapter_of
from .code import code_key, settings_key
from .digests import fingerprint
from .fingerprints import adapter_key, identifying, lm_key, signature_fingerprint, stable, type_key
from .first_seen import carry_over
from .mixins import written_class
from .nearest import choice_key
from .values import type_name


def predictors(program: dspy.Module, *, frozen: bool = True) -> dict[str, dspy.Predict]:
    """Every `dspy.Predict` of a program by DSPy's name for it, in DSPy's order; one that is shared appears once.

    DSPy leaves out those of compiled sub-modules, which no optimizer may change. They are here too unless
    `frozen=False`: a run passes through them, and an artifact has to hold them.

    Raises:
        ProgramError: `program` is no `dspy.Module`.
    """
    _check_module(program, "The program")
    return {name: p for name, p in _parameters(program, frozen, set(), set()) if isinstance(p, dspy.Predict)}


def copy_program(program: dspy.Module, lms: Callable[[dspy.BaseLM], dspy.BaseLM] | None = None) -> dspy.Module:
    """A deep copy that shares language models (so engines, clients and their counters) with the original.

    What cannot be copied, such as a lock or an open connection, is shared too; predictors never are. `lms`, if given, says
    what the copy has in place of each LM, wherever a module, an adapter, a list or a dict in it holds one.

    Raises:
        ProgramError: `program` is no `dspy.Module`.
    """
    _check_module(program, "The program")
    memo: dict[int, Any] = {}
    for lm in _language_models(program, set()):
        memo.setdefault(id(lm), lm if lms is None or not isinstance(lm, dspy.BaseLM) else lms(lm))
    attempt = dict(memo)
    try:
        copied = copy.deepcopy(program, attempt)
    except Exception:  # any attribute may refuse to be copied, in any way
        copied, attempt = _copy(program, memo), memo
    carry_over(attempt)
    return copied


def program_fingerprint(program: dspy.Module) -> str:
    """Names a program: its class and code, plain settings and predictors with signatures, demos, config, adapters and LMs.

    A predictor without an LM or adapter of its own counts with DSPy's present setting: that is what it would run with.
    """
    named = [[name, *_predictor_key(predictor)] for name, predictor in predictors(program).items()]
    return fingerprint([_class_path(program), _settings(program, set()), named])


def check_student(student: Any) -> None:
    """Whether a program can be compiled: a module with predictors, each with a language model of its own or DSPy's.

    Raises:
        ProgramError: It names the predictors and says what to set.
    """
    _check_predictors(student, "student")
    if not predictors(student, frozen=False):
        raise ProgramError(
            f"All predictors of the student {type(student).__name__} are in compiled sub-modules, which stay as they are.",
            hint="Set `_compiled = False` on the sub-modules that may be trained.",
        )
    lms = {name: p.lm or dspy.settings.lm for name, p in predictors(student).items()}
    missing = [name for name, lm in lms.items() if lm is None]
    if missing:
        trainable = [name for name in missing if name in predictors(student, frozen=False)]
        raise ProgramError(
            f"The student's predictor(s) {_listed(missing)} have no language model.",
            hint="Set the model to be trained: student.set_lm(dspyc.LocalLM('dspyc/tiny'))."
            if trainable
            else "They are in compiled sub-modules, which student.set_lm does not reach: set their `lm` one by one.",
        )
    for name, lm in lms.items():
        if not isinstance(lm, dspy.BaseLM):
            raise ProgramError(
                f"The language model of the student's predictor `{name}` is a {type(lm).__name__}; a dspy.LM is allowed.",
                hint="Set the model to be trained: student.set_lm(dspyc.LocalLM('dspyc/tiny')).",
            )


def check_equivalent(student: Any, teacher: Any) -> None:
    """Whether the teacher's steps can teach the student: the predictors that may be trained, with the same fields.

    Instructions, descriptions, demos, language models and the order of the fields may differ, and the teacher may have
    predictors of its own.

    Raises:
        ProgramError: It names the predictor and the difference.
    """
    _check_predictors(student, "student")
    _check_predictors(teacher, "teacher")
    theirs = predictors(teacher)
    for name, mine in predictors(student, frozen=False).items():
        if name not in theirs:
            raise ProgramError(
                f"The teacher has no predictor `{name}`; it has {_listed(sorted(theirs))}.",
                hint="A teacher needs the student's predictors under the same names: build it from the same class.",
            )
        _check_fields(name, mine.signature, theirs[name].signature)


def _check_fields(name: str, mine: Any, theirs: Any) -> None:
    for kind in ("input", "output"):
        ours, other = getattr(mine, f"{kind}_fields"), getattr(theirs, f"{kind}_fields")
        differences = [f"lacks the {kind} field `{f}`" for f in ours if f not in other]
        differences += [f"has an {kind} field `{f}` besides" for f in other if f not in ours]
        differences += [
            f"declares the {kind} field `{f}` as {type_name(other[f].annotation)}, "
            f"the student as {type_name(ours[f].annotation)}"
            for f in ours
            if f in other and type_key(ours[f].annotation) != type_key(other[f].annotation)
        ]
        if differences:
            raise ProgramError(
                f"Predictor `{name}` of the teacher is not the student's: it {'; it '.join(differences)}.",
                hint="Give both the same fields of the same types; instructions and demos may differ.",
            )


def _check_module(program: Any, who: str) -> None:
    if not isinstance(program, dspy.Module):
        kind = f"the class {program.__name__}" if isinstance(program, type) else f"a {type(program).__name__}"
        hint = "Make an instance of it first." if isinstance(program, type) else "Wrap it in a dspy.Module."
        raise ProgramError(f"{who} is {kind}; a dspy.Module is allowed.", hint=hint)


def _check_predictors(program: Any, role: str) -> None:
    _check_module(program, f"The {role}")
    if not predictors(program):
        raise ProgramError(
            f"The {role} {type(program).__name__} has no predictors.",
            hint="Set a dspy.Predict or another module as an attribute in __init__.",
        )


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _parameters(
    module: dspy.Module, frozen: bool, seen: set[int], entered: set[int]
) -> Iterator[tuple[str, Parameter]]:
    """DSPy's `named_parameters`, frozen ones included. `seen` and `entered` are the ids of what was met before."""
    entered.add(id(module))
    if isinstance(module, Parameter) and id(module) not in seen:
        seen.add(id(module))
        yield "self", module
    for path, item in _members(module):
        if isinstance(item, Parameter):
            if id(item) not in seen:
                seen.add(id(item))
                yield path, item
        elif isinstance(item, dspy.Module) and id(item) not in entered and (frozen or not item._compiled):
            for inner, parameter in _parameters(item, frozen, seen, entered):
                yield f"{path}.{inner}", parameter


def _members(module: dspy.Module) -> Iterator[tuple[str, Any]]:
    """A module's attributes and the items of its lists and dicts, by DSPy's names for them."""
    for name, value in list(vars(module).items()):
        if isinstance(value, (list, tuple)):
            yield from ((f"{name}[{i}]", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            yield from ((f"{name}['{key}']", item) for key, item in value.items())
        else:
            yield name, value


_NOT_STRUCTURE = ("history", "callbacks", "traces", "train", "demos")


def _language_models(value: Any, seen: set[int]) -> Iterator[Any]:
    """LMs that modules hold, as their predictors' or in any attribute, list or dict, adapters' own included."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dspy.BaseLM):
        yield value
    elif isinstance(value, (dspy.Module, dspy.Adapter)):
        for name, item in list(vars(value).items()):
            if name == "lm" and item is not None:
                yield item
            elif name not in _NOT_STRUCTURE:
                yield from _language_models(item, seen)
    elif isinstance(value, (list, tuple, dict)):
        for item in list(value.values() if isinstance(value, dict) else value):
            yield from _language_models(item, seen)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy, attribute by attribute, that shares a part only where that part cannot be copied."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, dspy.Module):
        made = value.__class__.__new__(value.__class__)
        memo[id(value)] = made
        made.__setstate__({name: _copy(item, memo) for name, item in value.__getstate__().items()})
        return made
    attempt = dict(memo)  # a copy that fails half-way leaves halves in its memo
    try:
        copied = copy.deepcopy(value, attempt)
    except Exception:  # see copy_program
        return _copy_parts(value, memo)
    memo.update(attempt)
    return copied


def _copy_parts(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) is dict:
        return {key: _copy(item, memo) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copy(item, memo) for item in value)
    return value


def _predictor_key(predictor: dspy.Predict) -> list[Any]:
    signature, lm = predictor.signature, predictor.lm or dspy.settings.lm
    kind = written_class(type(predictor))
    return [
        [_class_path(predictor), code_key(kind) if kind is dspy.Predict else settings_key(predictor, kind)],
        [signature.__name__, signature_fingerprint(signature)],
        [stable(demo) for demo in predictor.demos],
        stable(identifying(predictor.config)),
        stable(predictor.fields),
        adapter_key(adapter_of(predictor)),
        None if lm is None else lm_key(lm),
        *choice_key(predictor),
    ]


def _class_path(module: dspy.Module) -> str:
    """Of the class that the user wrote."""
    kind = written_class(type(module))
    return f"{kind.__module__}:{kind.__qualname__}"


def _settings(module: Any, seen: set[int]) -> list[Any]:
    """What the user's class does, and what a module and its sub-modules are set to, such as an agent's `max_iters` and its
    tools."""
    if id(module) in seen or isinstance(module, dspy.Predict):
        return []
    seen.add(id(module))
    inner = [
        [path, _class_path(item), _settings(item, seen)]
        for path, item in _members(module)
        if isinstance(item, dspy.Module)
    ]
    return [settings_key(module, written_class(type(module))), inner]
