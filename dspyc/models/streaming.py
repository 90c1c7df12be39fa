"""A reply as stream events while it is written."""

from collections.abc import Iterator, Sequence

from dspy import lm15

from .generation import Decode, Reply, TokenScore
from .opening import Opening
from .stops import first_stop

_UNFINISHED = "\ufffd"  # what a decoder writes for the first bytes of a character


class TextStream:
    """The text of growing token ids, piece by piece: whole characters, and nothing that a stop string may still take away.

    Put together, the pieces are the reply's own text, behind its `opening`; there are none until that is over.
    """

    def __init__(self, decode: Decode, stop: Sequence[str], opening: Opening) -> None:
        self._decode, self._stop, self._opening = decode, stop, opening
        self._ids: list[int] = []
        self._sent = ""

    def add(self, ids: Sequence[int]) -> str:
        """The text that is certain now and was not before; often empty."""
        self._ids += ids
        text = self._opening.certain(self._decode(self._ids).rstrip(_UNFINISHED))
        cut = first_stop(text, self._stop)
        return self._send(text[: cut - _begun(text[:cut], self._stop)])

    def finish(self, text: str) -> str:
        """What remains of the reply's whole text, its opening included."""
        return self._send(self._opening.without(text))

    def _send(self, text: str) -> str:
        if len(text) <= len(self._sent) or not text.startswith(self._sent):
            return ""
        new, self._sent = text[len(self._sent) :], text
        return new


def delta(text: str, logprobs: Sequence[lm15.TokenLogprob] = (), *, complete: bool = True) -> lm15.StreamDeltaEvent:
    """A piece of text as an event."""
    return lm15.StreamDeltaEvent(lm15.TextDelta(text=text, logprobs=tuple(logprobs), logprobs_complete=complete))


def ending(
    reply: Reply, rest: str, usage: lm15.Usage, logprobs: tuple[lm15.TokenLogprob, ...] | None
) -> Iterator[lm15.StreamDeltaEvent | lm15.StreamEndEvent]:
    """The last events: the `rest` of the text with the scores of all of it, and the end."""
    if rest or logprobs:
        yield delta(rest, logprobs or (), complete=reply.scores_complete)
    yield lm15.StreamEndEvent(finish_reason=reply.finish_reason, usage=usage)


def token_logprobs(scores: Sequence[TokenScore], decode: Decode) -> tuple[lm15.TokenLogprob, ...]:
    """Scores as a response holds them."""
    return tuple(
        lm15.TokenLogprob(
            token=decode([token]),
            logprob=logprob,
            token_id=token,
            top=tuple(lm15.TopLogprob(token=decode([other]), logprob=value, token_id=other) for other, value in top),
        )
        for token, logprob, top in scores
    )


def _begun(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` with which a stop string begins."""
    longest = max(map(len, stops), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), 0)
