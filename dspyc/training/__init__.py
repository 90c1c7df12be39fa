"""Changing weights on this machine: chat rows in, a LoRA adapter or whole weights out.

    config = TrainingConfig(method="lora", epochs=3)              # or TrainingConfig.from_kwargs(train_kwargs)
    result = train("dspyc/tiny", rows, config=config, output_dir="run", validation=held_out)
    result.path                                                   # run/final_model: an adapter or a model folder

A row is `{"messages": [...], "tools": [...]}`; its last message is the assistant's and the only one that is learned.
Prompts that rows share are computed once (`sharing`), under a check that gradients are those of whole rows (`probe`).

`output_dir` holds everything: `key.json` (what is being trained), `events.jsonl` (step, loss, learning rate, seconds),
`checkpoints/`, `final_model/`, `best_model/` where rows were held out and, last, `result.json`. The same call in the same
folder goes on from the newest whole checkpoint, to the weights that an uninterrupted run would have reached, and returns at
once when it is done.
"""

from typing import TYPE_CHECKING

from ..doors import opened

if TYPE_CHECKING:
    from .callbacks import Callback as Callback
    from .callbacks import Progress as Progress
    from .config import TrainingConfig as TrainingConfig
    from .lr_finder import LearningRates as LearningRates
    from .lr_finder import find_learning_rate as find_learning_rate
    from .merging import merge as merge
    from .methods import one_base as one_base
    from .result import TrainingResult as TrainingResult
    from .rows import TokenReport as TokenReport
    from .rows import encode_rows as encode_rows
    from .run import train as train
    from .stages import Stage as Stage
    from .stages import train_stages as train_stages

_DOORS = {
    "Callback": "callbacks",
    "LearningRates": "lr_finder",
    "Progress": "callbacks",
    "Stage": "stages",
    "TokenReport": "rows",
    "TrainingConfig": "config",
    "TrainingResult": "result",
    "encode_rows": "rows",
    "find_learning_rate": "lr_finder",
    "merge": "merging",
    "one_base": "methods",
    "train": "run",
    "train_stages": "stages",
}

__all__ = list(_DOORS)
__getattr__ = opened(__name__, _DOORS)
