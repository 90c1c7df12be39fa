"""Options of a choice, scored exactly: how likely the model is to write each of them at one place of a reply.

A request asks for it with `Config.probabilities` and says what the reply reads up to that place and what may stand there
(`Choices`, in its metadata). Every option is followed token by token behind the prompt that they share, up to the first
token behind it, so an option that another begins with has its fair share; the probabilities of the sequences are
then divided by their sum.
"""

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import torch
from dspy import lm15

from .chat import ChatTokenizer
from .constraints import reply_ids
from .generation import Job, Reply
from .sampling import Sampling

CHOICES = "choices"  # the key of `Choices`, as JSON text, in a request's metadata
METHOD = "candidate_sequence_likelihood"  # lm15's word for probabilities that were come by in this way


@dataclass(frozen=True)
class Choices:
    """What may stand in one place of a reply: `options` by their labels, between the texts `before` and `after`."""

    field: str
    before: str
    options: dict[str, str]
    after: str

    def request(self, prompt: lm15.Request) -> lm15.Request:
        """The request for the probabilities of the options, behind the messages of `prompt`."""
        config = lm15.Config(probabilities="required", extensions={"metadata": {CHOICES: json.dumps(asdict(self))}})
        return lm15.Request(model=prompt.model, messages=prompt.messages, system=prompt.system, config=config)

    @classmethod
    def of(cls, request: lm15.Request) -> "Choices | None":
        """What a request asks to be scored; None where it asks for text."""
        found = (request.config.extensions or {}).get("metadata", {}).get(CHOICES)
        return None if found is None else cls(**json.loads(found))

    def response(self, request: lm15.Request, probabilities: dict[str, float], usage: lm15.Usage) -> lm15.Response:
        """The likeliest option and the probabilities of all."""
        likeliest = max(probabilities, key=lambda label: probabilities[label])
        part = lm15.DataPart({self.field: likeliest}, {self.field: probabilities}, METHOD)
        message = lm15.Message.assistant([part])
        return lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)


def score(
    choices: Choices,
    prompt: list[int],
    chat: ChatTokenizer,
    *,
    size: int | None,
    submit: Callable[..., Sequence["Future[Reply]"]],
    adapter: Any = None,
) -> tuple[dict[str, float], int]:
    """The probability of each option by its label, and the number of tokens that were followed."""
    paths = {label: _path(choices, text, chat, size) for label, text in choices.options.items()}
    shared = _shared([*paths.values()])
    jobs = []
    for path in paths.values():
        rest = path[shared:]
        sampling = Sampling(max_tokens=len(rest), logprobs=0)
        jobs.append(Job(prompt + path[:shared], sampling, adapter, _Follow(rest, size or len(chat.tokenizer))))
    scores = [future.result().logprob for future in submit(*jobs)]
    highest = max(scores)
    weights = [math.exp(each - highest) for each in scores]
    total = sum(weights)
    tokens = sum(job.sampling.max_tokens for job in jobs)
    return {label: weight / total for label, weight in zip(paths, weights, strict=True)}, tokens


def _path(choices: Choices, option: str, chat: ChatTokenizer, size: int | None) -> list[int]:
    """The tokens of a reply with this option, up to the first that goes beyond it."""
    ids, ends = reply_ids(choices.before + option + choices.after, chat, size=size)
    end = len((choices.before + option).encode())
    beyond = next((at for at, reached in enumerate(ends) if reached > end), None)
    return [*ids, chat.end_of_turn_id] if beyond is None else ids[: beyond + 1]


def _shared(paths: list[list[int]]) -> int:
    """How many first tokens all have in common; one at least is left to each."""
    columns = zip(*(path[:-1] for path in paths), strict=False)
    return next((at for at, column in enumerate(columns) if len(set(column)) > 1), min(map(len, paths)) - 1)


class _Follow:
    """A `Constraint` that leaves one way to go. Its tokens are chosen, not forced, so that the engine tells their scores."""

    def __init__(self, ids: list[int], size: int) -> None:
        self._ids, self._at, self._size = ids, 0, size

    @property
    def finished(self) -> bool:
        return self._at >= len(self._ids)

    def forced(self) -> list[int]:
        return []

    def allowed(self) -> torch.Tensor:
        mask = torch.zeros(self._size, dtype=torch.bool)
        mask[self._ids[self._at]] = True
        return mask

    def accept(self, token: int) -> None:
        self._at += 1

    def closing(self, left: int) -> list[int] | None:
        return None
