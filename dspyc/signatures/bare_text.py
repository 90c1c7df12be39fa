"""Text that stands bare where a value of another type could stand: whatever its reader takes for nothing but text.

DSPy's reader looks for JSON anywhere in a text (a bracket begins it) and else for a Python literal; TerseAdapter's takes a
line that is JSON for JSON. Each is a table of states: whether the text may end there, where characters lead, and where
all others lead. `rest` is what follows once a text can be nothing else.
"""

from . import expressions as e
from .expressions import Expression

_State = tuple[bool, dict[str, str | None], str | None]  # may end; characters -> state (None: nowhere); all others
_DIGITS, _NONZERO = "0123456789", "123456789"
_BASES = "xXoObB"
_PYTHON, _JSON = ("True", "False", "None"), ("true", "false", "null", "NaN", "Infinity")
_SPACES = "".join(set(e.WHITESPACE) - {" "})
# What NFKC, and so Python, takes for an `s`: with `et()` behind it this is an empty set.
_LOOKS_LIKE_S = "ſˢₛｓ" + "".join(map(chr, range(0x1D400, 0x1D800)))


def _words(words: tuple[str, ...], whole: str) -> dict[str, _State]:
    """States named after the letters so far; a whole word leads to the state `whole`."""
    found: dict[str, _State] = {}
    for prefix in dict.fromkeys(word[:at] for word in words for at in range(1, len(word))):
        following = dict.fromkeys(
            word[: len(prefix) + 1] for word in words if word.startswith(prefix) and word != prefix
        )
        found[prefix] = True, {longer[-1]: whole if longer in words else longer for longer in following}, "rest"
    return found


def _starts(words: tuple[str, ...]) -> dict[str, str | None]:
    return {letter: letter for letter in dict.fromkeys(word[0] for word in words)}


_TOKEN: dict[str, str | None] = {  # where a Python literal, or a part of one, could begin
    "0": "zero",
    _NONZERO: "number",
    "+-.,": "token",
    " ": "token",
    "'\"(#" + _LOOKS_LIKE_S: None,
    "bB": "b",
    "rR": "r",
    "uU": "br",
    "s": "s",
    **_starts((*_PYTHON, *_JSON)),
}
_AFTER_NUMBER: dict[str, str | None] = {" ": "number end", "+-": "operator", ",": "token", "#": None}
_LITERALS: dict[str, _State] = {
    "start": (
        False,
        {**{key: to for key, to in _TOKEN.items() if key != " "}, " ": None, "'\"(" + _LOOKS_LIKE_S: None, "#": "note"},
        "rest",
    ),
    "token": (False, _TOKEN, "rest"),
    "zero": (
        False,
        {
            _DIGITS + "_": "number",
            _BASES: "base",
            ".": "fraction",
            "eE": "exponent",
            "jJ": "number end",
            **_AFTER_NUMBER,
        },
        "rest",
    ),
    "number": (
        False,
        {_DIGITS + "_": "number", ".": "fraction", "eE": "exponent", "jJ": "number end", **_AFTER_NUMBER},
        "rest",
    ),
    "fraction": (False, {_DIGITS + "_": "fraction", "eE": "exponent", "jJ": "number end", **_AFTER_NUMBER}, "rest"),
    "exponent": (False, {_DIGITS + "+-_": "fraction", "jJ ,#": None}, "rest"),
    "base": (False, {_DIGITS + "abcdefABCDEF_": "base", **_AFTER_NUMBER, "jJ": None}, "rest"),
    "number end": (False, _AFTER_NUMBER, "rest"),
    # A sum of numbers is a literal only if the second is imaginary.
    "operator": (
        False,
        {**{key: to for key, to in _TOKEN.items() if key not in ("0", _NONZERO)}, _DIGITS: "second"},
        "rest",
    ),
    "second": (True, {_DIGITS: "second", "._eEjJ" + _BASES: None}, "rest"),
    "b": (True, {"rR": "br", "'\"": None}, "rest"),
    "r": (True, {"bB": "br", "'\"": None}, "rest"),
    "br": (True, {"'\"": None}, "rest"),
    "s": (True, {"e": "se"}, "rest"),
    "se": (True, {"t": "set"}, "rest"),
    "set": (True, {" ": "set", "(": None}, "rest"),
    **_words(_PYTHON, "word"),
    **_words(_JSON, "json word"),
    **_words(("None", "NaN"), "word"),
    "word": (False, {" ": "word end", ",": "token", "#": None}, "rest"),
    "word end": (False, {" ": "word end", ",": "token", "#": None}, "rest"),
    "json word": (False, {" ": "json word"}, "rest"),
    "note": (True, {}, "note"),
}
_END: dict[str, str | None] = {" ": "end"}
_JSON_LINES: dict[str, _State] = {
    "start": (False, {'"[{ ': None, "-": "minus", "0": "zero", _NONZERO: "number", **_starts(_JSON)}, "rest"),
    "minus": (True, {"0": "zero", _NONZERO: "number", "I": "I"}, "rest"),
    "zero": (False, {".": "point", "eE": "exponent", **_END}, "rest"),
    "number": (False, {_DIGITS: "number", ".": "point", "eE": "exponent", **_END}, "rest"),
    "point": (True, {_DIGITS: "fraction"}, "rest"),
    "fraction": (False, {_DIGITS: "fraction", "eE": "exponent", **_END}, "rest"),
    "exponent": (True, {"+-": "sign", _DIGITS: "power"}, "rest"),
    "sign": (True, {_DIGITS: "power"}, "rest"),
    "power": (False, {_DIGITS: "power", **_END}, "rest"),
    "end": (False, _END, "rest"),
    **_words(_JSON, "end"),
}


def text_beside_values(rules: dict[str, Expression], *, lines: bool, controls: bool) -> Expression:
    """What DSPy's own reader takes for text in a union, or as `Any`.

    Args:
        rules: Where the rules of the text are added.
        lines: Whether it may have several lines, which none of its markers and brackets can be mistaken for.
        controls: Whether it may have other control characters, which stand as escapes then.
    """
    never = "[{\n\r" + ("" if controls else "".join({*map(chr, range(0x20)), *e.LINE_ENDS} - {*"\t\n\r"}))
    slashed: dict[str, _State] = {  # a backslash that ends a line joins it to the next
        state: (ends, leads if others != "rest" else {**leads, "\\": "slash"}, others)
        for state, (ends, leads, others) in _LITERALS.items()
    }
    rest: dict[str, _State] = {"slash": (True, {}, "rest"), "rest": (True, {"\n": "line"} if lines else {}, "rest")}
    if lines:  # a parenthesis that begins a line begins a value
        rest["line"] = (True, {"\n": "line", " \t": "line", "(" + _SPACES.replace("\t", ""): None}, "rest")
    return _rules("text", {**slashed, **rest}, never, rules)


def line_beside_values(rules: dict[str, Expression]) -> Expression:
    """What TerseAdapter takes for text in a union, or as `Any`: a line that is no JSON."""
    never = "".join({*map(chr, range(0x20)), *e.LINE_ENDS} - {"\t"})
    return _rules("line", {**_JSON_LINES, "rest": (True, {}, "rest")}, never, rules)


def _rules(name: str, states: dict[str, _State], never: str, rules: dict[str, Expression]) -> Expression:
    for state, (ends, leads, others) in states.items():
        taken = "".join(leads) + never.replace(
            "\n", "" if state in ("rest", "line") and "\n" in "".join(leads) else "\n"
        )
        if state not in ("rest", "line", "note"):
            taken += _SPACES
        options: list[Expression] = [""] if ends else []
        options += [
            e.seq(e.chars(characters), ["ref", f"{name} {to}"]) for characters, to in leads.items() if to is not None
        ]
        if others is not None:
            options.append(e.seq(e.chars_but(taken), ["ref", f"{name} {others}"]))
        rules[f"{name} {state}"] = e.alt(*options)
    return ["ref", f"{name} start"]
