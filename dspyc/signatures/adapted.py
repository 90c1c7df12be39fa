"""Predictors that carry their adapter.

In DSPy the adapter is global, yet weights answer only in the format that they were trained with. So a compiled predictor
keeps its adapter and applies it in every call. It takes it in place, by a change of class (`mixins`).

    adapt(predictor, dspy.XMLAdapter())
    adapter_of(predictor)                     # the adapter that a call would use now

The adapter travels through copies, pickles and DSPy's JSON states. A plain `dspy.Predict` reads such a state too; it then
runs with DSPy's global adapter. A `dspy.streaming.StreamListener` reads the global adapter as well, so set that to the
predictor's when you listen to single fields.
"""

import inspect
import json
from typing import Any

import dspy
from dspy.adapters.types.base_type import Type

from ..errors import ConfigError
from .fingerprints import adapter_fingerprint, is_secret
from .importing import imported
from .mixins import RecordedMixin, mix, mixed


class AdaptedMixin(RecordedMixin):
    """`adapter` is in force in this predictor's calls."""

    adapter: dspy.Adapter
    signature: type[dspy.Signature]

    def forward(self, **kwargs: Any) -> Any:
        with dspy.context(adapter=self.adapter):
            return super().forward(**kwargs)  # type: ignore[misc]

    async def aforward(self, **kwargs: Any) -> Any:
        with dspy.context(adapter=self.adapter):
            return await super().aforward(**kwargs)  # type: ignore[misc]

    def dump_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """DSPy's state, the adapter, and the name of the signature class, which DSPy forgets."""
        state: dict[str, Any] = super().dump_state(*args, **kwargs)  # type: ignore[misc]
        state["signature"] = {**state["signature"], "name": self.signature.__name__}
        return {**state, "adapter": adapter_state(self.adapter)}

    def load_state(self, state: dict[str, Any], **kwargs: Any) -> Any:
        """Reads the states of adapted and of plain predictors; a plain one leaves the adapter as it is."""
        adapter = load_adapter(state["adapter"]) if "adapter" in state else self.adapter
        name = state["signature"].get("name", self.signature.__name__)
        super().load_state({k: v for k, v in state.items() if k != "adapter"}, **kwargs)  # type: ignore[misc]
        self.adapter = adapter
        self.signature.__name__ = name
        return self


AdaptedPredict = mixed(dspy.Predict, AdaptedMixin)  # a `dspy.Predict` that carries its adapter


def adapt(predictor: dspy.Predict, adapter: dspy.Adapter) -> None:
    """Make `predictor`, in place, one that carries `adapter`.

    Raises:
        ConfigError: Not a `dspy.Predict`, or not a `dspy.Adapter`.
    """
    if not isinstance(predictor, dspy.Predict):
        raise ConfigError(
            f"An adapter was given to a {type(predictor).__name__}; a dspy.Predict is allowed.",
            hint="Adapt each of a program's predictors: dspyc.signatures.predictors(program).",
        )
    if not isinstance(adapter, dspy.Adapter):
        kind = f"the class {adapter.__name__}" if isinstance(adapter, type) else f"a {type(adapter).__name__}"
        raise ConfigError(f"The adapter is {kind}; a dspy.Adapter is allowed.", hint="Pass dspy.ChatAdapter(), say.")
    mix(predictor, AdaptedMixin)
    predictor.adapter = adapter


def adapter_of(predictor: dspy.Predict) -> dspy.Adapter:
    """The adapter that a call of `predictor` uses: its own, else DSPy's global one, else ChatAdapter."""
    if isinstance(predictor, AdaptedMixin):
        return predictor.adapter
    return dspy.settings.adapter or dspy.ChatAdapter()


def adapter_state(adapter: dspy.Adapter) -> dict[str, Any]:
    """`{"class": "module:Name", "arguments": {...}}`: JSON that `load_adapter` makes an equal adapter from.

    Callbacks, and arguments in the name of a secret, are left out.

    Raises:
        ConfigError: The adapter cannot be made again from what its constructor took.
    """
    kind = type(adapter)
    state = {"class": f"{kind.__module__}:{kind.__qualname__}", "arguments": _arguments(adapter)}
    try:
        same = adapter_fingerprint(load_adapter(state)) == adapter_fingerprint(adapter)
    except ConfigError as error:
        raise ConfigError(f"The adapter {kind.__name__} cannot be saved: {error.message}", hint=_SAVEABLE) from error
    if not same:
        raise ConfigError(
            f"The adapter {kind.__name__} cannot be saved: one made with {state['arguments']} is not equal to it.",
            hint=_SAVEABLE,
        )
    return state


_SAVEABLE = (
    "Define it at the top of a module, and let __init__ keep each argument, a JSON value, in the attribute of its name."
)


def load_adapter(state: Any) -> dspy.Adapter:
    """The adapter that `adapter_state` described. Only subclasses of `dspy.Adapter` are made.

    Raises:
        ConfigError: The state is not one, or its class cannot be had, is no adapter or refuses the arguments.
    """
    if not isinstance(state, dict) or not isinstance(state.get("class"), str):
        raise ConfigError(f"{state!r} is not the state of an adapter.", hint="Expected: {'class': 'module:Name', …}.")
    name, kind = state["class"], _import(state["class"])
    if not (isinstance(kind, type) and issubclass(kind, dspy.Adapter)):
        raise ConfigError(
            f"{name!r} is not a dspy.Adapter, and nothing else is loaded as one.",
            hint="The file was changed or was not written by dspyc; do not trust it.",
        )
    arguments = dict(state.get("arguments") or {})
    if arguments.get("native_response_types") is not None:
        arguments["native_response_types"] = [_import_type(path) for path in arguments["native_response_types"]]
    try:
        return kind(**arguments)
    except Exception as error:  # a custom constructor may raise anything
        raise ConfigError(f"The adapter {name!r} cannot be made with {sorted(arguments)}: {error}.") from error


def _arguments(adapter: dspy.Adapter) -> dict[str, Any]:
    """What the constructor took and the adapter kept, where it is JSON and not the default."""
    arguments: dict[str, Any] = {}
    for name, parameter in _parameters(type(adapter)).items():
        if name == "callbacks" or is_secret(name) or not hasattr(adapter, name):
            continue
        value = getattr(adapter, name)
        if name == "native_response_types":
            if value != dspy.ChatAdapter().native_response_types:
                arguments[name] = [f"{t.__module__}:{t.__qualname__}" for t in value]
        elif value is not parameter.default and _is_json(value):
            arguments[name] = value
    return arguments


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """What the constructor takes by name; through `**kwargs`, also what its parents' take."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        own = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in own:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return found


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _import(reference: str) -> Any:
    try:
        return imported(reference)
    except ImportError as error:
        raise ConfigError(
            f"The class {reference!r} cannot be imported: {error}.",
            hint="Install or import the package that defines it; one defined inside a function cannot be found.",
        ) from error


def _import_type(reference: Any) -> Any:
    kind = _import(str(reference))
    if not (isinstance(kind, type) and issubclass(kind, Type)):
        raise ConfigError(f"{reference!r}, a native response type, is not a dspy.Type.")
    return kind
