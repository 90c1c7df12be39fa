"""The demo: a support desk of two predictors, taught by an expert that is wrong about 12 % of the tickets.

    result = run_demo(out="runs/demo")                     # about two minutes on two CPU cores
    result.before, result.teacher, result.after            # shares of unseen tickets with all four answers right

The tickets are made by `scripts/make_support_desk.py`: 14 intents of 12 sentence families each, and no family of the test
tickets occurs in training.
"""

from typing import TYPE_CHECKING

from ..doors import opened

if TYPE_CHECKING:
    from .expert import expert_lm as expert_lm
    from .run import DemoResult as DemoResult
    from .run import run_demo as run_demo
    from .support_desk import SupportDesk as SupportDesk
    from .support_desk import load_examples as load_examples
    from .support_desk import metric as metric

_DOORS = {
    "DemoResult": "run",
    "SupportDesk": "support_desk",
    "expert_lm": "expert",
    "load_examples": "support_desk",
    "metric": "support_desk",
    "run_demo": "run",
}

__all__ = list(_DOORS)
__getattr__ = opened(__name__, _DOORS)
