"""Numbers between bounds, as JSON writes them: any bounds, within or without, and exponents of small and large numbers."""

from decimal import Decimal

from . import expressions as e
from .expressions import Expression, UnsupportedError

_DIGITS = e.rep(e.DIGIT, 0, 40)
_ZEROS = e.rep("0", 0, 40)
_SOME = e.seq(_ZEROS, e.chars("123456789"), _DIGITS)  # digits that are not all zeros
# Python writes a float with an exponent below 1e-4 and from 1e16 on; the smallest and the largest would not be sure to be one.
_MANTISSA = e.seq(e.chars("123456789"), e.maybe(e.seq(".", e.rep(e.DIGIT, 1, 40))))
_HUNDREDS = e.alt(e.seq(e.chars("12"), e.DIGIT, e.DIGIT), e.seq("30", e.chars("01234567")))
_SMALL = e.seq(_MANTISSA, "e-", e.alt(e.seq("0", e.chars("56789")), e.seq(e.chars("123456789"), e.DIGIT), _HUNDREDS))
_LARGE = e.seq(_MANTISSA, "e+", e.alt(e.seq("1", e.chars("6789")), e.seq(e.chars("23456789"), e.DIGIT), _HUNDREDS))
_LARGEST = e.seq("1", e.maybe(e.seq(".", e.chars("0123456"), _DIGITS)), "e+308")
_LEAST, _MOST = Decimal("0.001"), Decimal(10**16)


def number(
    low: float | None = None, high: float | None = None, *, low_open: bool = False, high_open: bool = False
) -> Expression:
    """A JSON number from `low` to `high`; an open bound is none of them, nor is what a float would round to it.

    Raises:
        UnsupportedError: There is none that can be written without an exponent.
    """
    if low is None and high is None:
        return e.number()
    least, most = (None if bound is None else Decimal(str(bound)) for bound in (low, high))
    if low_open and least:
        least, low_open = least + _step(least), False
    if high_open and most:
        most, high_open = most - _step(most), False
    options = []
    if most is None or most >= 0:
        above = least is not None and least >= 0
        options += _size(least if above else None, most, low_open and above, high_open)
    if least is None or least < 0:
        below = most is not None and most <= 0
        sizes = _size(
            -most if below and most is not None else None,
            None if least is None else -least,
            high_open and below,
            low_open,
        )
        options += [e.seq("-", size) for size in sizes]
    if not options:
        raise UnsupportedError(f"numbers from {low} to {high}")
    return e.alt(*options)


def _step(bound: Decimal) -> Decimal:
    """How far from a bound a float is surely another number."""
    return Decimal(1).scaleb(max(bound.adjusted() + 1, 0) - 15)


def _size(low: Decimal | None, high: Decimal | None, low_open: bool, high_open: bool) -> list[Expression]:
    """The numbers from `low` to `high`, both at least 0 (None: 0 and no end), in all their forms."""
    low = low or Decimal(0)
    first, low_digits = _parts(low)
    made: list[Expression] = []
    if high is None:
        made += [e.seq(str(first), _fraction(low_digits, None, low_open, False)), _whole(first + 1, None)]
        if low <= _MOST:
            made += [_LARGE, _LARGEST]
    else:
        last, high_digits = _parts(high)
        if first == last:
            made.append(e.seq(str(first), _fraction(low_digits, high_digits, low_open, high_open)))
        elif first < last:
            made.append(e.seq(str(first), _fraction(low_digits, None, low_open, False)))
            if first + 1 < last:
                made.append(_whole(first + 1, last - 1))
            made.append(e.seq(str(last), _fraction("", high_digits, False, high_open)))
    if low == 0 and (high is None or high >= _LEAST):
        made.append(_SMALL)
    return [expression for expression in made if _NOTHING not in expression]


_NOTHING = ["alt"]  # no text at all; nothing is written of what has it


def _whole(low: int, high: int | None) -> Expression:
    return e.seq(e.integer(low, high), e.maybe(e.seq(".", e.rep(e.DIGIT, 1, 40))))


def _parts(bound: Decimal) -> tuple[int, str]:
    whole, _, digits = f"{bound:f}".partition(".")
    return int(whole), digits.rstrip("0")


def _fraction(low: str, high: str | None, low_open: bool, high_open: bool) -> Expression:
    """A point and digits, or nothing, so that they lie from `0.{low}` to `0.{high}`."""
    bare = (not low and not low_open) and not (high == "" and high_open)
    digits = _between(low, high, low_open, high_open)
    options = [*([""] if bare else []), *([] if digits is None else [e.seq(".", digits)])]
    return e.alt(*options) if options else _NOTHING


def _between(low: str, high: str | None, low_open: bool, high_open: bool) -> Expression | None:
    """At least one digit; `high` None is 1."""
    if not low and high is None:
        return _SOME if low_open else e.seq(e.DIGIT, _DIGITS)
    if not low and high == "":
        return None if low_open or high_open else e.seq("0", _ZEROS)
    if high == "":
        return None
    first = int(low[0]) if low else 0
    last = int(high[0]) if high else 9
    if first > last:
        return None
    if first == last and high is not None:
        rest = _rest(low[1:], high[1:], low_open, high_open)
        return None if rest is None else e.seq(str(first), rest)
    options = []
    if (rest := _rest(low[1:], None, low_open, False)) is not None:
        options.append(e.seq(str(first), rest))
    between = "".join(map(str, range(first + 1, last if high is not None else 10)))
    if between:
        options.append(e.seq(e.chars(between), _DIGITS))
    if high is not None and (rest := _rest("", high[1:], False, high_open)) is not None:
        options.append(e.seq(str(last), rest))
    return e.alt(*options) if options else None


def _rest(low: str, high: str | None, low_open: bool, high_open: bool) -> Expression | None:
    """As `_between`, or no digit, which is 0."""
    digits = _between(low, high, low_open, high_open)
    ends = not low and not low_open and not (high == "" and high_open)
    if not ends:
        return digits
    return "" if digits is None else e.maybe(digits)
