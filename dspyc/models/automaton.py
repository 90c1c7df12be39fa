"""A grammar as an automaton over bytes, built while it is used.

A state is what is still to be written, as an expression; a byte leads to the expression's derivative by that byte
(Brzozowski). Equal expressions are one object, so a state that was met once costs a table look-up from then on. From the
expression itself come the answers that a mask alone cannot give: what is fixed next, and the shortest text that ends it.

Expressions arrive as JSON, from `signatures.grammar`:

    "abc"                     that text                 ["seq", a, b, …]      one after the other
    ["chars", [[97, 122]]]    one character of these    ["alt", a, b, …]      one of them
    ["rep", a, least, most]   `a` again and again       ["ref", name]         the rule of that name
    ["tail", "abc"]           that text or nothing, as the reply's end
"""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ModelError

Grammar = dict[str, Any]  # {"fields": [[name, expression], …], "rules": {name: expression}}

DEAD = 0
_LAST_CHARACTER = 0x10FFFF
_GROWTH = 64  # states that the table grows by


class _Node:
    """An expression. Equal ones are the same object within an automaton."""

    __slots__ = ("ends", "id", "kind", "parts", "shortest")

    def __init__(self, id_: int, kind: str, parts: Any) -> None:
        self.id, self.kind, self.parts = id_, kind, parts
        self.ends: bool | None = None
        self.shortest: bytes | None = None


class Automaton:
    """The states of one grammar. Safe to share between threads.

    `start` is the state before anything is written; `DEAD` is the one that nothing leads out of.

    Raises:
        ModelError: Nothing finite satisfies the grammar.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._lock = threading.RLock()
        self._nodes: dict[Any, _Node] = {}
        self._derived: dict[tuple[int, int], _Node] = {}
        self._far: dict[tuple[int, int], _Node] = {}
        self._none, self._empty = self._node("none", ()), self._node("empty", ())
        self._rules: dict[str, _Node] = {}
        self._states: list[_Node] = []
        self._ids: dict[int, int] = {}
        self._table = np.full((_GROWTH, 256), -1, dtype=np.int32)
        self._forced: dict[int, tuple[bytes, int]] = {}
        self._state(self._none)
        self._table[DEAD] = DEAD
        for name, rule in grammar["rules"].items():
            self._rules[name] = self._read(rule)
        self.fields = [(name, self._read(expression)) for name, expression in grammar["fields"]]
        self._measure()
        self.start = self._state(self._seq(*(node for _, node in self.fields)))
        if self.shortest(self.start) is None:
            raise ModelError("No reply of finite length satisfies this grammar.")

    def run(self, state: int, text: bytes) -> int:
        """The state after `text`; `DEAD` where the grammar does not allow it."""
        with self._lock:
            for byte in text:
                following = int(self._table[state, byte])
                state = following if following >= 0 else self._step(state, byte)
            return state

    def run_all(self, state: int, columns: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The states `(count,)` after each of many texts, which come in order of falling length.

        `columns` `(longest, count)` holds all first bytes, then all second bytes and so on.
        """
        with self._lock:
            states = np.full(columns.shape[1], state, dtype=np.int32)
            alive = np.arange(columns.shape[1])
            for at, column in enumerate(columns):
                alive = alive[: np.searchsorted(-lengths[alive], -at)]
                if not len(alive):
                    break
                whole = len(alive) == alive[-1] + 1  # no gaps: slices are several times as fast as picking
                following = self._step_all(
                    *((states[: len(alive)], column[: len(alive)]) if whole else (states[alive], column[alive]))
                )
                states[alive] = following
                dead = following == DEAD
                if 4 * np.count_nonzero(dead) > len(alive):  # the others cost less than leaving them out does
                    alive = alive[~dead]
            return states

    def ends(self, state: int) -> bool:
        """Whether the reply may end here."""
        return self._ends(self._states[state])

    def closed(self, state: int) -> bool:
        """Whether nothing more may be written."""
        return self._states[state] is self._empty

    def forced(self, state: int) -> tuple[bytes, int]:
        """The text that must come next (empty if there is a choice, the end being one), and the state after it."""
        with self._lock:
            if state not in self._forced:
                written, node = bytearray(), self._states[state]
                while not self._ends(node) or node.kind == "tail":
                    first = self._first(node)
                    if first.bit_count() != 1:
                        break
                    byte = first.bit_length() - 1
                    written.append(byte)
                    node = self._derive(node, byte)
                whole = _whole_characters(bytes(written))
                self._forced[state] = whole, self.run(state, whole)
            return self._forced[state]

    def alike(self, state: int, longest: int) -> int:
        """The state that stands for all which differ from it only in bounds that no text of `longest` bytes comes to.

        Such a text is allowed in all of them or in none, and what it leads to can be ended by the same shortest text.
        """
        with self._lock:
            return self._state(self._unbounded(self._states[state], longest))

    def shortest(self, state: int) -> bytes | None:
        """The shortest text that ends the reply from here; None for a dead end."""
        with self._lock:
            return self._shortest(self._states[state])

    def shortest_field(self, index: int) -> bytes:
        """The shortest text of one field."""
        with self._lock:
            return self._shortest(self.fields[index][1]) or b""

    # States

    def _state(self, node: _Node) -> int:
        found = self._ids.get(node.id)
        if found is None:
            found = self._ids[node.id] = len(self._states)
            self._states.append(node)
            if found >= len(self._table):
                self._table = np.vstack([self._table, np.full((len(self._table), 256), -1, dtype=np.int32)])
        return found

    def _step(self, state: int, byte: int) -> int:
        following = self._state(self._derive(self._states[state], byte))
        self._table[state, byte] = following
        return following

    def _step_all(self, states: np.ndarray, bytes_: np.ndarray) -> np.ndarray:
        places = states * 256 + bytes_
        following = self._table.reshape(-1)[places]
        if following.min() < 0:
            for place in np.unique(places[following < 0]).tolist():
                self._step(*divmod(place, 256))
            following = self._table.reshape(-1)[places]
        return np.asarray(following)

    # Expressions

    def _read(self, expression: Any) -> _Node:
        if isinstance(expression, str):
            return self._text(expression.encode())
        kind, *parts = expression
        if kind == "seq":
            return self._seq(*map(self._read, parts))
        if kind == "alt":
            return self._alt(*map(self._read, parts))
        if kind == "rep":
            return self._rep(self._read(parts[0]), parts[1], parts[2])
        if kind == "chars":
            return self._alt(*(self._seq(*map(self._bytes, row)) for span in parts[0] for row in _utf8(*span)))
        if kind == "tail":
            return self._node("tail", parts[0].encode())
        if kind == "ref":
            return self._node("ref", parts[0])
        raise ValueError(f"{kind!r} is no expression of a grammar.")

    def _node(self, kind: str, parts: Any, key: Any = None) -> _Node:
        key = (kind, parts if key is None else key)
        found = self._nodes.get(key)
        if found is None:
            found = self._nodes[key] = _Node(len(self._nodes), kind, parts)
        return found

    def _text(self, text: bytes) -> _Node:
        return self._node("text", text) if text else self._empty

    def _bytes(self, span: tuple[int, int]) -> _Node:
        return self._node("bytes", (1 << span[1] + 1) - (1 << span[0]))

    def _seq(self, *nodes: _Node) -> _Node:
        made = self._empty
        for node in reversed(nodes):
            made = self._pair(node, made)
        return made

    def _pair(self, head: _Node, rest: _Node) -> _Node:
        if head is self._none or rest is self._none:
            return self._none
        if head is self._empty or rest is self._empty:
            return rest if head is self._empty else head
        if head.kind == "seq":
            return self._pair(head.parts[0], self._pair(head.parts[1], rest))
        if head.kind == "text" and rest.kind == "text":
            return self._text(head.parts + rest.parts)
        return self._node("seq", (head, rest), (head.id, rest.id))

    def _alt(self, *nodes: _Node) -> _Node:
        flat = {inner.id: inner for node in nodes for inner in (node.parts if node.kind == "alt" else (node,))}
        flat.pop(self._none.id, None)
        sets = [node for node in flat.values() if node.kind == "bytes"]
        if len(sets) > 1:  # one set of bytes in the place of several
            union = 0
            for node in sets:
                union |= node.parts
                del flat[node.id]
            merged = self._node("bytes", union)
            flat[merged.id] = merged
        kept = tuple(flat[key] for key in sorted(flat))
        if len(kept) <= 1:
            return kept[0] if kept else self._none
        return self._node("alt", kept, tuple(node.id for node in kept))

    def _rep(self, node: _Node, least: int, most: int | None) -> _Node:
        if most == 0 or node is self._empty:
            return self._empty
        return self._node("rep", (node, least, most), (node.id, least, most))

    def _derive(self, node: _Node, byte: int) -> _Node:
        key = node.id, byte
        found = self._derived.get(key)
        if found is None:
            found = self._derived[key] = self._derivative(node, byte)
        return found

    def _derivative(self, node: _Node, byte: int) -> _Node:
        parts = node.parts
        if node.kind == "text":
            return self._text(parts[1:]) if parts[0] == byte else self._none
        if node.kind == "tail":
            return self._text(parts[1:]) if parts[0] == byte else self._none
        if node.kind == "bytes":
            return self._empty if parts >> byte & 1 else self._none
        if node.kind == "seq":
            begun = self._pair(self._derive(parts[0], byte), parts[1])
            return self._alt(begun, self._derive(parts[1], byte)) if self._ends(parts[0]) else begun
        if node.kind == "alt":
            return self._alt(*(self._derive(part, byte) for part in parts))
        if node.kind == "rep":
            again, least, most = parts
            rest = self._rep(again, max(least - 1, 0), None if most is None else most - 1)
            return self._pair(self._derive(again, byte), rest)
        return self._derive(self._rules[parts], byte) if node.kind == "ref" else self._none

    def _unbounded(self, node: _Node, longest: int) -> _Node:
        """`node` without the upper bounds of its repetitions that are more than `longest`: a byte takes one of each at most.

        Lower bounds stay, since the shortest text depends on them; so does what is repeated, which is the same in all states.
        """
        key = node.id, longest
        found = self._far.get(key)
        if found is None:
            found = node
            if node.kind == "rep" and node.parts[2] is not None and node.parts[2] > longest:
                found = self._rep(node.parts[0], node.parts[1], None)
            elif node.kind == "seq":
                found = self._pair(*(self._unbounded(part, longest) for part in node.parts))
            elif node.kind == "alt":
                found = self._alt(*(self._unbounded(part, longest) for part in node.parts))
            self._far[key] = found
        return found

    def _ends(self, node: _Node) -> bool:
        if node.ends is None:
            kind, parts = node.kind, node.parts
            if kind in ("seq", "alt"):
                node.ends = (all if kind == "seq" else any)(self._ends(part) for part in parts)
            elif kind == "rep":
                node.ends = parts[1] == 0 or self._ends(parts[0])
            elif kind == "ref":
                node.ends = self._ends(self._rules[parts])
            else:
                node.ends = kind in ("empty", "tail")
        return node.ends

    def _first(self, node: _Node) -> int:
        """The bytes that may come next, as the bits of a number."""
        kind, parts = node.kind, node.parts
        if kind in ("text", "tail"):
            return 1 << int(parts[0])
        if kind == "bytes":
            return int(parts)
        if kind == "alt":
            found = 0
            for part in parts:
                found |= self._first(part)
            return found
        if kind == "seq":
            return self._first(parts[0]) | (self._first(parts[1]) if self._ends(parts[0]) else 0)
        if kind == "rep":
            return self._first(parts[0])
        return self._first(self._rules[parts]) if kind == "ref" else 0

    def _measure(self) -> None:
        """The shortest text of every rule, by rounds: a rule may need others, itself included."""
        self._brief: dict[str, bytes | None] = dict.fromkeys(self._rules)
        changed = True
        while changed:
            changed = False
            for name, rule in self._rules.items():
                found = self._shortest(rule, keep=False)
                if found is not None and (self._brief[name] is None or _rank(found) < _rank(self._brief[name])):
                    self._brief[name], changed = found, True

    def _shortest(self, node: _Node, *, keep: bool = True) -> bytes | None:
        if node.shortest is None:
            found = self._shortest_of(node, keep)
            if not keep:
                return found
            node.shortest = found
        return node.shortest

    def _shortest_of(self, node: _Node, keep: bool) -> bytes | None:
        kind, parts = node.kind, node.parts
        if kind == "text":
            return bytes(parts)
        if kind in ("empty", "tail"):
            return b""
        if kind == "bytes":
            return bytes([_nicest(parts)])
        if kind == "ref":
            return self._brief[parts]
        if kind == "rep":
            once = self._shortest(parts[0], keep=keep) if parts[1] else b""
            return None if once is None else once * parts[1]
        found = [self._shortest(part, keep=keep) for part in parts]
        known = [text for text in found if text is not None]
        if kind == "seq":
            return b"".join(known) if len(known) == len(found) else None
        return min(known, key=_rank, default=None)


def _rank(text: bytes | None) -> tuple[int, bytes]:
    return (len(text), text) if text is not None else (2**31, b"")


def _nicest(bits: int) -> int:
    """A byte to stand for a set of them: a digit or a letter where there is one."""
    for byte in b"0a":
        if bits >> byte & 1:
            return byte
    readable = bits >> 33 << 33 or bits
    return (readable & -readable).bit_length() - 1


def _whole_characters(text: bytes) -> bytes:
    """`text` without the bytes of a last character that is not whole."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:
            width = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return text[:-back] if width > back else text
    return text


def _utf8(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """The characters from `low` to `high` as rows of byte spans, one span for each byte of their UTF-8 form."""
    for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, _LAST_CHARACTER)):
        start, stop = max(low, first), min(high, last)
        if start <= stop:
            yield from _rows(chr(start).encode(), chr(stop).encode())


def _rows(low: bytes, high: bytes) -> Iterator[list[tuple[int, int]]]:
    """Rows of byte spans for all encodings of one length from `low` to `high`."""
    if len(low) == 1:
        yield [(low[0], high[0])]
        return
    least, most = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
    if low[0] == high[0]:
        yield from ([(low[0], low[0]), *row] for row in _rows(low[1:], high[1:]))
        return
    first, last = low[0], high[0]
    if low[1:] != least:
        yield from ([(first, first), *row] for row in _rows(low[1:], most))
        first += 1
    if high[1:] != most:
        yield from ([(last, last), *row] for row in _rows(least, high[1:]))
        last -= 1
    if first <= last:
        yield [(first, last), *[(0x80, 0xBF)] * (len(low) - 1)]
