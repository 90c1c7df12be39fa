"""What stands in a JSON string, by its schema: the formats of dates and the like, patterns and lengths."""

import json
from typing import Any

from . import expressions as e
from .expressions import LAST, Expression, Spans, UnsupportedError, complement, of_spans
from .patterns import found_by, whole, within

_YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_BY_FOUR = r"(0[48]|[2468][048]|[13579][26])"
_MONTHS = (
    r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"  # of any year
)
_DATE = rf"({_YEAR}-{_MONTHS}|(\d\d{_BY_FOUR}|{_BY_FOUR}00)-02-29)"
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,6})?)?"
_ZONE = r"(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_TIME = rf"{_CLOCK}{_ZONE}?"
_SECONDS = r"\d{1,2}(\.\d{1,6})?S"
_MINUTES = rf"\d{{1,2}}M({_SECONDS})?"
_HOURS = rf"\d{{1,2}}H(\d{{1,2}}M)?({_SECONDS})?"
_YEARS = r"(\d{1,6}|1\d{6}|2[0-6]\d{5}|27[0-2]\d{4})Y"  # of 365 days
_DAYS = rf"({_YEARS}\d{{1,3}}D|{_YEARS}|\d{{1,4}}D)"
_HEX = "[0-9a-f]"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_NAME = r"[a-z0-9]+(-[a-z0-9]+)*"  # no two hyphens in a row: after `xn--` a name would have to be valid Punycode
_LAST_NAME = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"  # a number here would begin an address
_HOST = rf"(({_NAME}\.){{0,9}}{_LAST_NAME}|({_BYTE}\.){{3}}{_BYTE})"
_PORT = r"(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d)"
_URI_CHARACTER = r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "date-time aware": f"{_DATE}T{_CLOCK}{_ZONE}",
    "date-time naive": f"{_DATE}T{_CLOCK}",
    "duration": rf"-?P{_DAYS}|-?P({_DAYS})?T({_HOURS}|{_MINUTES}|{_SECONDS})",
    "uuid": rf"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "binary": r"[ !#-\[\]-~]*",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "uri": rf"https?://{_HOST}(:{_PORT})?(/{_URI_CHARACTER}{{0,900}})?([?]{_URI_CHARACTER}{{0,600}})?(#{_URI_CHARACTER}{{0,200}})?",
    "path": None,
    "file-path": None,
    "directory-path": None,
}
_FORMATS |= {
    f"uuid{version}": rf"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}"
    for version in range(1, 9)
}
# What no reader takes for a number, and nothing in which needs an escape.
BARE_FORMATS = {form for form, regex in _FORMATS.items() if regex and form != "binary"}
FREE_FORMATS = {None, "binary", *(form for form, regex in _FORMATS.items() if regex is None)}  # any text will do

_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_ESCAPED = {code: _SHORT.get(chr(code), f"\\u{code:04x}") for code in (*range(0x20), ord('"'), ord("\\"))}
_RAW = complement([*((code, code) for code in _ESCAPED), *((ord(c), ord(c)) for c in e.LINE_ENDS), (0xD800, 0xDFFF)])


def text_of(schema: Any) -> Expression:
    """The characters of a JSON string by its schema, without the quotes.

    Raises:
        UnsupportedError: No grammar can hold its format or its pattern.
    """
    form, least, most = schema.get("format"), schema.get("minLength", 0), schema.get("maxLength")
    if "pattern" in schema:
        return _within(found_by(schema["pattern"]), schema)
    if form is not None and form not in _FORMATS:
        raise UnsupportedError(f"texts of the format {form!r}")
    if form is not None and (regex := _FORMATS[form]):
        return _within(whole(regex), schema) if form == "binary" else whole(regex)
    if schema.get("strip") and least:  # what is stripped does not count
        inner = e.seq(e.rep(e.JSON_CHARACTER, max(least - 2, 0), None if most is None else most - 2), _BLACK)
        return e.seq(_BLACK, inner if least > 1 else e.maybe(inner)) if most != 1 else _BLACK
    return e.rep(e.JSON_CHARACTER, least, most)


_BLACK = e.chars_but([*map(chr, range(0x21)), *e.WHITESPACE, '"', "\\"])


def _within(expression: Expression, schema: Any) -> Expression:
    found = within(expression, schema.get("minLength", 0), schema.get("maxLength"))
    if found is None or (schema.get("strip") and "pattern" in schema):
        raise UnsupportedError(f"texts of {json.dumps(schema)}")
    return written(found)


def written(expression: Expression) -> Expression:
    """The texts of an expression as they stand between the quotes of a JSON string: what cannot stand there is escaped."""
    if isinstance(expression, str):
        return json.dumps(expression, ensure_ascii=False)[1:-1]
    kind, *parts = expression
    if kind == "chars":
        return _character([(low, high) for low, high in parts[0]])
    if kind == "rep":
        return e.rep(written(parts[0]), *parts[1:])
    return expression if kind == "ref" else [kind, *map(written, parts)]


def _character(spans: Spans) -> Expression:
    if spans == [(0, LAST)]:
        return e.JSON_CHARACTER
    escapes = [text for code, text in _ESCAPED.items() if any(low <= code <= high for low, high in spans)]
    raw = complement([*complement(spans), *complement(_RAW)])
    if not raw and not escapes:
        raise UnsupportedError("a pattern of characters that end a line")
    return e.alt(*([of_spans(raw)] if raw else []), *escapes)
