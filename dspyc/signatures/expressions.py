"""Grammars as plain data: the expressions that say which texts are values of a type.

An expression is JSON: a text stands for itself, and a list is `["seq", a, b]` (one after the other), `["alt", a, b]` (one of
them), `["chars", [[low, high], …]]` (one character by code point), `["rep", a, least, most]`, `["ref", rule]` or
`["tail", text]` (that text or nothing, at a reply's end). `models.automaton` reads them.
"""

import json
from collections.abc import Iterable
from random import Random
from typing import Any

Expression = Any

Spans = list[tuple[int, int]]  # of code points, both ends included

LAST = 0x10FFFF  # the highest code point
_LONGEST = 40  # digits of a number
WHITESPACE = "".join(c for c in map(chr, (*range(0x3100), 0xFEFF)) if c.isspace())
LINE_ENDS = "".join(c for c in WHITESPACE if len(f"a{c}b".splitlines()) > 1)


class UnsupportedError(ValueError):
    """There is no grammar for this; the text says for what."""


def seq(*parts: Expression) -> Expression:
    """`parts`, one after the other."""
    kept = [part for part in parts if part != ""]
    return kept[0] if len(kept) == 1 else ["seq", *kept] if kept else ""


def alt(*options: Expression) -> Expression:
    """One of `options`."""
    kept: list[Expression] = []
    for option in options:
        if option not in kept:
            kept.append(option)
    return kept[0] if len(kept) == 1 else ["alt", *kept]


def rep(part: Expression, least: int = 0, most: int | None = None) -> Expression:
    """`part` at least `least` and at most `most` times."""
    return ["rep", part, least, most]


def maybe(part: Expression) -> Expression:
    """`part` or nothing."""
    return alt("", part)


def chars(text: Iterable[str]) -> Expression:
    """One of the characters of `text`."""
    return of_spans([(ord(c), ord(c)) for c in text])


def chars_but(text: Iterable[str]) -> Expression:
    """One character that is not in `text`."""
    return of_spans(complement([(ord(c), ord(c)) for c in text]))


def of_spans(spans: Spans) -> Expression:
    """One character of `spans`."""
    return ["chars", [list(span) for span in _merged(spans)]]


def _merged(spans: Spans) -> Spans:
    merged: Spans = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def complement(spans: Spans) -> Spans:
    """The characters outside `spans`."""
    found, start = [], 0
    for low, high in _merged(spans):
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    return [*found, (start, LAST)] if start <= LAST else found


DIGIT = ["chars", [[0x30, 0x39]]]
# Behind as many digits as a number may have here, a larger exponent would be infinite.
EXPONENT: Expression = seq(
    chars("eE"),
    maybe(chars("+-")),
    alt(rep(DIGIT, 1, 2), seq("1", DIGIT, DIGIT), seq("2", chars("01234"), DIGIT)),
)
_LARGEST_EXPONENTS: Expression = alt(seq("2", chars("56789"), DIGIT), seq("30", chars("01234567")))
_HEX = ["chars", [[0x30, 0x39], [0x41, 0x46], [0x61, 0x66]]]
_CONTROLS = [chr(c) for c in range(0x20)]
# A character of a JSON string. Line ends are left out where some reader of lines would break the string at them, and so
# are the escapes of surrogates, which are no characters.
JSON_CHARACTER: Expression = ["ref", "json character"]
JSON_RULES: dict[str, Expression] = {
    "json character": alt(
        chars_but([*_CONTROLS, *LINE_ENDS, '"', "\\"]),
        seq("\\", chars('"\\/bfnrt')),
        seq("\\u", chars("012345678abcefABCEF9"), _HEX, _HEX, _HEX),
        seq("\\u", chars("dD"), chars("01234567"), _HEX, _HEX),
    )
}


def json_string(least: int = 0, most: int | None = None) -> Expression:
    """A JSON string of that many characters."""
    return seq('"', rep(JSON_CHARACTER, least, most), '"')


def integer(low: int | None = None, high: int | None = None) -> Expression:
    """A whole number from `low` to `high`, as JSON writes it."""
    if low is not None and high is not None and low > high:
        raise UnsupportedError(f"whole numbers from {low} to {high}")
    negative = low is None or low < 0
    options = []
    if high is None or high >= 0:
        options.append(_natural(max(low or 0, 0), high))
    if negative:
        most = None if low is None else -low
        options.append(seq("-", _natural(max(1, -(high if high is not None else -1)), most)))
    if low is None and high is None:
        options[-1] = seq("-", _natural(0, None))  # −0 is read as 0
    return alt(*options)


def number() -> Expression:
    """Any JSON number."""
    fraction = seq(".", rep(DIGIT, 1, _LONGEST))
    largest = seq(chars("123456789"), maybe(fraction), chars("eE"), maybe(chars("+-")), _LARGEST_EXPONENTS)
    return seq(maybe("-"), alt(seq(_natural(0, None), maybe(fraction), maybe(EXPONENT)), largest))


def _natural(low: int, high: int | None) -> Expression:
    """A number from `low` to `high`, both at least 0, without leading zeros."""
    if high is None:
        if low <= 1:
            positive = seq(chars("123456789"), rep(DIGIT, 0, _LONGEST - 1))
            return positive if low else alt("0", positive)
        width = len(str(low))
        longer = seq(chars("123456789"), rep(DIGIT, width, _LONGEST))
        return alt(_natural(low, 10**width - 1), longer)
    options = []
    for width in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (width - 1) if width > 1 else 0)
        last = min(high, 10**width - 1)
        if first <= last:
            options.append(_same_width(str(first), str(last)))
    return alt(*options)


def _same_width(low: str, high: str) -> Expression:
    if not low or (set(low) == {"0"} and set(high) == {"9"}):
        return rep(DIGIT, len(low), len(low)) if low else ""
    if low[0] == high[0]:
        return seq(low[0], _same_width(low[1:], high[1:]))
    rest = len(low) - 1
    options = [seq(low[0], _same_width(low[1:], "9" * rest)), seq(high[0], _same_width("0" * rest, high[1:]))]
    if int(high[0]) - int(low[0]) > 1:
        between = of_spans([(ord(low[0]) + 1, ord(high[0]) - 1)])
        options.append(seq(between, rep(DIGIT, rest, rest)) if rest else between)
    return alt(*options)


def until(stop: str, name: str) -> dict[str, Expression]:
    """Rules for text up to and with its first `stop`, whose first character it has only once; `{name}.0` is the start."""
    rules: dict[str, Expression] = {}
    for at, character in enumerate(stop):
        after: Expression = ["ref", f"{name}.{at + 1}"] if at + 1 < len(stop) else ""
        again = seq(stop[0], ["ref", f"{name}.1"]) if at else None
        other = seq(chars_but(stop[0] + character), ["ref", f"{name}.0"])
        rules[f"{name}.{at}"] = alt(seq(character, after), other, *([again] if again else []))
    return rules


def sample(expression: Expression, rules: dict[str, Expression], random: Random, depth: int = 0) -> str:
    """A text of an expression, drawn at random and kept short."""
    if isinstance(expression, str):
        return expression
    kind, *parts = expression
    if kind == "seq":
        return "".join(sample(part, rules, random, depth) for part in parts)
    if kind == "alt":
        return sample(random.choice(parts if depth < _SHALLOW else _shallow(parts)), rules, random, depth)
    if kind == "chars":
        low, high = random.choice(parts[0])
        return chr(random.randint(low, min(high, low + 40)))
    if kind == "rep":
        most = parts[1] + 2 if parts[2] is None else min(parts[2], parts[1] + 2)
        times = parts[1] if depth >= _SHALLOW else random.randint(parts[1], most)
        return "".join(sample(parts[0], rules, random, depth) for _ in range(times))
    return sample(rules[parts[0]], rules, random, depth + 1) if kind == "ref" else parts[0]


_SHALLOW = 6


def _shallow(options: list[Expression]) -> list[Expression]:
    plain = [option for option in options if '"ref"' not in json.dumps(option)]
    return plain or options
