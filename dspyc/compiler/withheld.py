"""Runs that do not see their own example: what a predictor is asked must not stand, answered, among its demos.

    withhold(program)                                # in place: a copy that is to teach
    with dspy.context(**withheld(example)):
        program(**example.inputs())                  # no predictor has `example` among its demos

The program itself is the same for all runs, so that any number of them may go on at once.
"""

from typing import Any

import dspy

from ..signatures import predictors
from ..signatures.mixins import PredictorMixin, mix

_KEY = "dspyc_withheld"


def withhold(program: dspy.Module) -> None:
    """Make the predictors of `program`, in place, leave out of their demos the example that is withheld from a run."""
    for predictor in predictors(program).values():
        mix(predictor, _Withholding)


def withheld(example: dspy.Example) -> dict[str, Any]:
    """The DSPy settings under which a run is not shown `example`."""
    return {_KEY: example}


class _Withholding(PredictorMixin):
    """Its demos lack the example that is withheld."""

    @property
    def demos(self) -> list[Any]:
        every: list[Any] = vars(self)["demos"]
        example = dspy.settings.get(_KEY)
        if example is None:
            return every
        hidden = dict(example.items())
        return [demo for demo in every if dict(demo.items()) != hidden]

    @demos.setter
    def demos(self, demos: list[Any]) -> None:
        vars(self)["demos"] = demos
