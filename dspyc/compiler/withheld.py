"""Runs that do not see their own example: what a predictor is asked must not stand, answered, among its demos.

    withhold(program)                                # in place: a copy that is to teach
    with dspy.context(**withheld(example)):
        program(**example.inputs())                  # no predictor has `example` among its demos

The program itself is the same for all runs, so that any number of them may go on at once.
"""

from collections.abc import Mapping
from typing import Any

import dspy

from ..signatures import predictors
from ..signatures.fingerprints import stable
from ..signatures.mixins import Mixin, mix

_KEY = "dspyc_withheld"


def withhold(program: dspy.Module) -> None:
    """Make the predictors of `program`, in place, leave out of their demos the example that is withheld from a run."""
    for predictor in predictors(program).values():
        mix(predictor, _Withholding)


def withheld(example: dspy.Example) -> dict[str, Any]:
    """The DSPy settings under which a run is not shown `example`."""
    return {_KEY: example}


class _Withholding(Mixin):
    """Its demos lack the example that is withheld."""

    @property
    def demos(self) -> list[Any]:
        every: list[Any] = vars(self)["demos"]
        example = dspy.settings.get(_KEY)
        if example is None:
            return every
        hidden = dict(example.items())
        return [demo for demo in every if not same(dict(demo.items()), hidden)]

    @demos.setter
    def demos(self, demos: list[Any]) -> None:
        vars(self)["demos"] = demos


def same(demo: Mapping[str, Any], hidden: Mapping[str, Any]) -> bool:
    """Whether a demo has the fields of an example, and their values."""
    return demo.keys() == hidden.keys() and all(_equal(value, hidden[field]) for field, value in demo.items())


def _equal(one: Any, other: Any) -> bool:
    """By content: demos are copies, arrays do not compare to True or False, and most objects equal only themselves."""
    if one is other:
        return True
    if isinstance(one, _PLAIN) and isinstance(other, _PLAIN):
        return one == other
    return bool(stable(one) == stable(other))


_PLAIN = (str, int, float, bool, type(None))
