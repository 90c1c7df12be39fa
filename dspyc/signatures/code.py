"""What a callable does, as far as can be seen, as JSON: two that are equal here are taken for the same in every process.

code_key(metric)       a function, a method, a functools.partial or an object with __call__
class_key(Program)     the methods of a class that a user wrote

Seen are a function's source, its defaults, what it closes over, and the constants and functions of its own module that it
reads, in their turn; of an object what it holds. Not seen is what other modules do, nor files, models and the network.
"""

import functools
import hashlib
import inspect
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any

import dspy

from .fingerprints import is_secret, stable

_DEEPEST = 8
_DATA = (bool, int, float, str, list, tuple, dict, set, frozenset, functools.partial)
_LIBRARIES = ("dspy.", "dspyc.", "builtins", "functools", "pydantic.")


def code_key(value: Any, seen: frozenset[Any] = frozenset()) -> Any:
    """JSON that changes with what calling `value` does. `seen` are the functions that are being described already."""
    if isinstance(value, functools.partial):
        return ["partial", code_key(value.func, seen), held(value.args, seen), held(value.keywords, seen)]
    if isinstance(value, types.MethodType):
        return ["method", code_key(value.__func__, seen), _state(value.__self__, seen)]
    if isinstance(value, dspy.Tool):
        return code_key(value.func, seen)
    if isinstance(value, types.FunctionType):
        return _function_key(value, seen)
    if isinstance(value, type):
        return class_key(value, seen)
    if inspect.isroutine(value):
        return _name(value)
    return [class_key(type(value), seen), _state(value, seen)]


def class_key(kind: type, seen: frozenset[Any] = frozenset()) -> list[Any]:
    """A class by its name and methods, with those that it inherits from classes that a user wrote."""
    written = [base for base in kind.__mro__ if base is not object and not _is_of_a_library(base)]
    if kind in seen:
        return [_name(kind)]
    return [_name(kind), [_methods(base, seen | {kind}) for base in written]]


def held(value: Any, seen: frozenset[Any] = frozenset(), depth: int = 0) -> Any:
    """A value that code works with: plain data, enums, LMs and callables as they are, anything else by its type."""
    if value is None or isinstance(value, (bool, int, float, str, Enum, dspy.BaseLM)):
        return stable(value)
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial, dspy.Tool)):
        return code_key(value, seen)
    if depth < _DEEPEST and isinstance(value, Mapping):
        pairs = [[held(k, seen, depth + 1), held(v, seen, depth + 1)] for k, v in value.items() if not is_secret(k)]
        return ["map", sorted(pairs, key=repr)]
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        return [held(item, seen, depth + 1) for item in value]
    if depth < _DEEPEST and isinstance(value, (set, frozenset)):
        return ["set", sorted((held(item, seen, depth + 1) for item in value), key=repr)]
    return _name(type(value))


def _function_key(function: types.FunctionType, seen: frozenset[Any]) -> Any:
    function = inspect.unwrap(function)
    if function in seen or not isinstance(function, types.FunctionType) or _is_of_a_library(function):
        return _name(function)
    seen = seen | {function}
    closed = [_contents(cell) for cell in function.__closure__ or ()]
    return [
        _name(function),
        _source(function),
        held([function.__defaults__, function.__kwdefaults__, closed], seen),
        [[name, held(value, seen)] for name, value in _reads(function, seen)],
    ]


def _reads(function: types.FunctionType, seen: frozenset[Any]) -> list[tuple[str, Any]]:
    """The constants and functions of its own module that a function reads."""
    named = ((name, function.__globals__.get(name)) for name in sorted(_names(function.__code__)))
    return [(name, value) for name, value in named if isinstance(value, _DATA) or _is_beside(value, function)]


def _is_beside(value: Any, function: types.FunctionType) -> bool:
    return isinstance(value, types.FunctionType) and value.__module__ == function.__module__


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _source(function: types.FunctionType) -> str:
    """Its text; the digest of its byte code where there is none, and for a lambda, whose text is that of the whole line."""
    code = function.__code__
    try:
        if function.__name__ != "<lambda>":
            return inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt
        pass
    return hashlib.sha256(code.co_code + repr([code.co_names, *map(_constant, code.co_consts)]).encode()).hexdigest()


def _constant(constant: Any) -> Any:
    return [_constant(c) for c in constant.co_consts] if isinstance(constant, types.CodeType) else constant


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _methods(kind: type, seen: frozenset[Any]) -> list[Any]:
    found = []
    for name, value in sorted(vars(kind).items()):
        function = getattr(
            value, "__func__", getattr(value, "fget", value)
        )  # of static and class methods, and properties
        if isinstance(function, types.FunctionType):
            found.append([name, code_key(function, seen)])
        elif not name.startswith("__") and isinstance(value, _DATA):
            found.append([name, held(value, seen)])
    return found


def _state(value: Any, seen: frozenset[Any]) -> Any:
    if isinstance(value, (type, types.ModuleType)):
        return _name(value)
    return held({k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}, seen)


def _is_of_a_library(value: Any) -> bool:
    module = str(getattr(value, "__module__", ""))
    return f"{module}.".startswith(_LIBRARIES)


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
