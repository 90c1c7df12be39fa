"""One set of base weights in memory and the thread that runs it: requests come from any thread, and join the live batch.

Engines that name the same base weights, device and dtype share one `LoadedModel`, whatever LoRA adapters they put on
it.
"""

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from . import memory, weights
from .chat import ChatTokenizer
from .generation import Ending, Job, Reply
from .linear import use_few_rows
from .memory import MemoryPlan, MemoryReport
from .runner import overflows
from .scheduler import Scheduler, most_rows

if TYPE_CHECKING:
    import torch

_GATHER = 0.002  # seconds without a new request after which those that wait begin, where others are expected
_IDLE = 5.0  # seconds without a request after which the thread ends; the weights stay
_PATIENCE = 10.0  # seconds that a training waits for a model that is answering

logger = logging.getLogger(__name__)


class LoadedModel:
    """Weights that load at the first request and answer in a live batch, on one thread of their own.

    A model whose activations are too large for float16 is loaded in the dtype `instead`; without one that is a ModelError.
    """

    def __init__(self, path: Path, identity: str, device: str, dtype: str, instead: str | None = None) -> None:
        self.path = path
        self._identity = identity
        self._device, self._dtype, self._instead = device, dtype, instead
        self._most = most_rows(weights.device_of(device))
        self._condition = threading.Condition()
        self._arrived: deque[Job] = deque()
        self._forgotten: set[str] = set()
        self._thread: threading.Thread | None = None
        self._release = False
        self._leaving = False
        self._forked = False
        self._model: Any = None
        self._scheduler: Scheduler | None = None
        self._together = 0  # the most requests that were answered at once since the model last had none
        self._chat: ChatTokenizer | None = None
        self._chat_lock = threading.Lock()

    @property
    def chat(self) -> ChatTokenizer:
        self._refuse_forks()  # what loads a tokenizer takes locks that may have been held
        with self._chat_lock:
            if self._chat is None:
                self._chat = ChatTokenizer(weights.load_tokenizer(self.path))
            return self._chat

    @property
    def memory(self) -> MemoryReport | None:
        """What the loaded model takes, with the plan that limits it; None while its weights are not loaded."""
        scheduler = self._scheduler
        return scheduler.memory if scheduler is not None else None

    @property
    def place(self) -> str:
        """The type of its device: "cpu", "cuda" or "mps"."""
        return weights.device_of(self._device).type

    def submit(self, *jobs: Job) -> "list[Future[Reply]]":
        """Queue prompts that belong together; each future gives its reply, or the error that stopped it.

        Cancelling a future ends the work on its reply, whether it has begun or not.

        Raises:
            ModelError: The process is ending, or was forked while the weights were in use.
        """
        with self._condition:
            self._refuse_forks()
            if self._leaving:
                raise ModelError(f"The process is ending, and {self.path.name} answers no more.")
            self._arrived.extend(jobs)
            self._start()
            self._condition.notify_all()
        return [job.reply for job in jobs]

    def forget(self, adapter: str) -> None:
        """Free an adapter, by its identity, once no request needs it; the next request for it loads it again."""
        with self._condition:
            if self._leaving or self._forked or (self._thread is None and self._scheduler is None):
                return  # nothing is loaded, or soon will be
            self._forgotten.add(adapter)
            self._start()
            self._condition.notify_all()

    def close(self) -> None:
        """Free the weights, prefixes and adapters once what is queued is answered; the next request loads them again."""
        if self._close():
            memory.free_caches()

    def _close(self, patience: float | None = None) -> bool:
        """`close` without freeing what only cycles hold; whether there may be any. It waits `patience` seconds, or for ever."""
        with self._condition:
            if self._thread is None and self._scheduler is None:
                return False
            self._release = True
            self._start()
            self._condition.notify_all()
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return False
        thread.join(patience)
        return True

    def leave(self) -> None:
        """End the thread after the step that it is computing; what is queued gets no answer. For the end of the process."""
        with self._condition:
            self._leaving = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def after_fork(self) -> None:
        """Make the copy in a forked process one that refuses requests, where they would wait for a thread that is not there."""
        self._forked = self._forked or self._thread is not None or self._scheduler is not None
        self._condition, self._chat_lock = threading.Condition(), threading.Lock()  # any thread may have held them
        self._thread, self._chat = None, None
        self._arrived.clear()

    def _refuse_forks(self) -> None:
        if self._forked:
            raise ModelError(
                f"This process was forked from one that has loaded {self.path.name}, and cannot run it: threads, and "
                "what torch and CUDA keep, do not survive a fork.",
                hint="Start processes afresh: multiprocessing.get_context('spawn').",
            )

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"dspyc {self.path.name}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._leaving:
            live = self._scheduler.live if self._scheduler is not None else 0
            jobs = self._take(live)
            if jobs is None:
                return
            self._together = max(self._together, live + len(jobs))
            try:
                self._answer(jobs)
            except BaseException as error:  # whatever went wrong, each caller waits for an answer
                self._fail(jobs, error)

    def _take(self, live: int) -> list[Job] | None:
        """The requests that came since the last step. Where none is live this waits for some, or for an adapter to forget; None
        ends the thread.
        """
        with self._condition:
            if not live:
                self._condition.wait_for(
                    lambda: self._arrived or self._forgets or self._release or self._leaving, timeout=_IDLE
                )
                if not self._arrived and (self._release or self._leaving or not self._forgets):
                    if self._release:
                        self._model, self._scheduler, self._release = None, None, False
                        self._forgotten.clear()
                    self._thread = None
                    return None
                if self._arrived:
                    self._gather()
            jobs = list(self._arrived)
            self._arrived.clear()
            return jobs

    def _gather(self) -> None:
        """Wait while requests keep coming: threads that were answered together ask again together.

        A request that comes alone, where the last ones came alone too, does not wait at all.
        """
        expected, self._together = min(self._together, self._most), 0
        seen, until = len(self._arrived), time.monotonic() + _GATHER
        while seen < expected and (left := until - time.monotonic()) > 0:
            self._condition.wait(left)
            if len(self._arrived) > seen:
                seen, until = len(self._arrived), time.monotonic() + _GATHER

    def _answer(self, jobs: list[Job]) -> None:
        if self._scheduler is None:
            self._scheduler = self._load()
        self._scheduler.submit(jobs)
        self._forget(self._scheduler)  # before the step needs memory
        self._scheduler.step()
        self._forget(self._scheduler)  # what the requests that are over needed

    @property
    def _forgets(self) -> bool:
        return bool(self._forgotten) and self._scheduler is not None

    def _forget(self, scheduler: Scheduler) -> None:
        with self._condition:
            self._forgotten = {adapter for adapter in self._forgotten if not scheduler.forget(adapter)}

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        if self._scheduler is not None:
            self._scheduler.fail(error)
        self._scheduler, self._model = None, None  # whatever state they are in; the next request loads them again
        for job in jobs:
            job.fail(error)

    def _load(self) -> Scheduler:
        self._refuse_changed(self._identity)
        plan = self._read()
        use_few_rows(self._model)
        chat = self.chat
        pad_id = chat.tokenizer.pad_token_id
        return Scheduler(
            self._model,
            Ending(chat.stop_ids | _configured_stops(self._model), chat.decode, chat.opening),
            chat.end_of_turn_id if pad_id is None else pad_id,
            plan,
            self._check_adapter,
        )

    def _read(self) -> MemoryPlan:
        plan = memory.plan(self.path, self._device, self._dtype)
        self._model = weights.load_model(self.path, self._device, self._dtype)
        if not overflows(self._model):
            return plan
        self._model = None
        what = f"The activations of {self.path.name} are larger than {self._dtype} holds"
        if self._instead is None:
            raise ModelError(
                f"{what}, and its scores are no numbers.",
                hint="Use dtype='float32', or dtype='bfloat16', which takes half of the memory.",
            )
        logger.warning("%s: it is loaded in %s.", what, self._instead)
        self._dtype, self._instead = self._instead, None
        return self._read()

    def _check_adapter(self, identity: str, folder: Path) -> None:
        self._refuse_changed(identity, folder)
        weights.check_adapter(folder)

    def _refuse_changed(self, identity: str, adapter: Path | None = None) -> None:
        if (found := weights.identity(self.path, adapter)) != identity:
            raise ModelError(
                f"The weights in {adapter or self.path} changed after their engine was made: {identity} then, {found} now.",
                hint="Make a new engine for them, so that no cached answer of the old ones is taken for theirs.",
            )


_shared: "weakref.WeakValueDictionary[tuple[str | None, ...], LoadedModel]" = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def loaded(path: Path, device: str, dtype: str) -> LoadedModel:
    """The one `LoadedModel` of these weights on this device in this dtype."""
    kind, identity = str(weights.dtype_of(dtype, device)).removeprefix("torch."), weights.identity(path)
    instead = "float32" if dtype == "auto" and kind == "float16" else None
    key = (identity, str(weights.device_of(device)), kind, instead)
    with _shared_lock:
        found = _shared.get(key)
        if found is None:
            found = _shared[key] = LoadedModel(path, identity, device, kind, instead)
        return found


def make_room(device: "torch.device") -> None:
    """Free what models hold of the memory that a training on `device` needs; their next requests load them again.

    Main memory is left to them. On other devices all models of this process are closed, on whichever of several GPUs: a
    training may take them all.
    """
    if device.type != "cpu":
        close_all(device.type)


def close_all(place: str, patience: float = _PATIENCE) -> None:
    """Close every model on devices of a type. One that is still answering after `patience` seconds is closed later."""
    closed = [model._close(patience) for model in list(_shared.values()) if model.place == place]
    if any(closed):
        memory.free_caches()  # once: a collection takes as long for one as for all


@atexit.register
def _leave() -> None:
    """A thread that is within torch when Python ends aborts the whole process."""
    for model in list(_shared.values()):
        model.leave()


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for model in list(_shared.values()):
        model.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _configured_stops(model: Any) -> set[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    return set(found) if isinstance(found, list) else set() if found is None else {found}
