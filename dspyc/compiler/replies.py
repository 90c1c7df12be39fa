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
    except ValueError:  # an object that holds itself
        return json.dumps(replies, default=str)


def replies_of(text: str) -> Any:
    """What `replies_text` wrote."""
    return _READER.decode(text)


_READER = json.JSONDecoder(object_hook=ReplyFields)


def _fields(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return dict(value)  # its own serializer may be put off, and then fails
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    held = {} if isinstance(value, type) else getattr(value, "__dict__", {})
    return {name: item for name, item in held.items() if not name.startswith("_")} or str(value)
