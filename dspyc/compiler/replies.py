"""Replies as a ledger keeps them and as a program gets them: the same in the first sitting, in a replay and from a worker.

    text = replies_text(lm(messages=…))
    replies_of(text)[0]["tool_calls"][0].function.name

Clients answer with objects of their SDKs (tool calls, log-probabilities), whose fields are read one by one. What comes back is
plain data whose dicts have their items as attributes too, as DSPy's own replies and those of its cache have.
"""

import dataclasses
import json
from typing import Any

from pydantic import BaseModel

from ..errors import is_secret_name


class ReplyFields(dict[str, Any]):
    """A dict whose items are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """Plain dicts, as an SDK's object gives them."""
        plain: dict[str, Any] = json.loads(json.dumps(self))
        return plain


def replies_text(replies: Any) -> str:
    """Replies as JSON; a value that has neither JSON nor fields becomes its text."""
    try:
        return json.dumps(replies, default=_fields)
    except (TypeError, ValueError, RecursionError):
        # Keys that are no text, an object that holds itself, or no end of objects.
        return json.dumps([_flat(reply) for reply in replies])


def replies_of(text: str) -> Any:
    """What `replies_text` wrote."""
    return _READER.decode(text)


_READER = json.JSONDecoder(object_hook=ReplyFields)


def _flat(reply: Any) -> Any:
    """A reply with the text of whatever is more than a number or text."""
    if isinstance(reply, dict):
        return {str(name): _as_text(item) for name, item in reply.items()}
    return _as_text(reply)


def _as_text(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _fields(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return dict(value)  # its own serializer may be put off, and then fails
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    held = {} if isinstance(value, type) else getattr(value, "__dict__", {})
    shown = {name: item for name, item in held.items() if not name.startswith("_") and not is_secret_name(name)}
    return shown or str(value)
