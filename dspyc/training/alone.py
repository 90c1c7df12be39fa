"""One training at a time in a process, which is afterwards as it was."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from ..models import memory
from ..models.loaded import make_room
from ..models.threads import let_go_of_threads
from .checkpoint import RandomState

_one_at_a_time = threading.Lock()  # accelerate and torch's generators are the process's own


@contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """Have `device`, the process's random generators and transformers' voice for a while; whoever else wants them waits."""
    talk: Any = transformers_logging
    with _one_at_a_time:
        before, loudness, bars = RandomState.capture(), talk.get_verbosity(), talk.is_progress_bar_enabled()
        talk.disable_progress_bar()
        try:
            make_room(device)
            yield
        finally:
            let_go_of_threads()
            before.restore()
            talk.set_verbosity(loudness)
            if bars:
                talk.enable_progress_bar()
            if device.type == "cuda":
                memory.free_caches()
