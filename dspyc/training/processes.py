"""The processes of one run: a launcher (`accelerate launch`, torchrun) starts several; every other run is one process.

Each computes its share of a step's rows, in as many parts as its memory asks for; then all gradients are added up, once a
step. DDP gives the same gradients, but exchanges them within the last backward pass: here a process that runs out of memory
can compute its share again, in smaller parts, while the others wait.
"""

import atexit
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from ..errors import TrainingError
from ..models.memory import is_out_of_memory
from ..progress import is_main as is_main

_TOGETHER = 1 << 25  # numbers that are exchanged at once: 128 MiB of float32
_PATIENCE = timedelta(days=1)  # with the others, while the main one writes; NCCL's own 10 minutes end large runs there
_told = threading.Event()  # that the run is interrupted


def several() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(cpu: bool) -> None:
    """Meet the other processes, if there are any, and part from them when this one ends."""
    if several():
        from accelerate import PartialState

        ours = not distributed.is_initialized()
        PartialState(cpu=cpu, timeout=_PATIENCE)
        if ours:
            atexit.register(_leave)


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, where there are several processes and GPUs."""
    if several() and device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def wait() -> None:
    """Block until every process has reached this point. Raises TrainingError where another one has ended."""
    if several():
        with _meeting():
            distributed.barrier()


def agree(tensors: Sequence[torch.Tensor]) -> None:
    """Give every process the main one's numbers."""
    if several():
        with _meeting(), torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' tensors, in place of this one's. Raises TrainingError where another process has ended."""
    if several():
        with _meeting():
            distributed.all_reduce(tensor)
    return tensor


def add_up(parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> list[float]:
    """Add up every parameter's gradients over all processes; returns the loss of each.

    A parameter that some processes have no gradient of counts as zero there. One that none has keeps none: an optimizer
    leaves it alone, as it does in a single process.
    """
    if not several():
        return [float(loss)]
    processes = distributed.get_world_size()
    mine = [0.0] * processes + [float(p.grad is not None) for p in parameters]
    facts = torch.tensor(mine, device=loss.device)
    facts[distributed.get_rank()] = loss.detach()
    found = total(facts).tolist()
    gradients = []
    for parameter, holders in zip(parameters, found[processes:], strict=True):
        if holders:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for group in _groups(gradients):
        summed = total(torch.cat([gradient.reshape(-1) for gradient in group]))
        for gradient, part in zip(group, torch.split(summed, [g.numel() for g in group]), strict=True):
            gradient.copy_(part.view_as(gradient))
    return found[:processes]


def draw_own(seed: int, step: int) -> None:
    """Let dropout draw other numbers in every process, those that (seed, step, process) alone decide.

    A checkpoint holds the main process's generators only, so none of the others may depend on what it drew before.
    """
    if several():
        torch.manual_seed(random.Random(f"dropout {seed} {step} {distributed.get_rank()}").getrandbits(48))


@contextmanager
def meeting_within(several: bool) -> Iterator[None]:
    """While code runs in which processes may meet, such as a divided model's layers and transformers' loop.

    Raises TrainingError where another process has ended meanwhile.
    """
    try:
        yield
    except RuntimeError as error:
        if several and (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise _ended() from error
        raise


@contextmanager
def left_to_main() -> Iterator[None]:
    """Ctrl-C reaches every process. The main one answers it at once; its end is what interrupts the others."""
    if is_main() or threading.current_thread() is not threading.main_thread():
        yield
        return
    _told.clear()
    before = signal.signal(signal.SIGINT, lambda *_: _told.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave() -> None:
    """End the threads that exchange tensors while Python still runs: one that lets go of a tensor later aborts the process.

    After a divided model PyTorch's caches keep the group, and the group its threads: these get the time to let go of the
    last tensors, for which each needs the interpreter's lock.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
        time.sleep(0.1)


@contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and NCCL raise
        if is_out_of_memory(error):
            raise
        raise _ended() from error


def _ended() -> BaseException:
    if _told.is_set():
        return KeyboardInterrupt()
    return TrainingError(
        "Another process of this run has ended, or cannot be reached.",
        hint="Its own message says why. The same command goes on from the newest checkpoint.",
    )


def _groups(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """In their order, so many that they are worth one exchange."""
    groups: list[list[torch.Tensor]] = []
    size = _TOGETHER
    for tensor in tensors:
        if size + tensor.numel() > _TOGETHER:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.numel()
    return groups
