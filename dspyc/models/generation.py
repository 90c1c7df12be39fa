"""One reply while it is written: its tokens so far, what the model has not read of them, and when it is over."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from traceback import clear_frames
from typing import Literal, NamedTuple

import torch

from .constraints import Constraint
from .opening import Opening
from .sampling import Sampling
from .stops import first_stop

_CPU = torch.device("cpu")
FinishReason = Literal["stop", "length"]
Decode = Callable[[list[int]], str]


class TokenScore(NamedTuple):
    """A token's natural log-probability under the model, and those of the likeliest tokens in its place, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Reply:
    """`text` without control tokens and stop strings; `tokens` counts all that were generated.

    `cached` counts prompt tokens that were not computed for this reply; `scores` has what `Sampling.logprobs` asked for, for
    each token of `ids` that was chosen (those that a constraint fixes have no scores); `logprob` is their sum, the token that
    ends the turn included.
    """

    text: str
    tokens: int
    finish_reason: FinishReason
    cached: int = 0
    scores: tuple[TokenScore, ...] = ()
    scores_complete: bool = True
    logprob: float = 0.0


@dataclass(eq=False)
class Job:
    """One prompt to answer, with the adapter (its identity and folder) that answers it, and the reply's constraint.

    `on_tokens` is called on the engine's thread with the ids that were just written. Cancelling `reply` ends the work on it,
    at whatever token it stands.
    """

    ids: list[int]
    sampling: Sampling
    adapter: tuple[str, Path] | None = None
    constraint: Constraint | None = None
    reply: "Future[Reply]" = field(default_factory=Future)
    on_tokens: Callable[[list[int]], None] | None = None

    def fail(self, error: BaseException) -> None:
        """End it with an error, unless it is over."""
        clear_frames(error.__traceback__)  # whoever keeps the error should not keep the tensors of the step with it
        if not self.reply.done() and self.reply.set_running_or_notify_cancel():
            self.reply.set_exception(error)


@dataclass(frozen=True)
class Ending:
    """What ends a reply beside its length: the tokens `stop_ids`, and stop strings, which `decode` finds behind `opening`."""

    stop_ids: set[int]
    decode: Decode
    opening: Opening = field(default_factory=Opening)


class Generation:
    """The state of one reply. `computed` counts the tokens, of prompt and reply, whose keys and values are in place.

    With `keep`, those of the prompt should be kept when they are.

    `device` is the model's, where a seed's numbers are drawn.
    """

    def __init__(self, job: Job, ending: Ending, device: torch.device = _CPU) -> None:
        self.job = job
        self.sampling = job.sampling
        self.adapter = job.adapter[0] if job.adapter else None
        self.generator = job.sampling.generator(device)
        self.written: list[int] = []
        self.scores: list[TokenScore] = []
        self.finish_reason: FinishReason | None = None
        self.computed = 0
        self.cached = 0
        self.keep = False
        self._ending = ending
        self._constraint = job.constraint

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the reply so far."""
        return len(self.job.ids) + len(self.written)

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self.sampling.max_tokens - len(self.written)

    @property
    def cancelled(self) -> bool:
        return self.job.reply.cancelled()

    def pending(self, most: int) -> list[int]:
        """The next tokens, at most so many, that the model has to read."""
        prompt = self.job.ids
        if self.computed >= len(prompt):
            start = self.computed - len(prompt)
            return self.written[start : start + most]
        ids = prompt[self.computed : self.computed + most]
        return ids + self.written[: most - len(ids)] if len(ids) < most and self.written else ids

    def begin(self) -> None:
        """Write what the constraint fixes from the start. It may be the whole reply."""
        self._follow()

    def mask(self) -> torch.Tensor | None:
        """The tokens that may come next, (vocabulary,) of booleans; None where all may."""
        return self._constraint.allowed() if self._constraint is not None else None

    def take(self, token: int) -> None:
        """Write a chosen token, and what the constraint fixes behind it."""
        self._write([token])
        if self.finish_reason is None and self._constraint is not None:
            self._constraint.accept(token)
            self._follow()
        if self.finish_reason is None and self.left <= 0:
            self.finish_reason = "length"

    def reply(self) -> Reply:
        """The reply, once `finish_reason` says that it is over."""
        stops, decode = self._ending.stop_ids, self._ending.decode
        ids = self.written[:-1] if self.written and self.written[-1] in stops else self.written
        text = decode(ids)
        begin = len(text) - len(self._ending.opening.certain(text)) if self.sampling.stop else 0
        cut = first_stop(text, self.sampling.stop, begin)
        scores = [score for score in self.scores if score.token not in stops]
        whole = len(scores) == len(ids)
        if cut < len(text):
            text = text[:cut]
            if whole:
                scores = scores[: _tokens_within(ids, text, decode)]
            whole = whole and decode([score.token for score in scores]) == text
        return Reply(
            text,
            len(self.written),
            self.finish_reason or "length",
            self.cached,
            tuple(scores),
            whole or not self.scores,
            sum(score.logprob for score in self.scores),
        )

    def _follow(self) -> None:
        constraint = self._constraint
        if constraint is None:
            return
        self._write(constraint.forced())
        if self.finish_reason is not None:
            return
        if constraint.finished:
            self.finish_reason = "stop"
            return
        closing = constraint.closing(self.left) if self.left > 0 else None
        if closing is not None:
            self._write(closing)
            self.finish_reason = self.finish_reason or "length"

    def _write(self, ids: list[int]) -> None:
        if not ids:
            return
        ids = ids[: self.left]
        self.written += ids
        if ids and (ids[-1] in self._ending.stop_ids or self._says_stop(len(ids))):
            self.finish_reason = "stop"
        if self.job.on_tokens is not None:
            self.job.on_tokens(ids)

    def _says_stop(self, added: int) -> bool:
        """Whether the last tokens complete a stop string; a token holds at least a byte, so few of them need decoding."""
        if not self.sampling.stop:
            return False
        window = max(len(text.encode()) for text in self.sampling.stop) + 8 + added
        tail = self._ending.decode(self.written[-window:])
        if not any(text in tail for text in self.sampling.stop):
            return False
        opening = self._ending.opening
        own = opening.certain(self._ending.decode(self.written)) if opening.text else tail
        return any(text in own for text in self.sampling.stop)


def _tokens_within(ids: Sequence[int], text: str, decode: Decode) -> int:
    """How many of the first tokens lie within `text`, a beginning of what they spell."""
    count = 0
    while count < len(ids) and text.startswith(decode(list(ids[: count + 1]))):
        count += 1
    return count
