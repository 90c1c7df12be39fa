"""Adapters that write what is the same in every prompt of a candidate once.

A prompt of sixteen demos takes DSPy's adapters over 2 ms to write, and nearly all of it is what the last prompt said too.

    adapter = remembering(dspy.ChatAdapter())     # writes what the other writes
"""

import copy
from typing import Any

import dspy

Demos = list[dict[str, Any]]
_MOST = 64  # of each kind are remembered: a program may choose other demos for each call
_PLAIN = (str, int, float, bool, type(None))


def remembering(adapter: dspy.Adapter) -> dspy.Adapter:
    """A copy of `adapter` with a memory for system messages and lists of demos.

    DSPy's adapters and ours write these from their arguments alone. Anyone else's is returned as it is.
    """
    if not type(adapter).__module__.startswith(("dspy.adapters.", "dspyc.")):
        return adapter
    copied, memory = copy.copy(adapter), _Memory(adapter)
    copied.format_system_message = memory.system_message
    copied.format_demos = memory.demos
    return copied


class _Memory:
    """What `adapter` has written. Threads may share it: at worst two of them write the same."""

    def __init__(self, adapter: dspy.Adapter) -> None:
        self._adapter = adapter
        self._systems: dict[Any, str] = {}
        self._demos: dict[Any, Demos] = {}

    def system_message(self, signature: type[dspy.Signature]) -> str:
        if (known := self._systems.get(signature)) is None:
            known = self._adapter.format_system_message(signature)
            _keep(self._systems, signature, known)
        return known

    def demos(self, signature: type[dspy.Signature], demos: Demos) -> Demos:
        key = _key(signature, demos)
        if key is None:
            return self._adapter.format_demos(signature, demos)  # type: ignore[no-any-return]
        if (known := self._demos.get(key)) is None:
            known = self._adapter.format_demos(signature, demos)
            _keep(self._demos, key, known)
        return [dict(message) for message in known]


def _keep(memory: dict[Any, Any], key: Any, value: Any) -> None:
    if len(memory) >= _MOST:
        memory.clear()
    memory[key] = value


def _key(signature: type[dspy.Signature], demos: Demos) -> Any:
    """Equal for demos of the same content; None where a value is of a type that may be written otherwise next time."""
    try:
        return signature, tuple(tuple((name, _frozen(value)) for name, value in demo.items()) for demo in demos)
    except (TypeError, AttributeError):
        return None


def _frozen(value: Any) -> Any:
    if type(value) is str:
        return value
    if type(value) in _PLAIN:
        return type(value), value
    if type(value) in (list, tuple):
        return type(value), tuple(map(_frozen, value))
    if type(value) is dict:
        return dict, tuple((_frozen(name), _frozen(item)) for name, item in value.items())
    raise TypeError
