"""Continuous batching: requests join the live batches of one model and leave them at any step.

A `Scheduler` is used by one thread, that of its `LoadedModel`. Each call of `step` lets waiting requests join and computes one
token, or several where a format fixes them, of every row.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import Any

import torch

from .batch import Batch, CascadeBatch, Start
from .batches import Batches
from .generation import Ending, Generation, Job, TokenScore
from .longrope import attending, short_length
from .lora import Adapters, is_plain
from .memory import MemoryPlan, MemoryReport, is_out_of_memory
from .padded import PaddedBatch
from .peft_adapters import PeftAdapters
from .prefixes import Overlaps, as_array
from .runner import Runner, Wearing, most_columns
from .sampling import choose
from .starts import Starts

MAX_TOKENS = 65_536  # of a padded batch's prompts, padding included
_ADAPTERS = 64  # that stay loaded
_SMALL = 4  # rows of a batch that is worth dissolving

logger = logging.getLogger(__name__)

CheckAdapter = Callable[[str, Path], None]


class Scheduler:
    """The live batches of a loaded model, its prefixes and its adapters.

    Args:
        model: The base, on its device.
        ending: What ends a reply.
        pad_id: The token of padding.
        plan: The limits of memory.
        check: Called with an adapter's identity and folder before it is loaded; raises where the files have changed.
    """

    def __init__(self, model: Any, ending: Ending, pad_id: int, plan: MemoryPlan, check: CheckAdapter) -> None:
        self._model = model
        self._ending, self._pad_id, self._plan, self._check = ending, pad_id, plan, check
        self._adapters, self._special = Adapters(model), PeftAdapters(model)
        self._used: dict[str, None] = {}  # adapters, the least recently used first
        self._runners: dict[str | None, Runner] = {
            None: Runner(model, self._adapters.routed)
        }  # by adapters that run alone
        self._short, self._attention = short_length(model.config), model.config._attn_implementation
        if self._short is not None:
            logger.info("Texts of more than %d tokens are computed one by one: longrope.", self._short)
        self._token_bytes = self._runners[None].qualify()
        self._columns = most_columns(model)
        self._weights = sum(parameter.nbytes for parameter in model.parameters())
        self._starts = Starts(plan.prefixes, self._token_bytes)
        self._slotted = Batches(plan.batch, self._token_bytes, self._weights, model.device)
        self._padded: list[PaddedBatch] = []
        self._waiting: deque[Generation] = deque()
        self._long = 0  # tokens that padded batches may come to: `memory` is asked from other threads
        self._rows = self._most = most_rows(model.device)
        self._full: float = math.inf  # rows at which one did not fit: until one of them is over, none will

    @property
    def live(self) -> int:
        """Requests that are being answered or wait to be."""
        return len(self._waiting) + self._joined

    @property
    def memory(self) -> MemoryReport:
        """What is held now. Any thread may ask: this reads totals that are kept, and iterates over nothing that changes."""
        batch = self._slotted.bytes + self._long * self._token_bytes
        adapters = self._adapters.bytes + self._special.bytes
        return MemoryReport(self._weights, adapters, self._starts.kept.bytes, batch, self._plan)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let requests wait for their turn; those of adapters that cannot be had fail at once."""
        for job in jobs:
            try:
                if job.adapter is not None:
                    self._load(*job.adapter)
                generation = Generation(job, self._ending, self._model.device)
                generation.begin()
            except Exception as error:  # it concerns this request alone, which gets it
                job.fail(error)
                continue
            self._waiting.append(generation)

    def forget(self, adapter: str) -> bool:
        """Free an adapter and its prefixes, unless a request needs it now; whether it is free."""
        if adapter in self._needed:
            return False
        if adapter in self._used:
            self._drop(adapter)
        return True

    @torch.inference_mode()
    def step(self) -> None:
        """Let requests join, and compute the next tokens of all rows. Errors go to the requests that they concern."""
        self._slotted.close()
        self._gather()
        self._join()
        self._slotted.make_room()
        for batch in self._batches:
            if len(batch):
                self._advance(batch)
        self._padded = [batch for batch in self._padded if len(batch)]
        self._long = sum(_whole(row) for batch in self._padded for row in batch.generations)
        if not self.live:
            self._rows = self._most

    def fail(self, error: BaseException) -> None:
        """Give all requests this error. The scheduler must not be used any more."""
        for generation in [*self._waiting, *self._generations]:
            generation.job.fail(error)

    @property
    def _batches(self) -> list[Batch]:
        return [*self._slotted, *self._padded]

    @property
    def _joined(self) -> int:
        """Rows of all batches."""
        return sum(len(batch) for batch in self._batches)

    @property
    def _generations(self) -> list[Generation]:
        return [generation for batch in self._batches for generation in batch.generations]

    @property
    def _needed(self) -> set[str | None]:
        """The adapters of all requests that are not over."""
        return {generation.adapter for generation in [*self._waiting, *self._generations]}

    # ------------------------------------------------------------------------------------------------------- joining

    def _join(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for generation in waiting:
            if generation.finish_reason is not None:
                _finish(generation)
            elif generation.cancelled:
                generation.job.reply.set_running_or_notify_cancel()
                self._full = math.inf  # it may have been what did not fit
            else:
                self._waiting.append(generation)
        if self._joined >= self._full:
            return
        self._full = math.inf
        free = self._rows - self._joined
        joining = [self._waiting.popleft() for _ in range(max(0, min(free, len(self._waiting))))]
        try:
            short = self._join_long(joining)
            if short:
                self._join_slotted(short) if self._token_bytes else self._join_padded(short)
        except Exception as error:  # the requests that have not joined get it
            held = {id(generation) for generation in [*self._waiting, *self._generations]}
            for generation in joining:
                if id(generation) not in held:
                    generation.job.fail(error)

    def _join_slotted(self, joining: list[Generation]) -> None:
        tokens = [as_array(generation.job.ids + generation.written) for generation in joining]
        overlaps = Overlaps([(each.adapter, ids) for each, ids in zip(joining, tokens, strict=True)])
        first: dict[tuple[str | None, bytes], tuple[Generation, Start, CascadeBatch]] = {}
        self._narrow()
        for at, (generation, ids) in enumerate(zip(joining, tokens, strict=True)):
            key = (generation.adapter, ids.tobytes())
            try:
                if key in first:
                    like, start, batch = first[key]
                    found = batch if self._slotted.fits(batch, generation, start.shared) else None
                else:
                    like, runner, worn = None, self._runner_of(generation.adapter), self._apart(generation.adapter)
                    start = self._starts.of(generation, ids, overlaps, at, runner)
                    found = self._slotted.find(generation, start.shared, runner, worn)
                    if found is None and start.source is not None:  # a copy is too much, and it need not have one
                        start = Start(start.source, start.copied)
                        found = self._slotted.find(generation, start.shared, runner, worn)
                if found is None:
                    self._waiting.extendleft(reversed(joining[at:]))
                    self._full = self._joined
                    break
                found.add(generation, start, like)
            except Exception as error:  # it concerns this request alone, which gets it
                generation.job.fail(error)
                continue
            first.setdefault(key, (generation, start, found))  # only what has joined can have twins

    def _gather(self) -> None:
        """Have the rows of the smallest batch go on in larger ones, if they are few: a batch less is a pass less."""
        batch = min(self._slotted, key=len) if len(self._slotted) > 1 else None
        if batch is None or len(batch) > _SMALL:
            return
        for generation in batch.generations:
            for shared, begin in self._starts.again(generation, batch):
                other = self._slotted.beside(batch, generation, shared)
                if other is not None:
                    start = begin()
                    batch.drop([generation])
                    other.add(generation, start)
                    break

    def _narrow(self) -> None:
        """Have a row that is alone stand behind what was kept of it, so that those who join find narrow slots."""
        for batch in self._slotted:
            for generation in batch.generations if len(batch) == 1 else []:
                start = self._starts.kept_of(generation)
                if start is not None and batch.idle(generation, start.shared) > start.shared // 2:
                    batch.drop([generation])
                    batch.add(generation, start)

    def _apart(self, adapter: str | None) -> str | None:
        """The adapter, if it cannot share a step with others."""
        return None if adapter is None or adapter in self._adapters else adapter

    def _runner_of(self, adapter: str | None) -> Runner:
        worn = self._apart(adapter)
        if worn not in self._runners:
            self._runners[worn] = Runner(self._model, self._wearing(worn))
        return self._runners[worn]

    def _wearing(self, adapter: str | None) -> Wearing:
        worn = self._apart(adapter)
        return self._adapters.routed if worn is None else lambda owners: self._special.wearing(worn)

    def _join_long(self, joining: list[Generation]) -> list[Generation]:
        """Begin what may outgrow the model's short texts, each by itself; the others are left."""
        short = self._short
        if short is None:
            return joining
        for generation in joining:
            if _whole(generation) > short:
                if self._long and (self._long + _whole(generation)) * self._token_bytes > self._plan.batch:
                    self._waiting.append(generation)  # until others are over
                    continue
                self._long += _whole(generation)
                wearing = self._wearing(generation.adapter)
                self._padded.append(PaddedBatch(self._model, [generation], self._pad_id, self._plainly(wearing), short))
        return [generation for generation in joining if _whole(generation) <= short]

    def _plainly(self, wearing: Wearing) -> Wearing:
        """As `wearing`, with the attention that the model had before it qualified for steps."""

        @contextmanager
        def both(owners: Sequence[tuple[str | None, int]]) -> Iterator[None]:
            with wearing(owners), attending(self._model, self._attention):
                yield

        return both

    def _join_padded(self, joining: list[Generation]) -> None:
        """One batch for each adapter; what is too much for it waits, and what padding would push beyond the model's columns."""
        by_adapter: dict[str | None, list[Generation]] = {}
        for generation in sorted(joining, key=lambda each: each.length):
            by_adapter.setdefault(generation.adapter, []).append(generation)
        for adapter, rows in by_adapter.items():
            while len(rows) > 1 and (
                len(rows) * rows[-1].length > MAX_TOKENS
                or rows[-1].length + max(row.left for row in rows) > self._columns
            ):
                self._waiting.appendleft(rows.pop())
            self._padded.append(PaddedBatch(self._model, rows, self._pad_id, self._wearing(adapter)))

    # ------------------------------------------------------------------------------------------------------ advancing

    def _advance(self, batch: Batch) -> None:
        cancelled = [generation for generation in batch.generations if generation.cancelled]
        batch.drop(cancelled)
        for generation in cancelled:
            generation.job.reply.set_running_or_notify_cancel()
        if not len(batch):
            return
        try:
            ready, logits = self._forward(batch)
            over = self._choose(ready, logits)
        except Exception as error:  # each caller waits for an answer, and gets this one
            self._recover(batch, error)
            return
        batch.drop([generation for generation, _ in over])
        self._rows = min(self._most, self._rows + len(over))  # after memory ran out
        for generation, failure in over:
            _finish(generation) if failure is None else generation.job.fail(failure)

    def _forward(self, batch: Batch) -> tuple[list[Generation], torch.Tensor]:
        """What `batch.forward` gives; long prompts that it computed are kept."""
        if not isinstance(batch, CascadeBatch):
            return batch.forward()
        self._slotted.bound(batch)
        ready, logits = batch.forward()
        for generation in ready:
            self._starts.keep(generation, batch)
        return ready, logits

    def _choose(self, ready: list[Generation], logits: torch.Tensor) -> list[tuple[Generation, BaseException | None]]:
        """Give each ready row its next token; the rows that are over, with the error that ended them, if one did."""
        if not ready:
            return []
        # All memory is taken before a seed's numbers are drawn: they come once, and where it runs out the step is repeated.
        tops = {i: row.sampling.logprobs for i, row in enumerate(ready)}
        plain = {i: _likeliest(logits[i], top) for i, top in tops.items() if top is not None}
        over: list[tuple[Generation, BaseException | None]] = []
        failed: set[int] = set()
        masks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # with what they refuse; most rows share one
        for i, generation in enumerate(ready):
            try:
                mask = generation.mask()
                if mask is not None:
                    if id(mask) not in masks:
                        masks[id(mask)] = mask, ~mask.to(logits.device)
                    logits[i].masked_fill_(masks[id(mask)][1], -torch.inf)
            except Exception as error:  # a constraint that cannot go on ends its own row only
                over.append((generation, error))
                failed.add(i)
                continue
        tokens = choose(logits, [row.sampling for row in ready], [row.generator for row in ready])
        for i, (generation, token) in enumerate(zip(ready, tokens, strict=True)):
            if i in failed:
                continue
            if i in plain:
                generation.scores.append(TokenScore(token, float(plain[i][0][token]), plain[i][1]))
            try:
                generation.take(token)
            except Exception as error:
                over.append((generation, error))
            else:
                if generation.finish_reason is not None:
                    over.append((generation, None))
        return over

    def _recover(self, batch: Batch, error: BaseException) -> None:
        """Out of memory: the same rows in smaller batches. Anything else is the rows' answer."""
        rows = batch.generations
        batch.drop(rows)
        if is_out_of_memory(error):
            clear_frames(error.__traceback__)  # which hold the tensors of the step
            freed = self._starts.kept.shrink(0)
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
            together = len(rows) + self._joined
            if together > 1 or (freed and self._rows > 1):
                self._rows = max(1, together // 2)
                for generation in rows:
                    generation.computed = 0
                self._waiting.extendleft(reversed(rows))
                return
        for generation in rows:
            generation.job.fail(error)

    # ------------------------------------------------------------------------------------------------------- adapters

    def _load(self, name: str, folder: Path) -> None:
        if name not in self._used:
            self._check(name, folder)
            (self._adapters if is_plain(folder) else self._special).load(name, folder)
        self._used.pop(name, None)
        self._used[name] = None
        if len(self._used) > _ADAPTERS:
            needed = {*self._needed, name}
            for other in [other for other in self._used if other not in needed][: len(self._used) - _ADAPTERS]:
                self._drop(other)

    def _drop(self, name: str) -> None:
        del self._used[name]
        self._runners.pop(name, None)
        self._starts.kept.forget(name)
        (self._adapters if name in self._adapters else self._special).drop(name)


def most_rows(device: torch.device) -> int:
    """How many requests a model on `device` computes at once, where memory allows it.

    A step of many takes a GPU little longer than one of a few: it is bound by reading the weights. A processor is bound by
    arithmetic.
    """
    return 512 if device.type == "cuda" else 64


def _whole(generation: Generation) -> int:
    """The most tokens that a text may come to, prompt and reply."""
    return generation.length + generation.left


def _likeliest(logits: torch.Tensor, top: int) -> tuple[torch.Tensor, tuple[tuple[int, float], ...]]:
    """All log-probabilities under `logits` (vocabulary,), and the likeliest `top` tokens with theirs."""
    scores = logits.log_softmax(-1)
    best = scores.topk(min(top, len(scores)))
    return scores, tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _finish(generation: Generation) -> None:
    job = generation.job
    try:
        reply = generation.reply()
    except Exception as error:  # text that cannot be decoded is this request's trouble
        job.fail(error)
        return
    if job.reply.set_running_or_notify_cancel():
        job.reply.set_result(reply)
