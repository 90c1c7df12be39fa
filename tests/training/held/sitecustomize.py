"""Imported by every Python that has this folder in PYTHONPATH: the main one of several processes stops after eight steps.

It then waits, before its next step, for whatever ends it: however slow the machine is, the run is not over by then.
"""

import os
import time
from typing import Any

STEPS = 8


def hold() -> None:
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook

    done: list[int] = []

    def count(*_: Any) -> None:
        done.append(1)

    def wait(module: Any, _: Any) -> None:
        while len(done) >= STEPS and module.training:
            time.sleep(3600)

    register_optimizer_step_post_hook(count)
    register_module_forward_pre_hook(wait)


if os.environ.get("RANK") == "0":
    hold()
