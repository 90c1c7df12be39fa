"""The text of a function as it is loaded: its file may say something else by now."""

import functools
import hashlib
import inspect
import linecache
import types
import warnings
from typing import Any

from .first_seen import noted


def source(function: types.FunctionType) -> str:
    """A function's text; the digest of its byte code where its file has no such function by now, and for a lambda, whose text
    would be that of the whole line."""
    code = function.__code__
    known = noted(code)
    if "source" not in known:
        known["source"] = None, _text(code, function.__globals__) or _digest(code)
    return str(known["source"][1])


def _text(code: types.CodeType, space: dict[str, Any]) -> str | None:
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, space)
    starts = _functions("".join(lines), code.co_filename).get((code.co_name, _digest(code)))
    if not starts or code.co_name == "<lambda>":
        return None
    start = min(starts, key=lambda line: abs(line - code.co_firstlineno))
    return "".join(inspect.getblock(lines[start - 1 :]))


@functools.lru_cache(maxsize=32)
def _functions(text: str, filename: str) -> dict[tuple[str, str], list[int]]:
    """The first lines of a file's functions by their names and digests."""
    found: dict[tuple[str, str], list[int]] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            todo = [compile(text, filename, "exec", dont_inherit=True)]
    except (SyntaxError, ValueError):
        return found
    while todo:
        code = todo.pop()
        found.setdefault((code.co_name, _digest(code)), []).append(code.co_firstlineno)
        todo += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return found


def _digest(code: types.CodeType) -> str:
    return hashlib.sha256(repr(_parts(code)).encode(errors="surrogatepass")).hexdigest()


def _parts(code: types.CodeType) -> list[Any]:
    """What a code object does, but for the lines that it stands on."""
    caught = getattr(code, "co_exceptiontable", b"")  # since Python 3.11
    names = [code.co_names, code.co_varnames, code.co_freevars]
    return [code.co_code, code.co_flags, caught, names, [_constant(constant) for constant in code.co_consts]]


def _constant(constant: Any) -> Any:
    if isinstance(constant, types.CodeType):
        return _parts(constant)
    if isinstance(constant, frozenset):  # its order is that of the process
        return sorted(map(repr, constant))
    return [_constant(item) for item in constant] if isinstance(constant, tuple) else constant
