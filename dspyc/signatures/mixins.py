"""What modules are made to do by a change of class, in place: whatever in the program refers to a predictor still does.

    mix(predictor, AdaptedMixin)
    written_class(type(predictor))          # the class that the user wrote

The class made for it carries the name of the one behind it. A module may have several mixins, the last one first.
"""

from typing import Any, cast

import dspy


class Mixin:
    """Put by `mix` before a module's own class."""

    mixin: type["Mixin"]
    mixed_from: type[dspy.Module]  # the class behind `mixin`

    def __reduce__(self) -> tuple[Any, ...]:
        # By the user's class: ours was made at run time, and no other process can import it.
        return _blank, (written_class(type(self)), _mixins(type(self))), cast("dspy.Module", self).__getstate__()


class RecordedMixin(Mixin):
    """In a run of a compile, the language model of each call is asked through the run's ledger, wherever it comes from."""

    def _forward_preprocess(self, **kwargs: Any) -> Any:
        lm, *others = super()._forward_preprocess(**kwargs)  # type: ignore[misc]
        run = dspy.settings.get("dspyc_run")  # compiler.calls.Run
        return (lm if run is None else run.durable(lm), *others)


def mix(module: dspy.Module, mixin: type[Mixin]) -> None:
    """Put `mixin` before the module's class, unless it is there."""
    module.__class__ = mixed(type(module), mixin)


def mixed(kind: Any, mixin: type) -> Any:
    """The class `kind` with `mixin` before it, the same one each time; `kind` itself where it is there."""
    if issubclass(kind, mixin):
        return kind
    if (kind, mixin) not in _classes:
        names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
        names |= {"mixin": mixin, "mixed_from": kind}
        _classes[kind, mixin] = type(kind)(kind.__name__, (mixin, kind), names)
    return _classes[kind, mixin]


def written_class(kind: Any) -> Any:
    """The class that the user wrote, without what stands before it."""
    while "mixed_from" in vars(kind):
        kind = kind.mixed_from
    return kind


_classes: dict[tuple[type, type], type] = {}


def _mixins(kind: Any) -> list[type[Mixin]]:
    """The first one put there first."""
    found: list[type[Mixin]] = []
    while "mixed_from" in vars(kind):
        found.insert(0, kind.mixin)
        kind = kind.mixed_from
    return found


def _blank(kind: Any, mixins: list[type[Mixin]]) -> Any:
    for mixin in mixins:
        kind = mixed(kind, mixin)
    return kind.__new__(kind)
