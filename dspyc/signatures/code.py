"""What a callable does, as far as can be seen, as JSON: two that are equal here are taken for the same in every process.

code_key(metric)               a function, a method, a functools.partial or an object with __call__
settings_key(program, kind)    what a program does itself and is set to

Seen are a function's source, its defaults, what it closes over, and what it reads of its own module: constants, functions,
classes, objects and DSPy's programs, in their turn; of an object what it holds, private attributes only where they are
plain. Not seen is what other modules do, nor what libraries' objects hold, nor files, models and the network. What is
described once is named from then on, so programs may hold their own methods.

What changes while code runs is what it was when it was first seen: lists, dicts and sets that have no code in them, what
functions close over, and the attributes that methods other than `__init__` set.
"""

import dataclasses
import dis
import functools
import inspect
import operator
import re
import sys
import types
from collections.abc import Collection, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any, get_origin

import dspy
from pydantic import BaseModel

from .adapted import AdaptedMixin
from .digests import fingerprint
from .fingerprints import adapter_key, identifying, is_secret, signature_fingerprint, stable, type_key
from .first_seen import Noted, noted
from .mixins import Mixin, written_class
from .nearest import choice_key
from .source import source

_DEEPEST = 8
_CACHED = functools._lru_cache_wrapper  # what functools.cache makes of a function
_PLAIN = (bool, int, float, str, type(None))
_VALUES = (
    *_PLAIN,
    *(complex, bytes, range, Decimal, Fraction, date, time, timedelta, PurePath, re.Pattern, Enum, dspy.BaseLM),
    *(operator.attrgetter, operator.itemgetter, operator.methodcaller),
)
_CHANGING = (list, dict, set)
_HOLDING = (*_CHANGING, tuple, frozenset)
_LIBRARIES = ("dspy.", "dspyc.", "builtins", "functools", "pydantic.")
_MAKING = ("__init__", "__new__", "__post_init__", "__setstate__", "model_post_init")
_OF_DSPY = ("history", "callbacks", "_compiled", "fail_count")  # of modules: what runs leave there, and compiling
_OF_PREDICTORS = ("stage", "signature", "fields", "config", "lm", "traces", "train", "demos")  # DSPy's own state
_OF_MIXINS = ("adapter", "nearest")  # dspyc's
_SECRET = re.compile(r"\S{16}|://|:\d\d")  # a value that may be a key or an address


def code_key(value: Any) -> Any:
    """JSON that changes with what calling `value` does."""
    return _Reading(value).code(value)


def settings_key(module: dspy.Module, kind: type) -> Any:
    """JSON that changes with what a module of the class `kind` does and is set to; its sub-modules aside, but for a
    predictor's."""
    reading = _Reading(kind)
    reading.is_met(module)
    is_whole = isinstance(module, dspy.Predict)  # nothing else describes the modules in a predictor
    held = {name: v for name, v in _attributes(module).items() if is_whole or not isinstance(v, dspy.Module)}
    return [reading.kind(kind), reading.parts(module, held, _set_by(kind))]


class _Reading:
    """One description under way. A function, class or object is described where it is met first."""

    def __init__(self, first: Any) -> None:
        self._met: dict[int, Any] = {}  # kept, or another object could get the number
        while isinstance(first, functools.partial):
            first = first.func
        self._package = _package(first)

    def code(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, functools.partial):
            given = {**{str(i): item for i, item in enumerate(value.args)}, **value.keywords}
            return ["partial", self.code(value.func, depth), self.parts(value, given, given, depth)]
        if isinstance(value, types.MethodType):
            return ["method", self.code(value.__func__), self._object(value.__self__, depth)]
        if isinstance(value, dspy.Tool):
            return self.code(value.func, depth)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self.kind(value)
        if isinstance(value, _CACHED):
            return self.code(value.__wrapped__)
        if inspect.isroutine(value):
            return [_name(value), self.held(getattr(value, "__self__", None), depth + 1)]
        return self._object(value, depth)

    def kind(self, kind: type) -> Any:
        """A class by its name and methods, with those that it inherits from classes that a user wrote."""
        if self.is_met(kind):
            return _name(kind)
        if issubclass(kind, dspy.Signature):
            return [_name(kind), signature_fingerprint(kind)]
        shape = type_key(kind) if issubclass(kind, (BaseModel, Enum)) else None
        return [_name(kind), shape, [self._members(base) for base in kind.__mro__ if self._is_written(base)]]

    def held(self, value: Any, depth: int = 0) -> Any:
        """A value that code works with; what a library made is known by its type."""
        if _is_value(value):
            return stable(value)
        if isinstance(value, dspy.Example):
            value = dict(value.items())
        if depth < _DEEPEST and isinstance(value, Mapping):
            shown = [(k, v) for k, v in list(value.items()) if not _is_hidden(k, v)]
            pairs = [[self.held(k, depth + 1), self.held(v, depth + 1)] for k, v in shown]
            return ["map", sorted(pairs, key=repr)]
        if depth < _DEEPEST and isinstance(value, (list, tuple)):
            return [self.held(item, depth + 1) for item in list(value)]
        if depth < _DEEPEST and isinstance(value, (set, frozenset)):
            ordered = sorted(value, key=lambda item: repr(stable(item)))  # who is described first must not change
            return ["set", sorted((self.held(item, depth + 1) for item in ordered), key=repr)]
        if depth < _DEEPEST and self._is_code(value):
            return self.code(value, depth + 1)
        if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a number of numpy's
            return stable(value.item())
        return _name(value if isinstance(value, types.ModuleType) else type(value))

    def parts(self, owner: Any, values: Mapping[str, Any], changing: Collection[str] = (), depth: int = 0) -> list[Any]:
        """Values by their names; those that change while `owner` runs as they were when they were first seen."""
        known, found = noted(owner), []
        for name in sorted({*values, *changing}):
            value = values.get(name)
            if name in known or not _is_hidden(name, value):
                found.append([name, self._at_first(known, name, value, name in changing, depth)])
        return found

    def is_met(self, value: Any) -> bool:
        """Whether it was met before; from now on it was."""
        if id(value) in self._met:
            return True
        self._met[id(value)] = value
        return False

    def _at_first(self, known: Noted, name: str, value: Any, changes: bool, depth: int) -> Any:
        if name in known and (changes or known[name][0] is value):
            return known[name][1]
        if not (changes or isinstance(value, _CHANGING)) or not self._is_data(value):
            return self.held(value, depth)
        known[name] = None if changes else value, fingerprint(self.held(value))
        return known[name][1]

    def _object(self, value: Any, depth: int) -> Any:
        if isinstance(value, type):
            return self.kind(value)
        if isinstance(value, types.ModuleType) or self.is_met(value):
            return _name(value if isinstance(value, types.ModuleType) else type(value))
        kind = self.kind(written_class(type(value)))
        state = [_predictor_key(value)] if isinstance(value, dspy.Predict) else []
        if written_class(type(value)) is dspy.Predict:
            return [kind, *state]
        own = isinstance(value, dspy.Module) or self._is_written(type(value))
        held = {name: item for name, item in _attributes(value).items() if own or not name.startswith("_")}
        return [kind, *state, self.parts(value, held, _set_by(type(value)), depth)]

    def _function(self, function: types.FunctionType) -> Any:
        if self.is_met(function):
            return _name(function)
        closed = zip(function.__code__.co_freevars, map(_contents, function.__closure__ or ()), strict=True)
        given = {str(i): default for i, default in enumerate(function.__defaults__ or ())}
        own = {**dict(closed), **given, **(function.__kwdefaults__ or {})}
        described = [_name(function), self.parts(function, own, own)]
        if _is_of_a_library(function):
            return described
        module = sys.modules.get(str(function.__globals__.get("__name__")), function)
        return [*described, source(function), self.parts(module, self._reads(function))]

    def _reads(self, function: types.FunctionType) -> dict[str, Any]:
        """What a function reads of its own module, but for what it writes there itself, such as a counter."""
        read, written, _ = _names(function.__code__)
        named = {name: function.__globals__.get(name) for name in read - written}
        return {name: value for name, value in named.items() if self._is_seen(value, function.__module__)}

    def _members(self, kind: type) -> list[Any]:
        members = {name: _function_of(member) for name, member in sorted(vars(kind).items())}
        methods = {name: m for name, m in members.items() if isinstance(m, (types.FunctionType, _CACHED))}
        seen = {
            name: member
            for name, member in members.items()
            if not (name in methods or name.startswith("__")) and self._is_seen(member, kind.__module__)
        }
        code = [[name, self.code(method)] for name, method in methods.items()]
        return [code, self.parts(kind, seen, _set_by(kind) & seen.keys())]

    def _is_seen(self, value: Any, module: str | None) -> bool:
        """Whether a value of `module` counts for code there."""
        beside = value.__wrapped__ if isinstance(value, _CACHED) else value
        if isinstance(beside, (types.FunctionType, type)):
            return beside.__module__ == module
        if value is None:
            return False
        return _is_value(value) or isinstance(value, (*_HOLDING, dspy.Example)) or self._is_code(value)

    def _is_code(self, value: Any) -> bool:
        """Whether there is more to it than its value: a callable, or an object of a class that a user wrote."""
        return (
            isinstance(value, (type, functools.partial, _CACHED, dspy.Module, BaseModel))
            or inspect.isroutine(value)
            or dataclasses.is_dataclass(value)
            or self._is_written(type(value))
        )

    def _is_data(self, value: Any, depth: int = 0) -> bool:
        """Whether no code is in it, at any depth that is described."""
        if isinstance(value, (Mapping, dspy.Example)):
            value = [part for pair in list(value.items()) for part in pair]
        if isinstance(value, _HOLDING):
            return depth == _DEEPEST or all(self._is_data(item, depth + 1) for item in list(value))
        return _is_value(value) or not self._is_code(value)

    def _is_written(self, kind: type) -> bool:
        """Whether a user wrote a class: it is in no library, or in the same as what is described."""
        package = _package(kind)
        return not _is_of_a_library(kind) and (package == self._package or not _is_installed(package))


def _predictor_key(predictor: dspy.Predict) -> list[Any]:
    asks = signature_fingerprint(predictor.signature)
    adapter = adapter_key(predictor.adapter) if isinstance(predictor, AdaptedMixin) else None
    state = (
        stable(predictor.demos),
        stable(identifying(predictor.config)),
        stable(predictor.fields),
        stable(predictor.lm),
    )
    return [asks, *state, adapter, *choice_key(predictor)]


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds: attributes and slots, the private ones that are plain; not what it computes from them once."""
    members = [member for base in type(value).__mro__ for member in list(vars(base).items())]
    computed = {name for name, member in members if isinstance(member, functools.cached_property)}
    slots = {name: getattr(value, name, None) for name, member in members if inspect.ismemberdescriptor(member)}
    left_out = {
        *computed,
        *(_OF_DSPY if isinstance(value, dspy.Module) else ()),
        *(_OF_PREDICTORS if isinstance(value, dspy.Predict) else ()),
        *(_OF_MIXINS if isinstance(value, Mixin) else ()),
    }
    return {
        name: item
        for name, item in {**slots, **getattr(value, "__dict__", {})}.items()
        if name not in left_out and (isinstance(item, _PLAIN) or not name.startswith("_"))
    }


def _set_by(kind: type) -> frozenset[str]:
    """The attributes that methods of a class set, but for those that make an object."""
    written = [base for base in kind.__mro__ if not _is_of_a_library(base)]
    members = [member for base in written for name, member in list(vars(base).items()) if name not in _MAKING]
    methods = [method for member in members if isinstance(method := _function_of(member), types.FunctionType)]
    return frozenset[str]().union(*(_names(method.__code__)[2] for method in methods))


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The names that code reads of its module (or as attributes), those that it sets there, and the attributes it sets."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = code.co_names, _set_as("GLOBAL", code), _set_as("ATTR", code)
    read, written, attributes = (frozenset(own[i]).union(*(names[i] for names in inner)) for i in range(3))
    return read, written, attributes


def _set_as(kind: str, code: types.CodeType) -> list[str]:
    steps = dis.get_instructions(code)
    return [str(step.argval) for step in steps if step.opname in (f"STORE_{kind}", f"DELETE_{kind}")]


def _is_value(value: Any) -> bool:
    return isinstance(value, _VALUES) or get_origin(value) is not None


def _is_hidden(name: Any, value: Any) -> bool:
    """Whether it is named like a secret, or like where a model is served, and may be one."""
    if not is_secret(name):
        return False
    values = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, _HOLDING) else [value]
    return any(isinstance(item, (str, bytes)) and _SECRET.search(str(item)) is not None for item in list(values))


def _function_of(member: Any) -> Any:
    """The function of a static or class method, or of a property."""
    if isinstance(member, functools.cached_property):
        return member.func
    return getattr(member, "__func__", getattr(member, "fget", member))


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _is_of_a_library(value: Any) -> bool:
    return f"{getattr(value, '__module__', '')}.".startswith(_LIBRARIES)


def _package(value: Any) -> str:
    return str(getattr(value, "__module__", "")).partition(".")[0]


def _is_installed(package: str) -> bool:
    file = str(getattr(sys.modules.get(package), "__file__", ""))
    return package in sys.stdlib_module_names or "site-packages" in file or "dist-packages" in file


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
