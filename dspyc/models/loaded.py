"""One set of base weights in memory and the thread that runs it: requests come from any thread, batches go out.

Engines that name the same base weights, device and dtype share one `LoadedModel`, whatever LoRA adapters they put on
it.
"""

import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelError
from . import weights
from .chat import ChatTokenizer
from .constraints import Constraint
from .generate import Reply, Sampling, generate

MAX_ROWS = 64
MAX_TOKENS = 65_536  # prompt tokens of a batch, padding included
_GATHER = 0.003  # seconds without a new request after which a batch starts
_IDLE = 5.0  # seconds without a request after which the thread ends; the weights stay


@dataclass
class Job:
    """One prompt to answer, with the adapter (its identity and folder) that answers it, and the reply's constraint."""

    ids: list[int]
    sampling: Sampling
    adapter: tuple[str, Path] | None
    constraint: Constraint | None = None
    reply: "Future[Reply]" = field(default_factory=Future)


class LoadedModel:
    """Weights that load at the first request and answer in batches, on one thread of their own."""

    def __init__(self, path: Path, identity: str, device: str, dtype: str) -> None:
        self.path = path
        self._identity = identity
        self._device, self._dtype = device, dtype
        self._condition = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self._release = False
        self._model: Any = None
        self._adapters: set[str] = set()
        self._chat: ChatTokenizer | None = None
        self._chat_lock = threading.Lock()

    @property
    def chat(self) -> ChatTokenizer:
        with self._chat_lock:
            if self._chat is None:
                self._chat = ChatTokenizer(weights.load_tokenizer(self.path))
            return self._chat

    def submit(self, job: Job) -> "Future[Reply]":
        """Queue a prompt; the future gives its reply, or the error that stopped it.

        Cancelling the future before its batch starts takes the prompt off the queue.
        """
        with self._condition:
            self._waiting.append(job)
            self._start()
            self._condition.notify_all()
        return job.reply

    def close(self) -> None:
        """Free the weights once what is queued is answered; the next request loads them again."""
        with self._condition:
            self._release = True
            self._start()
            self._condition.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"dspyc {self.path.name}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while jobs := self._take():
            self._answer(jobs)

    def _take(self) -> list[Job]:
        """The next batch: all waiting requests of one adapter, up to the limits. Empty when the thread is to end."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._release, timeout=_IDLE)
            if not self._waiting:
                if self._release:
                    self._model, self._adapters, self._release = None, set(), False
                self._thread = None
                return []
            self._gather()
            return self._batch()

    def _gather(self) -> None:
        """Wait while requests keep coming: threads that were answered together ask again together."""
        seen, until = len(self._waiting), time.monotonic() + _GATHER
        while seen < MAX_ROWS and (left := until - time.monotonic()) > 0:
            self._condition.wait(left)
            if len(self._waiting) > seen:
                seen, until = len(self._waiting), time.monotonic() + _GATHER

    def _batch(self) -> list[Job]:
        first, width = self._waiting[0].adapter, 0
        chosen: list[Job] = []
        rest: deque[Job] = deque()
        for job in self._waiting:
            wider = max(width, len(job.ids))
            fits = len(chosen) < MAX_ROWS and (not chosen or wider * (len(chosen) + 1) <= MAX_TOKENS)
            if job.adapter == first and fits:
                chosen.append(job)
                width = wider
            else:
                rest.append(job)
        self._waiting = rest
        return chosen

    def _answer(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if job.reply.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            replies = self._generate(jobs)
        except BaseException as error:  # whatever went wrong, each caller waits for an answer
            for job in jobs:
                job.reply.set_exception(error)
            return
        for job, reply in zip(jobs, replies, strict=True):
            job.reply.set_result(reply)

    def _generate(self, jobs: list[Job]) -> list[Reply]:
        if self._model is None:
            self._load()
        chat = self.chat
        pad_id = chat.tokenizer.pad_token_id
        with self._wearing(jobs[0].adapter):
            try:
                return generate(
                    self._model,
                    [job.ids for job in jobs],
                    [job.sampling for job in jobs],
                    stop_ids=chat.stop_ids | _configured_stops(self._model),
                    pad_id=chat.end_of_turn_id if pad_id is None else pad_id,
                    decode=chat.decode,
                )
            except torch.OutOfMemoryError:
                if len(jobs) == 1:
                    raise
        half = len(jobs) // 2  # out of memory: the same requests in smaller batches
        return self._generate(jobs[:half]) + self._generate(jobs[half:])

    def _load(self) -> None:
        self._refuse_changed(self._identity)
        self._model = weights.load_model(self.path, self._device, self._dtype)

    def _refuse_changed(self, identity: str, adapter: Path | None = None) -> None:
        if (found := weights.identity(self.path, adapter)) != identity:
            raise ModelError(
                f"The weights in {adapter or self.path} changed after their engine was made: {identity} then, {found} now.",
                hint="Make a new engine for them, so that no cached answer of the old ones is taken for theirs.",
            )

    def _wearing(self, adapter: tuple[str, Path] | None) -> AbstractContextManager[Any]:
        """The base with this adapter on it, or bare."""
        if adapter is None:
            return self._model.disable_adapter() if self._adapters else nullcontext()
        name, folder = adapter
        if name not in self._adapters:
            self._load_adapter(name, folder)
        self._model.set_adapter(name)
        return nullcontext()

    def _load_adapter(self, name: str, folder: Path) -> None:
        from peft import PeftModel

        self._refuse_changed(name, folder)
        weights.check(self.path, folder)
        try:
            if self._adapters:
                self._model.load_adapter(str(folder), adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(self._model, str(folder), adapter_name=name)
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            self._model, self._adapters = None, set()  # half an adapter may hang on it
            raise ModelError(
                f"The adapter in {folder} does not fit the model in {self.path}: {error}",
                hint="Its adapter_config.json names the base that it was trained on.",
            ) from error
        self._model.eval()
        self._adapters.add(name)


_shared: "weakref.WeakValueDictionary[tuple[str, str, str], LoadedModel]" = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def loaded(path: Path, device: str, dtype: str) -> LoadedModel:
    """The one `LoadedModel` of these weights on this device in this dtype."""
    key = (weights.identity(path), str(weights.device_of(device)), str(weights.dtype_of(dtype, device)))
    with _shared_lock:
        found = _shared.get(key)
        if found is None:
            found = _shared[key] = LoadedModel(path, key[0], device, dtype)
        return found


def _configured_stops(model: Any) -> set[int]:
    found = getattr(model.generation_config, "eos_token_id", None)
    return set(found) if isinstance(found, list) else set() if found is None else {found}
