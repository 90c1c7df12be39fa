"""What a callable does, as far as can be seen, as JSON: two that are equal here are taken for the same in every process.

code_key(metric)       a function, a method, a functools.partial or an object with __call__
class_key(Program)     the methods of a class that a user wrote
held(value)            what code works with

Seen are a function's source, its defaults, what it closes over, and what it reads of its own module: constants, functions,
classes and DSPy's programs, in their turn; of an object what it holds. Not seen is what other modules do, nor files, models and
the network. What is described once is named from then on, so programs may hold their own methods. A list, dict or set of
a module is what it was when it was first seen: a program may keep its memory in one.
"""

import dis
import functools
import inspect
import threading
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any

import dspy
from pydantic import BaseModel

from .fingerprints import is_secret, public, signature_fingerprint, stable, type_key
from .source import source

_DEEPEST = 8
_CACHED = functools._lru_cache_wrapper  # what functools.cache makes of a function
_CHANGING = (list, dict, set)
_DATA = (bool, int, float, str, tuple, frozenset, functools.partial, *_CHANGING)
_LIBRARIES = ("dspy.", "dspyc.", "builtins", "functools", "pydantic.")


def code_key(value: Any) -> Any:
    """JSON that changes with what calling `value` does."""
    return _Reading().code(value)


def class_key(kind: type) -> Any:
    """A class by its name and methods, with those that it inherits from classes that a user wrote."""
    return _Reading().kind(kind)


def held(value: Any) -> Any:
    """A value that code works with: plain data, enums, LMs, programs and callables as they are, anything else by its type."""
    return _Reading().held(value)


class _Reading:
    """One description under way. A function, class or object is described where it is met first."""

    def __init__(self) -> None:
        self._met: dict[int, Any] = {}  # kept, or another object could get the number

    def code(self, value: Any) -> Any:
        if isinstance(value, functools.partial):
            return ["partial", self.code(value.func), self.held(value.args), self.held(value.keywords)]
        if isinstance(value, types.MethodType):
            return ["method", self.code(value.__func__), self._object(value.__self__)]
        if isinstance(value, dspy.Tool):
            return self.code(value.func)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self.kind(value)
        if isinstance(value, _CACHED):
            return self.code(value.__wrapped__)
        return _name(value) if inspect.isroutine(value) else self._object(value)

    def kind(self, kind: type) -> Any:
        """A class."""
        if self._is_met(kind):
            return _name(kind)
        if issubclass(kind, dspy.Signature):
            return [_name(kind), signature_fingerprint(kind)]
        shape = type_key(kind) if issubclass(kind, (BaseModel, Enum)) else None
        written = [base for base in kind.__mro__ if base is not object and not _is_of_a_library(base)]
        return [_name(kind), shape, [self._methods(base) for base in written]]

    def held(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, (bool, int, float, str, Enum, dspy.BaseLM)):
            return stable(value)
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial, _CACHED, dspy.Tool)):
            return self.code(value)
        if isinstance(value, dspy.Module):
            return self._object(value)
        if isinstance(value, type) and issubclass(value, dspy.Signature):
            return self.kind(value)
        if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of numpy's
            return stable(value.item())
        if depth < _DEEPEST and isinstance(value, Mapping):
            pairs = [[self.held(k, depth + 1), self.held(v, depth + 1)] for k, v in value.items() if not is_secret(k)]
            return ["map", sorted(pairs, key=repr)]
        if depth < _DEEPEST and isinstance(value, (list, tuple)):
            return [self.held(item, depth + 1) for item in value]
        if depth < _DEEPEST and isinstance(value, (set, frozenset)):
            ordered = sorted(value, key=lambda item: repr(stable(item)))  # who is described first must not change
            return ["set", sorted((self.held(item, depth + 1) for item in ordered), key=repr)]
        return _name(type(value))

    def _is_met(self, value: Any) -> bool:
        """Whether it was met before; from now on it was."""
        if id(value) in self._met:
            return True
        self._met[id(value)] = value
        return False

    def _object(self, value: Any) -> Any:
        if isinstance(value, type):
            return self.kind(value)
        if isinstance(value, types.ModuleType):
            return _name(value)
        if self._is_met(value):
            return _name(type(value))
        if isinstance(value, dspy.Predict):
            return [self.kind(type(value)), _predictor_key(value)]
        state = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
        if not isinstance(value, dspy.Module):
            return [self.kind(type(value)), self.held(state)]
        inner = [[name, _predictor_key(predictor)] for name, predictor in value.named_predictors()]
        rest = {k: v for k, v in state.items() if k not in _OF_DSPY and not isinstance(v, dspy.Module)}
        return [self.kind(type(value)), inner, self.held(rest)]

    def _function(self, function: types.FunctionType) -> Any:
        if _is_of_a_library(function) or self._is_met(function):
            return _name(function)
        closed = [_contents(cell) for cell in function.__closure__ or ()]
        return [
            _name(function),
            source(function),
            self.held([function.__defaults__, function.__kwdefaults__, closed]),
            [[name, self._of_module(value)] for name, value in _reads(function)],
        ]

    def _of_module(self, value: Any) -> Any:
        if isinstance(value, _CHANGING):
            return _when_first_seen(value)
        return self.kind(value) if isinstance(value, type) else self.held(value)

    def _methods(self, kind: type) -> list[Any]:
        found = []
        for name, value in sorted(vars(kind).items()):
            # of static and class methods, and of properties
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(function, (types.FunctionType, _CACHED)):
                found.append([name, self.code(function)])
            elif not name.startswith("__") and isinstance(value, _DATA):
                found.append([name, self.held(value)])
        return found


_OF_DSPY = ("history", "callbacks")  # of every module


def _predictor_key(predictor: dspy.Predict) -> list[Any]:
    asks = signature_fingerprint(predictor.signature)
    return [asks, stable(predictor.demos), stable(public(predictor.config)), stable(predictor.lm)]


_first: dict[int, tuple[Any, Any]] = {}  # a module's lists, dicts and sets with what they held; kept, as in `_Reading`
_first_lock = threading.RLock()
_MOST_KEPT = 64


def _when_first_seen(value: Any) -> Any:
    with _first_lock:
        if id(value) not in _first:
            _first[id(value)] = (value, _name(type(value)))  # for functions in it that read it
            _first[id(value)] = (value, held(value))
            while len(_first) > _MOST_KEPT:
                del _first[next(iter(_first))]
        return _first[id(value)][1]


def _reads(function: types.FunctionType) -> list[tuple[str, Any]]:
    """What a function reads of its own module, but for what it writes there itself, such as a counter."""
    read, written = _names(function.__code__)
    named = ((name, function.__globals__.get(name)) for name in sorted(read - written))
    return [(name, value) for name, value in named if _is_seen(value, function)]


def _is_seen(value: Any, function: types.FunctionType) -> bool:
    if isinstance(value, (*_DATA, dspy.BaseLM, dspy.Module)):
        return True
    beside = value.__wrapped__ if isinstance(value, _CACHED) else value
    return isinstance(beside, (types.FunctionType, type)) and beside.__module__ == function.__module__


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names that code reads of its module (or as attributes), and those that it sets there."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    written = {
        str(step.argval) for step in dis.get_instructions(code) if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
    }
    read = frozenset(code.co_names).union(*(names for names, _ in inner))
    return read, frozenset(written).union(*(names for _, names in inner))


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _is_of_a_library(value: Any) -> bool:
    module = str(getattr(value, "__module__", ""))
    return f"{module}.".startswith(_LIBRARIES)


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
