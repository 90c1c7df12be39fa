"""What a pydantic pattern finds, as an expression: the texts in which it matches, as many characters long as asked.

These are expressions of characters; how JSON writes a character is for `signatures.json_texts` to say.
"""

import re
from typing import Any

from . import expressions as e
from .expressions import LAST, Expression, Spans, UnsupportedError, complement, of_spans

try:
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as sre_parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_constants as sre
    import sre_parse as sre_parser

ANY: Expression = ["chars", [[0, LAST]]]
_BEYOND_ASCII = (0x80, LAST)
_NARROW: dict[str, Spans] = {  # what surely belongs to a class …
    "CATEGORY_DIGIT": [(0x30, 0x39)],
    "CATEGORY_WORD": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "CATEGORY_SPACE": [(0x09, 0x0A), (0x0C, 0x0D), (0x20, 0x20)],
}
_WIDE: dict[str, Spans] = {  # … and all that may: what is in neither belongs to the opposite class
    "CATEGORY_DIGIT": [*_NARROW["CATEGORY_DIGIT"], _BEYOND_ASCII],
    "CATEGORY_WORD": [*_NARROW["CATEGORY_WORD"], _BEYOND_ASCII],
    "CATEGORY_SPACE": [(ord(c), ord(c)) for c in e.WHITESPACE],
}
_BEGINNINGS = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
_ENDINGS = (sre.AT_END, sre.AT_END_STRING)


def found_by(regex: str) -> Expression:
    """The texts in which a regular expression is found. Classes such as `\\w` mean their ASCII characters.

    Raises:
        UnsupportedError: It needs more than literals, classes, groups, alternatives, repetition and outer anchors.
    """
    try:
        parsed = sre_parser.parse(regex)
    except re.error as error:
        raise UnsupportedError(f"the pattern {regex!r} ({error})") from error
    if parsed.state.flags & ~re.UNICODE:
        raise UnsupportedError(f"the pattern {regex!r} (flags)")
    return _Pattern(regex).sequence(list(parsed), left=True, right=True)


def whole(regex: str) -> Expression:
    """The texts that a regular expression matches from end to end; otherwise as `found_by`."""
    return found_by(f"^(?:{regex})$")


class _Pattern:
    """One regular expression on its way to an expression."""

    def __init__(self, regex: str) -> None:
        self._regex = regex

    def sequence(self, items: list[Any], *, left: bool = False, right: bool = False) -> Expression:
        """`left` and `right` say whether the text may go on there, unless an anchor says that it does not."""
        before, after = left, right
        if left and items and items[0][0] is sre.AT and items[0][1] in _BEGINNINGS:
            items, before = items[1:], False
        if right and items and items[-1][0] is sre.AT and items[-1][1] in _ENDINGS:
            items, after = items[:-1], False
        parts = []
        for at, (code, value) in enumerate(items):
            inner_left, inner_right = before and at == 0, after and at == len(items) - 1
            if code in (sre.BRANCH, sre.SUBPATTERN):  # an anchor may stand inside
                before, after = before and not inner_left, after and not inner_right
                parts.append(self._group(code, value, left=inner_left, right=inner_right))
            else:
                parts.append(self._item(code, value))
        return e.seq(*([e.rep(ANY)] if before else []), *parts, *([e.rep(ANY)] if after else []))

    def _group(self, code: Any, value: Any, *, left: bool, right: bool) -> Expression:
        if code is sre.BRANCH:
            return e.alt(*(self.sequence(list(branch), left=left, right=right) for branch in value[1]))
        if value[1] or value[2]:
            raise self._unsupported("flags")
        return self.sequence(list(value[3]), left=left, right=right)

    def _item(self, code: Any, value: Any) -> Expression:
        if code is sre.LITERAL:
            return chr(value)
        if code is sre.ANY:
            return of_spans(complement([(0x0A, 0x0A)]))
        if code is sre.NOT_LITERAL:
            return of_spans(complement([(value, value)]))
        if code is sre.IN:
            negated = value[0][0] is sre.NEGATE
            spans = self._members(value[1:] if negated else value, _WIDE if negated else _NARROW)
            return of_spans(complement(spans) if negated else spans)
        if code in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            least, most, inner = value
            return e.rep(self.sequence(list(inner)), least, None if most is sre.MAXREPEAT else most)
        raise self._unsupported(str(code).lower())

    def _members(self, items: list[Any], classes: dict[str, Spans]) -> Spans:
        opposite = _NARROW if classes is _WIDE else _WIDE
        spans: Spans = []
        for code, value in items:
            if code is sre.LITERAL:
                spans.append((value, value))
            elif code is sre.RANGE:
                spans.append(tuple(value))
            elif code is sre.CATEGORY and str(value) in classes:
                spans += classes[str(value)]
            elif code is sre.CATEGORY and str(value).replace("_NOT", "") in classes:
                spans += complement(opposite[str(value).replace("_NOT", "")])
            else:
                raise self._unsupported(str(code).lower())
        return spans

    def _unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"the pattern {self._regex!r} ({what})")


def within(expression: Expression, least: int, most: int | None) -> Expression | None:
    """Those texts of an expression that have from `least` to `most` characters; None where there are none.

    Raises:
        UnsupportedError: More than one of its parts in a row can be longer or shorter.
    """
    low, high = _lengths(expression)
    if (high is not None and high < least) or (most is not None and low > most):
        return None
    if low >= least and (most is None or (high is not None and high <= most)):
        return expression
    kind, *parts = expression
    if kind == "alt":
        kept = [part for option in parts if (part := within(option, least, most)) is not None]
        return e.alt(*kept) if kept else None
    if kind == "seq":
        lengths = [_lengths(part) for part in parts]
        loose = [at for at, (fewest, largest) in enumerate(lengths) if fewest != largest]
        if len(loose) == 1:
            rest = low - lengths[loose[0]][0]
            inner = within(parts[loose[0]], max(least - rest, 0), None if most is None else most - rest)
            return None if inner is None else e.seq(*parts[: loose[0]], inner, *parts[loose[0] + 1 :])
    if kind == "rep":
        item, fewest, largest = parts
        width, widest = _lengths(item)
        if width == widest and width:
            fewest = max(fewest, -(-least // width))
            if most is not None:
                largest = most // width if largest is None else min(largest, most // width)
            return None if largest is not None and fewest > largest else e.rep(item, fewest, largest)
    raise UnsupportedError("a length together with a pattern of several parts of different lengths")


def _lengths(expression: Expression) -> tuple[int, int | None]:
    """The fewest and the most characters that an expression has; None for no end."""
    if isinstance(expression, str):
        return len(expression), len(expression)
    kind, *parts = expression
    if kind == "chars":
        return 1, 1
    if kind == "rep":
        low, high = _lengths(parts[0])
        if high == 0:
            return 0, 0
        return low * parts[1], None if high is None or parts[2] is None else high * parts[2]
    lows, highs = zip(*map(_lengths, parts), strict=True)
    whole = None if None in highs else [high for high in highs if high is not None]
    if kind == "seq":
        return sum(lows), None if whole is None else sum(whole)
    return min(lows), None if whole is None else max(whole)
