"""The processes of one run: `accelerate launch` starts several, all others are one."""

import os

import torch


def several() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(cpu: bool) -> None:
    """Meet the other processes, if there are any."""
    if several():
        from accelerate import PartialState

        PartialState(cpu=cpu)


def is_main() -> bool:
    """Whether this is the process that writes files and draws progress."""
    return int(os.environ.get("RANK", "0")) == 0


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, where there are several processes and GPUs."""
    if several() and device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def wait() -> None:
    """Until all processes are here."""
    if several():
        from accelerate import PartialState

        PartialState().wait_for_everyone()
