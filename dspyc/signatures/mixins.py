"""What predictors are made to do by a change of class, in place: whatever in the program refers to a predictor still does.

    mix(predictor, AdaptedMixin)
    written_class(type(predictor))          # the class that the user wrote

The class made for it carries the name of the one behind it. A predictor may have several mixins, the last one first.
"""

from typing import Any

import dspy


class PredictorMixin:
    """Put by `mix` before `dspy.Predict`, or a subclass of it."""

    mixin: type["PredictorMixin"]
    mixed_from: type[dspy.Predict]  # the class behind `mixin`

    def __reduce__(self) -> tuple[Any, ...]:
        # By the user's class: ours was made at run time, and no other process can import it.
        return _blank, (written_class(type(self)), _mixins(type(self))), self.__getstate__()


def mix(predictor: dspy.Predict, mixin: type[PredictorMixin]) -> None:
    """Put `mixin` before the predictor's class, unless it is there."""
    if not isinstance(predictor, mixin):
        predictor.__class__ = mixed(type(predictor), mixin)


def mixed(kind: Any, mixin: type[PredictorMixin]) -> Any:
    """The class of `kind` with `mixin` before it, the same one each time."""
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


def _mixins(kind: Any) -> list[type[PredictorMixin]]:
    """The first one put there first."""
    found: list[type[PredictorMixin]] = []
    while "mixed_from" in vars(kind):
        found.insert(0, kind.mixin)
        kind = kind.mixed_from
    return found


def _blank(kind: Any, mixins: list[type[PredictorMixin]]) -> Any:
    for mixin in mixins:
        kind = mixed(kind, mixin)
    return kind.__new__(kind)
