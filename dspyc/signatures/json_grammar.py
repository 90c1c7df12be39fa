"""The JSON that a type is read from, as a grammar: pydantic's schema of the type, with the layout of `json.dumps`.

Layout is fixed, so that punctuation and keys need not be chosen: every property is written, in the schema's order.
"""

import json
from collections.abc import Callable
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from . import expressions as e
from .expressions import Expression, UnsupportedError
from .json_numbers import number
from .json_texts import text_of
from .values import type_adapter

_DEEPEST = 12  # nested values of one recursive type
_ANYTHING = 12  # nested values where any JSON will do

_REFUSED = ("contains", "dependentRequired", "if", "minContains", "minProperties", "multipleOf", "not")


def json_value(
    annotation: Any,
    rules: dict[str, Expression],
    *,
    indent: int | None = None,
    level: int = 0,
    by_alias: bool = True,
) -> Expression:
    """The JSON values of a type, `level` levels deep in what is being written; `rules` gets what they refer to.

    Args:
        indent: Spaces a level, as `json.dumps(indent=…)` lays values out; None for one line.

    Raises:
        UnsupportedError: The type has no schema, or one that asks for more than a grammar can hold.
    """
    schema = json_schema(annotation, by_alias=by_alias)
    space = f"{len(rules)}."  # two types may call different things by one name
    return _Schema(rules, indent, space, schema.get("$defs", {})).expression(schema, level, 0)


class _Schema:
    """One JSON schema on its way to an expression."""

    def __init__(
        self, rules: dict[str, Expression], indent: int | None, space: str, definitions: dict[str, Any]
    ) -> None:
        self._rules, self._indent, self._space, self._definitions = rules, indent, space, definitions

    def expression(self, schema: Any, level: int, depth: int) -> Expression:
        """`level` counts brackets around the value, `depth` references on the way to it."""
        if schema is True or not set(schema) - {"title", "description", "default", "examples"}:
            return self._anything(level, _ANYTHING)
        for key in _REFUSED:
            if key in schema:
                raise UnsupportedError(f"`{key}: {json.dumps(schema[key])}` in its schema")
        if "$ref" in schema:
            return self._reference(schema["$ref"].rsplit("/", 1)[-1], level, depth)
        if "const" in schema:
            return json.dumps(schema["const"], ensure_ascii=False)
        if "enum" in schema:
            return e.alt(*(json.dumps(option, ensure_ascii=False) for option in schema["enum"]))
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                return self._union(key, schema[key], level, depth)
        kind = schema.get("type")
        if isinstance(kind, list):
            return e.alt(*(self.expression({**schema, "type": one}, level, depth) for one in kind))
        reader: Callable[[Any, int, int], Expression] | None = getattr(self, f"_{kind}", None)
        if reader is None:
            raise UnsupportedError(f"a schema of type {kind!r}")
        return reader(schema, level, depth)

    def _reference(self, name: str, level: int, depth: int) -> Expression:
        if depth > _DEEPEST:
            raise _TooDeepError(f"values nested deeper than {_DEEPEST}")
        rule = f"{self._space}{name}@{level}.{depth}"
        if rule not in self._rules:
            self._rules[rule] = ""  # a rule that needs itself is not begun again
            try:
                self._rules[rule] = self.expression(self._definitions[name], level, depth + 1)
            except UnsupportedError:
                del self._rules[rule]
                raise
        return ["ref", rule]

    def _union(self, key: str, options: list[Any], level: int, depth: int) -> Expression:
        if key == "allOf" and len(options) > 1:
            raise UnsupportedError("`allOf` of several schemas")
        made, error = [], None
        for option in options:
            try:
                made.append(self.expression(option, level, depth))
            except _TooDeepError as deep:
                error = deep
        if not made:
            raise error or UnsupportedError("a union of nothing")
        return e.alt(*made)

    def _null(self, schema: Any, level: int, depth: int) -> Expression:
        return "null"

    def _boolean(self, schema: Any, level: int, depth: int) -> Expression:
        return e.alt("true", "false")

    def _integer(self, schema: Any, level: int, depth: int) -> Expression:
        low, high = schema.get("minimum"), schema.get("maximum")
        if "exclusiveMinimum" in schema:
            low = schema["exclusiveMinimum"] + 1
        if "exclusiveMaximum" in schema:
            high = schema["exclusiveMaximum"] - 1
        return e.integer(low, high)

    def _number(self, schema: Any, level: int, depth: int) -> Expression:
        low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
        high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
        low_open = above is not None and (low is None or above >= low)
        high_open = below is not None and (high is None or below <= high)
        made = number(above if low_open else low, below if high_open else high, low_open=low_open, high_open=high_open)
        return e.seq('"', made, '"') if schema.get("quoted") else made

    def _string(self, schema: Any, level: int, depth: int) -> Expression:
        return e.seq('"', text_of(schema), '"')

    def _array(self, schema: Any, level: int, depth: int) -> Expression:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if schema.get("uniqueItems") and least > 1:
            raise UnsupportedError("sets of at least two items")
        fixed = [self.expression(item, level + 1, depth) for item in schema.get("prefixItems", ())]
        if fixed:
            return self._items(fixed, "[", "]", level)
        try:
            item = self.expression(schema.get("items", True), level + 1, depth)
        except _TooDeepError:
            if least:
                raise
            return "[]"
        return self._many(item, "[", "]", level, least, most)

    def _object(self, schema: Any, level: int, depth: int) -> Expression:
        properties = schema.get("properties")
        if properties:
            parts = [
                e.seq(f"{json.dumps(name, ensure_ascii=False)}: ", self.expression(inner, level + 1, depth))
                for name, inner in properties.items()
            ]
            return self._items(parts, "{", "}", level)
        inner = schema.get("additionalProperties", properties is None)
        for regex, named in schema.get("patternProperties", {}).items():
            inner, schema = named, {**schema, "propertyNames": {"type": "string", "pattern": regex}}
        if inner is False:
            return "{}"
        try:
            value = self.expression(inner, level + 1, depth)
        except _TooDeepError:
            return "{}"
        part = e.seq(self._key(schema.get("propertyNames", {"type": "string"}), depth), ": ", value)
        return self._many(part, "{", "}", level, 0, schema.get("maxProperties"))

    def _key(self, schema: Any, depth: int) -> Expression:
        if "$ref" in schema:
            schema = self._definitions[schema["$ref"].rsplit("/", 1)[-1]]
        if "enum" in schema:
            return e.alt(*(json.dumps(str(option), ensure_ascii=False) for option in schema["enum"]))
        key = self.expression(schema, 0, depth)
        return key if schema.get("type") == "string" else e.seq('"', key, '"')

    def _anything(self, level: int, deeper: int) -> Expression:
        scalar = [e.json_string(), e.number(), "true", "false", "null"]
        rule = f"any@{level}.{deeper}"
        if rule not in self._rules:
            nested: list[Expression] = ["[]", "{}"]
            if deeper:
                item = self._anything(level + 1, deeper - 1)
                pair = e.seq(e.json_string(), ": ", item)
                nested = [
                    self._many(item, "[", "]", level, 0, None),
                    self._many(pair, "{", "}", level, 0, None),
                ]
            self._rules[rule] = e.alt(*scalar, *nested)
        return ["ref", rule]

    def _items(self, parts: list[Expression], opening: str, closing: str, level: int) -> Expression:
        """`parts` between brackets; `[]` or `{}` where there are none."""
        if not parts:
            return opening + closing
        made = [opening, self._break(level + 1), parts[0]]
        for part in parts[1:]:
            made += [self._comma(level), part]
        return e.seq(*made, self._break(level), closing)

    def _many(
        self, part: Expression, opening: str, closing: str, level: int, least: int, most: int | None
    ) -> Expression:
        """From `least` to `most` of `part` between brackets."""
        if most == 0:
            return opening + closing
        more = e.rep(e.seq(self._comma(level), part), max(least - 1, 0), None if most is None else most - 1)
        filled = e.seq(opening, self._break(level + 1), part, more, self._break(level), closing)
        return filled if least else e.alt(opening + closing, filled)

    def _comma(self, level: int) -> str:
        return ", " if self._indent is None else "," + self._break(level + 1)

    def _break(self, level: int) -> str:
        return "" if self._indent is None else "\n" + " " * (self._indent * level)


class _TooDeepError(UnsupportedError):
    """A recursive type was followed far enough."""


class _FullSchema(GenerateJsonSchema):
    """Pydantic's schema, with what it leaves out: the types of keys. A decimal is a number, which pydantic writes as text."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 (pydantic's own declaration)

    def dict_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().dict_schema(schema)
        keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
        if keys.get("type") in ("integer", "number", "boolean") or keys.get("format"):
            made.pop("patternProperties", None)
            made["additionalProperties"] = self.generate_inner(schema["values_schema"])
            made["propertyNames"] = keys
        return made

    def str_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().str_schema(schema)
        return {**made, "strip": True} if schema.get("strip_whitespace") else made

    def decimal_schema(self, schema: Any) -> JsonSchemaValue:
        _refuse(schema, "max_digits", "decimal_places")
        bounds = self.float_schema(schema)
        return {"anyOf": [{**bounds, "quoted": True}, bounds]}

    def date_schema(self, schema: Any) -> JsonSchemaValue:
        _refuse(schema, *_BOUNDS)
        return super().date_schema(schema)

    def time_schema(self, schema: Any) -> JsonSchemaValue:
        _refuse(schema, *_BOUNDS, "tz_constraint")
        return super().time_schema(schema)

    def datetime_schema(self, schema: Any) -> JsonSchemaValue:
        _refuse(schema, *_BOUNDS)
        zone = schema.get("tz_constraint")
        return {"type": "string", "format": f"date-time {zone}" if zone else "date-time"}

    def timedelta_schema(self, schema: Any) -> JsonSchemaValue:
        _refuse(schema, *_BOUNDS)
        return super().timedelta_schema(schema)


_BOUNDS = ("ge", "gt", "le", "lt", "now_op")


def _refuse(schema: Any, *names: str) -> None:
    for name in names:
        if name in schema:
            raise UnsupportedError(f"`{name}: {schema[name]}` of a {schema['type']}")


def json_schema(annotation: Any, *, by_alias: bool = True) -> dict[str, Any]:
    """Pydantic's JSON schema for reading a type.

    Raises:
        UnsupportedError: Pydantic has none.
    """
    try:
        return type_adapter(annotation).json_schema(schema_generator=_FullSchema, by_alias=by_alias)
    except UnsupportedError:
        raise
    except Exception as error:  # pydantic's own errors, or what a custom type's hook raises
        raise UnsupportedError(f"it has no JSON schema ({type(error).__name__}: {error})") from error
