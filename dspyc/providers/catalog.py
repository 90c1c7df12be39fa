"""Which provider a model's name leads to, without loading any of them."""

import importlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from .remote import RemoteProvider


@dataclass(frozen=True)
class Entry:
    """`prefixes`: beginnings of model names. The first is the one that DSPy calls models by; others are changed to it."""

    module: str
    kind: str
    prefixes: tuple[str, ...]


CATALOG = {
    "openai": Entry("openai", "OpenAIProvider", ("openai/",)),
    "azure": Entry("azure", "AzureProvider", ("azure/",)),
    "bedrock": Entry("bedrock", "BedrockProvider", ("bedrock/",)),
    "databricks": Entry("databricks", "DatabricksProvider", ("databricks/",)),
    "together": Entry("together", "TogetherProvider", ("together_ai/", "together/")),
    "fireworks": Entry("fireworks", "FireworksProvider", ("fireworks_ai/", "fireworks/")),
    "vertex": Entry("vertex", "VertexProvider", ("vertex_ai/", "vertex/")),
}

_NOVA = re.compile(r"bedrock/(converse/)?([a-z-]+\.)?amazon\.nova-[a-z]+-v1")


def provider_name(model: str) -> str | None:
    """The provider that trains models of this name; None where none does."""
    return next((name for name, entry in CATALOG.items() if model.startswith(entry.prefixes)), None)


def called(model: str) -> str:
    """The model's name as DSPy calls it: `together/x` is `together_ai/x`, `ft:x` is `openai/ft:x`, and Nova has the version
    without which Bedrock does not know it."""
    if model.startswith("ft:"):
        return f"openai/{model}"
    if _NOVA.fullmatch(model):
        return f"{model}:0"
    for entry in CATALOG.values():
        for prefix in entry.prefixes[1:]:
            if model.startswith(prefix):
                return entry.prefixes[0] + model.removeprefix(prefix)
    return model


def provider_class(name: str) -> "type[RemoteProvider]":
    """A provider by its own name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in CATALOG:
        raise ConfigError(f"There is no provider {name!r}.", hint=f"There are {', '.join(CATALOG)}.")
    entry = CATALOG[name]
    found: type[RemoteProvider] = getattr(importlib.import_module(f".{entry.module}", __package__), entry.kind)
    return found
