"""What a reply to a signature looks like, as a grammar: every text that it allows, the signature's adapter can read.

    reply_grammar(signature, dspy.ChatAdapter())       '{"fields": [["answer", expression], …], "rules": {…}}'

What the format fixes (field markers, keys, punctuation) stands in one way, the way in which the adapter itself writes it and
a student is trained on it. Values stand in the ways that DSPy reads: `Yes` for a bool, `+3` or `3.0` for an int, quotes
around an option. Numbers that are not finite are left out, and constraints of a field outside its type, which DSPy
does not check either.

The expressions are those of `signatures.expressions`. They are JSON, so that a request can carry them.
"""

import inspect
import json
import threading
import types
import weakref
from collections.abc import Iterable
from copy import copy
from decimal import Decimal
from enum import Enum, EnumMeta
from math import isfinite
from random import Random
from typing import Any, Literal, Union, get_args, get_origin

import dspy
from dspy.adapters.types import Audio, File, History, Image, Tool
from dspy.adapters.types.base_type import Type
from dspy.adapters.types.document import Document
from dspy.adapters.utils import format_field_value, parse_value, serialize_for_json
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..errors import ConfigError
from . import expressions as e
from .bare_text import line_beside_values, text_beside_values
from .expressions import Expression, UnsupportedError
from .json_grammar import json_schema, json_value
from .json_texts import BARE_FORMATS, FREE_FORMATS, text_of, written
from .terse import TerseAdapter, decode, encode
from .values import is_text, type_name

_UNIONS = (Union, types.UnionType)
_UNWRITABLE = (Audio, Document, File, History, Image, Tool)
_BOOLS = [form(word) for word in ("true", "false", "yes", "no") for form in (str, str.title, str.upper)]
_BOOLS += ["1", "0", "on", "off", "t", "f", "y", "n"]
_MARK = "[[ ##"  # what opens a marker of ChatAdapter; at the start of a line no text has it
_CHECKS = 12  # texts of a type that are read back before its grammar is used
_OWN_CHECKS = {"value_error", "assertion_error"}  # what pydantic says where a validator of the user's refuses


def reply_grammar(signature: type[dspy.Signature], adapter: dspy.Adapter) -> str | None:
    """The grammar, as JSON text, of the replies that `adapter` reads as `signature`'s outputs; None for another format.

    Raises:
        ConfigError: An output's type has no grammar; the message names both.
    """
    layout = _layout(adapter)
    if layout is None or not signature.output_fields:
        return None
    with _lock:
        made = _made.setdefault(signature, {})
        if layout not in made:
            made[layout] = json.dumps(layout(signature).grammar())
        return made[layout]


def written_value(value: Any, name: str, signature: type[dspy.Signature], adapter: dspy.Adapter) -> str:
    """The text that `adapter` writes for one output of a reply.

    Raises:
        ConfigError: An adapter of another format.
    """
    layout = _layout(adapter)
    if layout is None:
        raise ConfigError(
            f"The replies of {type(adapter).__name__} are not known by their parts.",
            hint="Use dspy.ChatAdapter, dspy.JSONAdapter or dspyc.TerseAdapter.",
        )
    return layout(signature).write(value, signature.output_fields[name])


_made: "weakref.WeakKeyDictionary[Any, dict[type, str]]" = weakref.WeakKeyDictionary()
_lock = threading.RLock()


class _Layout:
    """One adapter's way with values, and the rules that they need."""

    adapter = ""  # its name

    def __init__(self, signature: type[dspy.Signature]) -> None:
        self.signature = signature
        self.rules: dict[str, Expression] = {}
        self.rules |= e.JSON_RULES

    def grammar(self) -> dict[str, Any]:
        fields = [[name, self.segment(at, name)] for at, name in enumerate(self.signature.output_fields)]
        return {"fields": fields, "rules": self.rules}

    def segment(self, at: int, name: str) -> Expression:
        """The text of one field, with what stands before and after it."""
        raise NotImplementedError

    def read(self, text: str, annotation: Any) -> Any:
        """The value that the adapter reads; anything may be raised."""
        raise NotImplementedError

    def write(self, value: Any, field: FieldInfo) -> str:
        """A value as the adapter writes it."""
        raise NotImplementedError

    def is_last(self, at: int) -> bool:
        return at == len(self.signature.output_fields) - 1

    def value(self, name: str) -> Expression:
        """The values of a field that is no free text.

        Raises:
            ConfigError: Its type has no grammar.
        """
        field = self.signature.output_fields[name]
        try:
            return self.checked(field, field.annotation)
        except UnsupportedError as error:
            raise ConfigError(
                f"Output `{name}` of type {type_name(field.annotation)} cannot be constrained: "
                f"there is no grammar for {error}.",
                hint="Use a simpler type, or switch constraints off: dspyc.LocalLM(..., constrained=False).",
            ) from error

    def checked(self, field: FieldInfo, annotation: Any) -> Expression:
        """The type's expression, by its fields' names or by their aliases, whichever the adapter reads back."""
        for by_alias in (False, True):
            made = self.of_type(field, annotation, by_alias)
            try:
                self._read_back(made, annotation)
            except UnsupportedError as error:
                failure = error
            else:
                return made
        raise failure

    def of_type(self, field: FieldInfo, annotation: Any, by_alias: bool) -> Expression:
        raise NotImplementedError

    def spellings(self, member: Any, field: FieldInfo) -> list[str]:
        """The texts in which a member of a `Literal` or `Enum` may stand, the adapter's own first."""
        raise NotImplementedError

    def options(self, field: FieldInfo, annotation: Any) -> Expression:
        """The members of a `Literal` or `Enum`, each in all its spellings that are read as this member.

        In a union they are read as the union reads them, which may be as an equal value of another type.
        """
        members = list(annotation) if isinstance(annotation, EnumMeta) else get_args(annotation)
        whole = field.annotation
        alone = whole == annotation
        near = _Near(tuple(members)) if alone and get_origin(annotation) is Literal else None
        made: dict[str, None] = {}
        for member in members:
            read_by, written_by = whole, field
            if near:
                read_by, written_by = near.around(member), copy(field)
                written_by.annotation = read_by
            spellings = self.spellings(member, written_by)
            found = [text for text in spellings if self._reads(text, read_by, member)]
            if not found and not alone:
                found = [text for text in spellings[:1] if self._reads_as_any(text, whole)]
            if not found:
                raise UnsupportedError(f"{member!r}, which {type(self).adapter} cannot read back")
            made |= dict.fromkeys(found)
        return next(iter(made)) if len(made) == 1 else ["alt", *made]

    def words(self, candidates: Iterable[str], annotation: Any) -> Expression:
        """The words that the adapter reads as values of the type."""
        return e.alt(*(word for word in candidates if self._reads_as_any(word, annotation)))

    def _reads_as_any(self, text: str, annotation: Any) -> bool:
        try:
            self.read(text, annotation)
        except Exception:  # whatever a reader raises, the text is no value
            return False
        return True

    def _reads(self, text: str, annotation: Any, member: Any) -> bool:
        try:
            found = self.read(text, annotation)
        except Exception:  # as in `_reads_as_any`
            return False
        return type(found) is type(member) and found == member

    def _read_back(self, expression: Expression, annotation: Any) -> None:
        random = Random(0)
        for _ in range(_CHECKS):
            text = e.sample(expression, self.rules, random)
            try:
                self.read(text, annotation)
            except Exception as error:  # a type's own reader may raise anything
                if isinstance(error, ValidationError) and {d["type"] for d in error.errors()} <= _OWN_CHECKS:
                    continue  # only an answer can show what it refuses
                raise UnsupportedError(f"it: {text!r} is not read back ({_first_line(error)})") from error


class _Lines(_Layout):
    """Layouts in which a value stands bare: text as it is, other values as DSPy reads them from text."""

    def spellings(self, member: Any, field: FieldInfo) -> list[str]:
        written = self.write(member, field)
        bare = written if isinstance(member, Enum) else str(member)
        texts = [written, bare, f'"{bare}"', f"'{bare}'", *([member.name] if isinstance(member, Enum) else [])]
        return [text for text in dict.fromkeys(texts) if _is_one_line(text)]

    def of_type(self, field: FieldInfo, annotation: Any, by_alias: bool) -> Expression:
        origin = get_origin(annotation)
        if origin is Literal or isinstance(annotation, EnumMeta):
            return self.options(field, annotation)
        if annotation is bool:
            return self.words(_BOOLS, annotation)
        if annotation is int:
            as_float = e.seq(e.rep(e.DIGIT, 1, 15), ".", e.rep("0", 1, 20))  # as long as a float holds all its digits
            return e.seq(_SIGN, e.alt(_DIGITS, as_float))
        if annotation in (float, Decimal):
            fraction = e.alt(e.seq(_DIGITS, e.maybe(e.seq(".", e.rep(e.DIGIT, 0, 40)))), e.seq(".", _DIGITS))
            number = e.seq(_SIGN, fraction, e.maybe(e.EXPONENT))
            return number if annotation is float else e.alt(number, e.seq('"', number, '"'))  # pydantic writes text
        if annotation is None or annotation is type(None):
            return self.words(["None", "null"], None)
        if origin in _UNIONS:
            members = get_args(annotation)
            text = e.alt(self.text(), e.json_string())
            return e.alt(*(text if member is str else self.of_type(field, member, by_alias) for member in members))
        _refuse_unwritable(annotation)
        if annotation is Any:
            return e.alt(self.text(), json_value(annotation, self.rules))
        return self.of_schema(annotation, by_alias)

    def of_schema(self, annotation: Any, by_alias: bool) -> Expression:
        """JSON, and a string without its quotes where the type is a kind of text, such as a date."""
        made = json_value(annotation, self.rules, by_alias=by_alias)
        schema = json_schema(annotation, by_alias=by_alias)
        if schema.get("format") in BARE_FORMATS:
            return text_of(schema)
        if not _is_kind_of_text(annotation):
            return made
        return made if _BOUNDS & set(schema) else e.alt(self.text(), made)

    def text(self) -> Expression:
        """Text that is read as text where a value of another type could stand."""
        raise NotImplementedError


class _Chat(_Lines):
    """`[[ ## name ## ]]`, a line end, the value, an empty line, …, `[[ ## completed ## ]]`."""

    adapter = "ChatAdapter"

    def text(self) -> Expression:
        return text_beside_values(self.rules, lines=True, controls=False)

    def segment(self, at: int, name: str) -> Expression:
        names = list(self.signature.output_fields)
        marker = f"[[ ## {name} ## ]]\n"
        if at and self._is_text(names[at - 1]):
            marker = marker.removeprefix(_MARK)  # the text before it ended with these
        if self._is_text(name):
            return e.seq(marker, self._text(name, " completed ## ]]\n" if self.is_last(at) else ""))
        end, after_nothing = (
            ["tail", f"{line_ends}[[ ## completed ## ]]\n"] if self.is_last(at) else line_ends
            for line_ends in ("\n\n", "\n")  # the adapter strips what it writes of a field
        )
        value = e.seq(self.value(name), end)
        annotation = self.signature.output_fields[name].annotation
        empty = get_origin(annotation) is Literal and "" in get_args(annotation)
        return e.seq(marker, e.alt(value, after_nothing) if empty else value)

    def read(self, text: str, annotation: Any) -> Any:
        return parse_value("\n".join(text.splitlines()).strip(), annotation)

    def write(self, value: Any, field: FieldInfo) -> str:
        return str(format_field_value(field, value))

    def _is_text(self, name: str) -> bool:
        annotation = self.signature.output_fields[name].annotation
        return is_text(annotation) or _is_optional_text(annotation)

    def _text(self, name: str, follow: str) -> Expression:
        """Free text up to a marker at the start of a line, or, with a `follow`, up to the reply's end.

        Its rules are named after where a line stands: `0` at its start, 1 to 4 after so much of a marker, `mid` beyond. DSPy
        takes an indented marker for one as well, but cannot read what follows it, so after `0i`, an indent, there is none.
        """
        stop = [""] if follow else []
        self.rules[f"{name}.mid"] = e.alt(
            *stop, e.seq(e.chars_but(e.LINE_ENDS), ["ref", f"{name}.mid"]), self._line(name)
        )
        for indent in ("", "i"):
            for at in range(1, 5):
                whole = [] if indent else [e.seq(_MARK[at], follow)]
                more = whole if at == 4 else [e.seq(_MARK[at], ["ref", f"{name}.{at + 1}{indent}"])]
                other = e.seq(e.chars_but(e.LINE_ENDS + _MARK[at]), ["ref", f"{name}.mid"])
                self.rules[f"{name}.{at}{indent}"] = e.alt(*stop, *more, other, self._line(name))
            opened = e.seq(_MARK[0], ["ref", f"{name}.1{indent}"])
            indented = e.seq(e.chars(set(e.WHITESPACE) - set(e.LINE_ENDS)), ["ref", f"{name}.0i"])
            self.rules[f"{name}.0{indent}"] = e.alt(*stop, opened, self._begun(name), indented, self._line(name))
        opened = e.seq(_MARK[0], ["ref", f"{name}.1"])
        empty = e.seq("\n", e.maybe("\n"), _MARK, follow)  # as DSPy writes an empty text
        return e.alt(*stop, opened, self._begun(name), empty)

    def _line(self, name: str) -> Expression:
        return e.seq(e.chars(e.LINE_ENDS), ["ref", f"{name}.0"])

    def _begun(self, name: str) -> Expression:
        return e.seq(e.chars_but(e.WHITESPACE + _MARK[0]), ["ref", f"{name}.mid"])


class _Terse(_Lines):
    """A value a line, in the signature's order; a last text runs to the end."""

    adapter = "TerseAdapter"

    def text(self) -> Expression:
        return line_beside_values(self.rules)

    def segment(self, at: int, name: str) -> Expression:
        end = "" if self.is_last(at) else "\n"
        annotation = self.signature.output_fields[name].annotation
        if is_text(annotation) or _is_optional_text(annotation):
            rest = e.chars_but("") if self.is_last(at) else e.chars_but("\n")
            return e.seq(e.chars_but(e.WHITESPACE), e.rep(rest), end)
        return e.seq(self.value(name), end)

    def read(self, text: str, annotation: Any) -> Any:
        return decode(text.strip(), annotation)

    def write(self, value: Any, field: FieldInfo) -> str:
        return encode(value, field)


class _Json(_Layout):
    """An object of the fields, two spaces a level."""

    adapter = "JSONAdapter"

    def segment(self, at: int, name: str) -> Expression:
        before, after = ("," if at else "{"), ("\n}" if self.is_last(at) else "")
        return e.seq(f"{before}\n  {json.dumps(name)}: ", self.value(name), after)

    def read(self, text: str, annotation: Any) -> Any:
        return parse_value(json.loads(text), annotation)

    def write(self, value: Any, field: FieldInfo) -> str:
        return json.dumps(serialize_for_json(value), ensure_ascii=False)

    def spellings(self, member: Any, field: FieldInfo) -> list[str]:
        return [self.write(member, field), *([json.dumps(member.name)] if isinstance(member, Enum) else [])]

    def of_type(self, field: FieldInfo, annotation: Any, by_alias: bool) -> Expression:
        if is_text(annotation):
            return e.json_string()
        if get_origin(annotation) is Literal or isinstance(annotation, EnumMeta):
            return self.options(field, annotation)
        _refuse_unwritable(annotation)
        members = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
        if not _is_optional_text(annotation) and any(map(_is_kind_of_text, members)):
            made = (
                self._reread(member) if _is_kind_of_text(member) else self.of_type(field, member, by_alias)
                for member in members
            )
            return e.alt(*made)
        return json_value(annotation, self.rules, indent=2, level=1, by_alias=by_alias)

    def _reread(self, annotation: Any) -> Expression:
        """A string in which DSPy looks for JSON once more."""
        if _BOUNDS & set(json_schema(annotation)):
            raise UnsupportedError("a text with a pattern or a length beside other types, in which DSPy looks for JSON")
        rules: dict[str, Expression] = {}
        text = written(text_beside_values(rules, lines=True, controls=True))
        self.rules |= {name: written(rule) for name, rule in rules.items()}
        return e.seq('"', text, '"')


def _layout(adapter: dspy.Adapter) -> type[_Layout] | None:
    """The layout that an adapter writes and reads replies in; a subclass that changes neither has its parent's."""
    known: list[tuple[type, type[_Layout]]] = [
        (TerseAdapter, _Terse),
        (dspy.JSONAdapter, _Json),
        (dspy.ChatAdapter, _Chat),
    ]
    for kind, layout in known:
        if isinstance(adapter, kind):
            same = all(_method(type(adapter), name) is _method(kind, name) for name in _REPLY)
            return layout if same else None
    return None


_REPLY = ("parse", "format_assistant_message_content", "format_field_with_value")


def _method(kind: type, name: str) -> Any:
    """DSPy wraps some methods of every subclass anew, inherited ones included."""
    return inspect.unwrap(found) if (found := getattr(kind, name, None)) else None


class _Near:
    """The options of a `Literal` that a reader could take for one another: the others need not be there to read one of them.

    So many options take as long as so many times one. An option with a quote, a bracket or a space around it may be taken
    for any other.
    """

    def __init__(self, members: tuple[Any, ...]) -> None:
        self._anyway = tuple(member for member in members if self._key(member) is None)
        self._alike: dict[Any, tuple[Any, ...]] = {}
        for member in members:
            if (key := self._key(member)) is not None:
                self._alike[key] = (*self._alike.get(key, ()), member)

    def around(self, member: Any) -> Any:
        """A `Literal` with the option and all for which it could be taken."""
        key = self._key(member)
        alike = self._alike[key] if key is not None else (member,)
        return Literal[alike + self._anyway]

    @staticmethod
    def _key(member: Any) -> str | float | None:
        if isinstance(member, (bool, Enum)) or not isinstance(member, (str, int)):
            return None
        text = str(member)
        try:
            number = float(text)  # 10, "10" and "1e1"
        except (OverflowError, ValueError):
            plain = text.lower() not in _JSON_WORDS and text == text.strip() and not set(text) & _QUOTING
            return text if plain and text else None
        return number if isfinite(number) else None


_JSON_WORDS = ("true", "false", "null", "none")
_QUOTING = set("\"'`[]{}()\\,")

_BOUNDS = {"pattern", "minLength", "maxLength", "strip"}
_SIGN = e.maybe(e.chars("+-"))
_DIGITS = e.rep(e.DIGIT, 1, 40)


def _is_one_line(text: str) -> bool:
    return bool(text) and text == text.strip() and len(text.splitlines()) == 1 and _MARK not in text


def _is_kind_of_text(annotation: Any) -> bool:
    """Types whose values are any text, or any with bounds, such as a path."""
    if annotation is Any or get_origin(annotation) is Literal or isinstance(annotation, EnumMeta):
        return False
    schema = json_schema(annotation)
    return (
        schema.get("type") == "string" and not {"enum", "const"} & set(schema) and schema.get("format") in FREE_FORMATS
    )


def _is_optional_text(annotation: Any) -> bool:
    """Unions of text and None, with or without more: DSPy reads whatever stands there as it is."""
    members = get_args(annotation) if get_origin(annotation) in _UNIONS else ()
    return str in members and type(None) in members


def _refuse_unwritable(annotation: Any) -> None:
    for kind in (annotation, *Type.extract_custom_type_from_annotation(annotation)):
        if isinstance(kind, type) and issubclass(kind, _UNWRITABLE):
            raise UnsupportedError(f"{kind.__name__}, which no text can hold")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
