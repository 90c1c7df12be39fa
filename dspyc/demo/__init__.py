"""The demo: a support desk of two predictors, taught by an expert that is wrong about 12 % of the tickets.

    result = run_demo(out="runs/demo")                     # about two minutes on two CPU cores
    result.before, result.teacher, result.after            # shares of unseen tickets with all four answers right

The tickets are made by `scripts/make_support_desk.py`: 14 intents of 12 sentence families each, and no family of the test
tickets occurs in training.
"""

import importlib
from typing import TYPE_CHECKING, Any

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

__all__ = ["DemoResult", "SupportDesk", "expert_lm", "load_examples", "metric", "run_demo"]


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_DOORS[name]}", __name__), name)
