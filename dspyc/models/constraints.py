"""What a reply must look like, token by token: the seam between the engine that writes and the grammar that allows.

A scheduler drives a reply's `Constraint` so, in this order at every step:

    ids = constraint.forced()            # appended in one step, before the model is asked
    if constraint.finished: ...          # the reply is whole; it needs no end-of-turn token
    ids = constraint.closing(left)       # not None: appended, and the reply is over
    mask = constraint.allowed()          # the next token is taken from these, greedily or by sampling, and
    constraint.accept(token)             # said

`GrammarConstraint` is the one that follows a grammar of `dspyc.signatures`. Masks are computed once for each state of the
grammar, over the whole vocabulary at a time, and kept while they are used: in a text, or at a choice that was met before, a
step costs a look-up. States that differ only in how long a text or a list may still become share a mask, until the bound is
no farther away than the longest token. What the format fixes becomes the tokens that the tokenizer gives for it behind the
reply so far, as in a training row; a last token that a longer one could take the place of is left to the model.
"""

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate, takewhile
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..errors import ModelError
from ..signatures.expressions import until
from .automaton import DEAD, Automaton, Grammar
from .chat import ChatTokenizer
from .masks import MASK_BYTES, Masks
from .opening import THOUGHT_END
from .vocabulary import Vocabulary

_KEPT = 128  # grammars of one tokenizer that stay compiled
_REMEMBERED = 4  # tokens before a forced text that its own tokens may depend on
_MOST_FORCED = 10_000  # forced texts of a grammar, with what stood before them, whose tokens are kept
_LONGEST_CUT = 24  # bytes before the end of a forced text in which a token that goes beyond it may begin


class Constraint(Protocol):
    """The state of one reply while it is written. It belongs to one reply and is used by one thread at a time."""

    def forced(self) -> list[int]:
        """The token ids that the format fixes next; [] if none. This call accepts them: `accept` is not called for them."""
        ...

    def allowed(self) -> torch.Tensor | None:
        """The tokens that may follow, a boolean mask `(vocabulary,)` on the CPU; None where any may.

        The mask is shared and must not be changed; equal masks are mostly the same tensor.
        """
        ...

    def accept(self, token: int) -> None:
        """Take a token that `allowed` allowed."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the reply is whole: nothing more may follow, and no end-of-turn token is needed."""
        ...

    def closing(self, left: int) -> list[int] | None:
        """The token ids that end the reply validly, where only they fit into `left` more tokens; None while there is room.

        The reply is over with them: they need not be accepted.

        Raises:
            ModelError: The reply cannot be ended within `left` tokens; it names the field.
        """
        ...


class _Ahead(NamedTuple):
    """Where one token leads from a state: to these states, and so many bytes at most are needed to end the reply from there."""

    following: list[int]
    farthest: int


class CompiledGrammar:
    """A grammar over a vocabulary: the masks of its states, and how many tokens each needs to its end.

    `masks` is where they are held, with those of other grammars. Safe to share between threads.

    Raises:
        ModelError: The tokenizer's tokens cannot be told as bytes, or nothing finite satisfies the grammar.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary, stop_ids: Iterable[int], masks: Masks) -> None:
        self.automaton = Automaton(grammar)
        self.vocabulary = vocabulary
        self.stop_ids = frozenset(stop_ids)
        self._masks, self._own = masks, object()  # what its masks are held under
        self._alike: dict[int, int] = {}
        self._aheads: dict[int, _Ahead] = {}
        self._closings: dict[int, list[int]] = {}
        self._cuts: dict[int, list[int]] = {}
        self._forced: dict[tuple[int, tuple[int, ...]], tuple[list[int], int]] = {}
        self._lock = threading.RLock()

    def roomy(self, state: int, left: int) -> bool:
        """Whether any token may follow in `state` and leave, of `left` tokens, enough to end the reply with."""
        with self._lock:
            return self._ahead(self._shared(state)).farthest < left

    def mask_within(self, state: int, left: int) -> torch.Tensor:
        """The tokens, `(vocabulary,)`, that may follow in `state` and after which the reply can be ended within `left`, they
        themselves included."""
        with self._lock:
            state = self._shared(state)
            ahead = self._ahead(state)
            if ahead.farthest < left:
                return self._mask(state)
            return self._mask(state, tuple(other for other in ahead.following if len(self.closing(other)) >= left))

    def _shared(self, state: int) -> int:
        """The state that stands for all which a token leads on from in the same way, to ends that are as near."""
        found = self._alike.get(state)
        if found is None:
            longest = int(self.vocabulary.lengths[0])
            found = self._alike[state] = self.automaton.alike(state, longest)
        return found

    def _mask(self, state: int, late: tuple[int, ...] = ()) -> torch.Tensor:
        """The tokens that may follow in `state` but those that lead to the states `late`."""
        found = self._masks.get((self._own, state, late))
        if found is None:
            found = self._made(state, self._run(state), late)
        return found

    def _made(self, state: int, states: np.ndarray, late: tuple[int, ...] = ()) -> torch.Tensor:
        mask = torch.zeros(self.vocabulary.size, dtype=torch.bool)
        mask[self.vocabulary.order[~np.isin(states, late) & (states != DEAD) if late else states != DEAD]] = True
        if self.automaton.ends(state):
            mask[[stop for stop in self.stop_ids if stop < len(mask)]] = True
        self._masks.keep((self._own, state, late), mask)
        return mask

    def _ahead(self, state: int) -> _Ahead:
        found = self._aheads.get(state)
        if found is None:
            states = self._run(state)
            self._made(state, states)
            following = [other for other in np.flatnonzero(np.bincount(states)).tolist() if other != DEAD]
            # A text has no more tokens than bytes, so this bound is safe; tokens are counted only where it does not settle it.
            farthest = max((len(self.automaton.shortest(other) or b"") for other in following), default=0)
            found = self._aheads[state] = _Ahead(following, farthest)
        return found

    def closing(self, state: int) -> list[int]:
        """The tokens of the shortest text that ends the reply."""
        with self._lock:
            if state not in self._closings:
                text = self.automaton.shortest(state)
                if text is None:
                    raise ModelError("The reply has come to a place that nothing leads out of.")
                self._closings[state] = self.vocabulary.ids(text)
            return self._closings[state]

    def shortest_fields(self) -> list[tuple[str, int]]:
        """Every field's name and the fewest tokens that it takes, its markers included."""
        automaton = self.automaton
        return [
            (name, len(self.vocabulary.ids(automaton.shortest_field(at))))
            for at, (name, _) in enumerate(automaton.fields)
        ]

    def forced(self, state: int, written: list[int]) -> tuple[list[int], int]:
        """The tokens of the text that `state` forces behind the reply so far, and the state after them.

        They are those that stay whatever follows the text: where what follows may join its end, the model decides.
        """
        key = state, tuple(written[-_REMEMBERED:])
        with self._lock:
            found = self._forced.get(key)
            if found is None:
                if len(self._forced) >= _MOST_FORCED:
                    self._forced.clear()
                found = self._forced[key] = self._forced_ids(state, written)
            return found

    def _forced_ids(self, state: int, written: list[int]) -> tuple[list[int], int]:
        text, after = self.automaton.forced(state)
        ids = self.vocabulary.ids(text, written)
        if self.automaton.closed(after):
            return ids, after
        if state not in self._cuts:
            self._cuts[state] = self._cuts_of(text, after)
        for at in self._cuts[state]:
            other = self.vocabulary.ids(text[:at], written)
            ids = ids[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, other, strict=False)))]
        return ids, self.automaton.run(state, self.vocabulary.spelled(ids))

    def _cuts_of(self, text: bytes, after: int) -> list[int]:
        """Where in a forced text a token may begin that ends beyond it, by bytes from its start.

        A tokenizer may put its boundary at any of these places, as what follows decides.
        """
        places = range(max(0, len(text) - _LONGEST_CUT), len(text))
        return [at for at in places if self._is_cut(text[at:], after)]

    def _is_cut(self, start: bytes, after: int) -> bool:
        tokens = self.vocabulary.going_on_from(start)
        rests = {self.vocabulary.spellings[token][len(start) :] for token in tokens}
        return any(self.automaton.run(after, rest) != DEAD for rest in rests)

    def _run(self, state: int) -> np.ndarray:
        words = self.vocabulary
        return self.automaton.run_all(state, words.columns, words.lengths)


class GrammarConstraint:
    """A `Constraint` that follows a grammar, within `max_tokens` tokens.

    Raises:
        ModelError: No reply fits; it names the first field that does not.
    """

    def __init__(self, grammar: CompiledGrammar, max_tokens: int) -> None:
        self._grammar, self._left = grammar, max_tokens
        self._state = grammar.automaton.start
        self._ids: list[int] = []
        self._finished = False
        if len(grammar.closing(self._state)) > max_tokens:
            raise _too_short(grammar, max_tokens)

    @property
    def finished(self) -> bool:
        return self._finished

    def forced(self) -> list[int]:
        if self._finished:
            return []
        automaton = self._grammar.automaton
        text, after = automaton.forced(self._state)
        if not text:
            self._finished = automaton.closed(self._state)
            return []
        ids, after = self._grammar.forced(self._state, self._ids)
        if len(ids) + len(self._grammar.closing(after)) > self._left:
            return self._closed()
        self._take(ids, after)
        self._finished = automaton.closed(after)
        return ids

    def allowed(self) -> torch.Tensor | None:
        return self._grammar.mask_within(self._state, self._left)

    def accept(self, token: int) -> None:
        if token in self._grammar.stop_ids:
            self._finished = True
            return
        after = self._grammar.automaton.run(self._state, self._grammar.vocabulary.spellings[token])
        if after == DEAD:
            raise ModelError(f"Token {token} is none that the reply's grammar allows here.")
        self._take([token], after)

    def closing(self, left: int) -> list[int] | None:
        self._left = min(left, self._left)
        if self._grammar.roomy(self._state, self._left):
            return None
        if len(self._grammar.closing(self._state)) > self._left:
            raise _too_short(self._grammar, left)
        # While there is a choice that fits, the model makes it: `allowed` keeps to what leaves room for the end.
        return None if self._grammar.mask_within(self._state, self._left).any() else self._closed()

    def _closed(self) -> list[int]:
        ids = self._grammar.closing(self._state)
        self._ids, self._left, self._finished = [*self._ids, *ids], self._left - len(ids), True
        return ids

    def _take(self, ids: list[int], after: int) -> None:
        self._ids += ids
        self._state, self._left = after, self._left - len(ids)


def constraint_of(grammar: str, chat: ChatTokenizer, *, max_tokens: int, size: int | None = None) -> Constraint:
    """The constraint of one reply of at most `max_tokens` tokens. Grammars are compiled once for each tokenizer.

    Args:
        grammar: A grammar of `dspyc.signatures.grammar`, as JSON text.
        chat: The tokenizer; what its template writes before a reply is part of the constraint.
        size: The length of masks, the model's vocabulary, if not the tokenizer's.

    Raises:
        ModelError: No reply fits into `max_tokens`, or the tokenizer's tokens cannot be told as bytes.
    """
    return GrammarConstraint(_shelf(chat, size).compiled(grammar), max_tokens)


def refuse_cutting(stop: Sequence[str], grammar: str) -> None:
    """Raises ModelError where a stop string stands in what the format fixes, so that no reply would ever be whole."""
    if not stop:
        return
    fixed = _fixed([part for _, part in json.loads(grammar)["fields"]])
    for word in stop:
        if found := next((text for text in fixed if word in text), None):
            raise ModelError(
                f"The stop string {word!r} is part of {found!r}, which the reply's format fixes: every reply would end there.",
                hint="Leave it out; replies end by themselves. Or load the model with constrained=False.",
            )


def _fixed(parts: Iterable[Any]) -> list[str]:
    """The texts that stand in every reply which is made of these expressions, one after the other."""
    found = [""]
    for part in parts:
        if isinstance(part, str):
            found[-1] += part
        elif part[0] == "seq":
            first, *others = _fixed(part[1:])
            found = [*found[:-1], found[-1] + first, *others]
        else:
            found.append("")
    return found


def reply_ids(text: str, chat: ChatTokenizer, *, size: int | None = None) -> tuple[list[int], list[int]]:
    """The ids of a reply of this text, with what the template opens it with, and where in the text each token ends.

    The ends are in bytes of UTF-8; those of the opening's tokens are negative or 0.
    """
    shelf = _shelf(chat, size)
    ids = shelf.vocabulary.ids((shelf.opening + text).encode())
    lengths = accumulate(len(shelf.vocabulary.spellings[token]) for token in ids)
    return ids, [end - len(shelf.opening.encode()) for end in lengths]


def _shelf(chat: ChatTokenizer, size: int | None) -> "_Shelf":
    with _lock:
        if chat not in _shelves:
            _shelves[chat] = _Shelf(chat, size)
        return _shelves[chat]


class _Shelf:
    """The compiled grammars of one tokenizer; those that were used last stay."""

    def __init__(self, chat: ChatTokenizer, size: int | None) -> None:
        encode = weakref.WeakMethod(chat.text_ids)  # the shelf's key is the tokenizer, so it must not keep it alive
        self.vocabulary = Vocabulary(chat.tokenizer, lambda text: encode()(text), size)  # type: ignore[misc]
        self._stop_ids = frozenset(chat.stop_ids)
        self.opening = " " * self.vocabulary.leads + chat.opening.text
        self._kept: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self._masks = Masks(MASK_BYTES // self.vocabulary.size)
        self._lock = threading.Lock()

    def compiled(self, grammar: str) -> CompiledGrammar:
        with self._lock:
            if grammar not in self._kept:
                self._kept[grammar] = CompiledGrammar(
                    self._opened(grammar), self.vocabulary, self._stop_ids, self._masks
                )
            self._kept.move_to_end(grammar)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[grammar]

    def _opened(self, grammar: str) -> Grammar:
        """The grammar with what the template writes before a reply, thoughts that end with a tag being free."""
        read: Grammar = json.loads(grammar)
        before, tag, after = self.opening.partition(THOUGHT_END)
        if not tag:
            return {**read, "fields": [["", self.opening], *read["fields"]]}
        rules = until(THOUGHT_END, "<think>")  # no output field, whose name its own rules begin with, is called so
        opening = ["seq", before.rstrip("\n") + "\n" * before.endswith("\n"), ["ref", "<think>.0"], after]
        return {"fields": [["", opening], *read["fields"]], "rules": {**read["rules"], **rules}}


_shelves: "weakref.WeakKeyDictionary[ChatTokenizer, _Shelf]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _too_short(grammar: CompiledGrammar, max_tokens: int) -> ModelError:
    fields = grammar.shortest_fields()
    totals = accumulate(tokens for _, tokens in fields)
    name = next((field for (field, _), total in zip(fields, totals, strict=True) if total > max_tokens), fields[-1][0])
    whole = len(grammar.closing(grammar.automaton.start))
    return ModelError(
        f"The reply's field `{name}` cannot be finished within max_tokens={max_tokens}; the shortest reply takes {whole}.",
        hint=f"Set max_tokens to {whole} or more, or give the field a shorter form.",
    )
