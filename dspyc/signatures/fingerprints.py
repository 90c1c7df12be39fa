"""Fingerprints: short names for content, the same in every process and free of secrets.

Each is the first 16 hex digits of a SHA-256 over canonical JSON. Nothing that depends on the process goes in: no memory
address, no order of a set, no module path of a type (a class may be `__main__.Ticket` today and `app.Ticket` tomorrow).
"""

import dataclasses
import hashlib
import inspect
import json
import re
import sys
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import dspy
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticOmit, PydanticUndefined

from ..errors import is_secret_name, public
from .digests import fingerprint

_PLACE = re.compile(r"api_|base_url$|azure_ad|aws_|vertex_cred", re.IGNORECASE)  # where a model is served
_DEEPEST = 50
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def signature_fingerprint(signature: type[dspy.Signature]) -> str:
    """Names a signature's instructions and its fields in order: kind, type, description, constraints and default.

    The class's own name is left out: DSPy forgets it whenever it rewrites or loads a signature.
    """
    fields = [_field_key(name, field) for name, field in signature.fields.items()]
    return fingerprint([signature.instructions, fields])


def adapter_fingerprint(adapter: dspy.Adapter) -> str:
    """Names an adapter's class and what it was set to, callbacks aside."""
    return fingerprint(adapter_key(adapter))


def type_key(annotation: Any) -> Any:
    """A type as JSON: equal for types that a field could swap unnoticed, different for all others."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ["Literal", [[type(a).__name__, stable(a)] for a in args]]
    if origin in (Union, types.UnionType):
        return ["Union", [type_key(a) for a in args]]
    if origin is Annotated:
        return ["Annotated", type_key(args[0]), [stable(a) for a in args[1:]]]
    if origin is not None:
        return [getattr(origin, "__name__", str(origin)), [type_key(a) for a in args]]
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, list):  # the parameters of a Callable
        return [type_key(a) for a in annotation]
    if not isinstance(annotation, type):
        return str(annotation)
    if annotation.__module__ == "builtins":
        return annotation.__name__
    if issubclass(annotation, Enum):
        return ["Enum", annotation.__name__, [[m.name, stable(m.value)] for m in annotation]]
    return [annotation.__name__, _schema(annotation)]


def stable(value: Any, _depth: int = 0) -> Any:
    """Any value as JSON that is the same in every process."""
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if _depth > _DEEPEST:
        return type(value).__name__
    deeper = _depth + 1
    if isinstance(value, type):
        return type_key(value)
    if isinstance(value, Enum):
        return [type(value).__name__, value.name]
    if isinstance(value, dspy.BaseLM):
        return lm_key(value)
    if isinstance(value, dspy.Example):
        value = dict(value.items())
    if isinstance(value, BaseModel):
        value = {"": type(value).__name__, **dict(value)}
    if dataclasses.is_dataclass(value):
        value = {"": type(value).__name__, **{f.name: getattr(value, f.name) for f in dataclasses.fields(value)}}
    if isinstance(value, Mapping):
        pairs = [[stable(k, deeper), stable(v, deeper)] for k, v in value.items()]
        return ["map", sorted(pairs, key=json.dumps)]
    if isinstance(value, (list, tuple)):
        return [stable(item, deeper) for item in value]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted((stable(item, deeper) for item in value), key=json.dumps)]
    return _opaque(value, deeper)


def _opaque(value: Any, depth: int) -> Any:
    name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    if inspect.isroutine(value) or get_origin(value) is not None:
        return name if inspect.isroutine(value) else type_key(value)
    if isinstance(value, re.Pattern):  # its `repr` ends after 200 characters
        return ["Pattern", stable(value.pattern), value.flags]
    if (content := _content(value)) is not None:
        return [type(value).__name__, *stable(content, depth)]
    described = repr(value)
    if _ADDRESS.search(described) and hasattr(value, "__dict__"):
        return [type(value).__name__, stable(vars(value), depth)]
    return [type(value).__name__, _ADDRESS.sub("", described)]


def _content(value: Any) -> list[Any] | None:
    """All that is in an array, a tensor or a table, of which `repr` shows a part; None of anything else."""
    if _is_a(value, "pandas", "DataFrame", "Series"):
        frame = value if _is_a(value, "pandas", "DataFrame") else value.to_frame()
        return [[str(kind) for kind in frame.dtypes], frame.to_dict("tight")]
    if _is_a(value, "pandas", "Index"):
        return [str(value.dtype), list(value.names), value.tolist()]
    if _is_a(value, "torch", "Tensor"):
        try:
            whole = value.detach().cpu().to_dense().resolve_conj().resolve_neg().contiguous()
        except (RuntimeError, NotImplementedError):  # one without content, or of a kind that has no plain form
            return None
        content = whole.reshape(-1).view(sys.modules["torch"].uint8).numpy().tobytes()
        return _bytes_key(value.dtype, whole.shape, content)
    if _is_a(value, "numpy", "ndarray"):
        if value.dtype.hasobject:
            return [str(value.dtype), list(value.shape), value.tolist()]
        return _bytes_key(value.dtype, value.shape, value.tobytes())
    return None


def _is_a(value: Any, module: str, *names: str) -> bool:
    """Whether it is of one of a module's classes; none is, while another thread is still importing the module."""
    kinds = (getattr(sys.modules.get(module), name, None) for name in names)
    return isinstance(value, tuple(kind for kind in kinds if kind is not None))


def _bytes_key(kind: Any, shape: Iterable[int], content: bytes) -> list[Any]:
    return [str(kind), list(shape), hashlib.sha256(content).hexdigest()]


def identifying(value: Any) -> Any:
    """Settings without secrets and without where a model is served, at any depth: neither is what a program is."""
    return public(value, is_secret)


def is_secret(name: Any) -> bool:
    """Whether a setting of this name is a secret, or says where a model is served."""
    return is_secret_name(name) or (isinstance(name, str) and _PLACE.match(name) is not None)


def _field_key(name: str, field: FieldInfo) -> list[Any]:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = None if field.default is PydanticUndefined else ["default", stable(field.default)]
    if field.default_factory is not None:
        default = ["factory", stable(field.default_factory)]
    told = [extra.get(key) for key in ("__dspy_field_type", "desc", "prefix", "constraints")]
    return [name, type_key(field.annotation), *map(stable, told), default]


def lm_key(lm: Any) -> list[Any]:
    kwargs = {k: v for k, v in getattr(lm, "kwargs", {}).items() if v is not None}
    free = ["free"] if getattr(lm, "constrained", None) is False else []  # a model of this machine that is left free
    return [
        getattr(lm, "model", type(lm).__name__),
        getattr(lm, "model_type", None),
        stable(identifying(kwargs)),
        *free,
    ]


def adapter_key(adapter: dspy.Adapter) -> list[Any]:
    kind = type(adapter)
    values = {k: v for k, v in vars(adapter).items() if k != "callbacks"}
    return [f"{kind.__module__}:{kind.__qualname__}", stable(identifying(values))]


class _QuietSchema(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 (pydantic's own declaration)


def _schema(annotation: Any) -> Any:
    try:
        return TypeAdapter(annotation).json_schema(schema_generator=_QuietSchema)
    except (PydanticUserError, PydanticOmit, TypeError, ValueError):
        return None  # a class that pydantic cannot describe is known by its name
