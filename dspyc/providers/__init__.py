"""Where a language model's weights are changed: one file a provider, all behind DSPy's own `lm.finetune(…)`.

    lm = LocalLM("Qwen/Qwen3-0.6B", max_tokens=256)        # a dspy.LM over weights on this machine
    job = lm.finetune(rows, TrainDataFormat.CHAT, {"num_train_epochs": 3})
    tuned = job.result()                                   # a dspy.LM over the new weights

A provider subclasses `dspy.clients.provider.Provider`, so plain DSPy programs and optimizers can use it as well.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .local import LocalLM as LocalLM
    from .local import LocalProvider as LocalProvider
    from .local import LocalTrainingJob as LocalTrainingJob

_DOORS = {"LocalLM": "local", "LocalProvider": "local", "LocalTrainingJob": "local"}

__all__ = ["LocalLM", "LocalProvider", "LocalTrainingJob"]


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_DOORS[name]}", __name__), name)
