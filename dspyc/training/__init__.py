"""Changing weights on this machine: chat rows in, a LoRA adapter or whole weights out.

    config = TrainingConfig(method="lora", epochs=3)              # or TrainingConfig.from_kwargs(train_kwargs)
    result = train("dspyc/tiny", rows, config=config, output_dir="run", validation=held_out)
    result.path                                                   # run/weights: an adapter or a model folder

A row is `{"messages": [...], "tools": [...]}`; its last message is the assistant's and the only one that is learned.
`output_dir` holds everything: `key.json` (what is being trained), `events.jsonl` (step, loss, learning rate, seconds),
`checkpoints/`, `weights/` and, last, `result.json`. The same call in the same folder goes on from the newest whole
checkpoint, to the weights that an uninterrupted run would have reached, and returns at once when it is done.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import TrainingConfig as TrainingConfig
    from .result import TrainingResult as TrainingResult
    from .rows import TokenReport as TokenReport
    from .rows import encode_rows as encode_rows
    from .run import train as train

_DOORS = {
    "TokenReport": "rows",
    "TrainingConfig": "config",
    "TrainingResult": "result",
    "encode_rows": "rows",
    "train": "run",
}

__all__ = ["TokenReport", "TrainingConfig", "TrainingResult", "encode_rows", "train"]


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_DOORS[name]}", __name__), name)
