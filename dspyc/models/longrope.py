"""Models whose rotary factors change with a text's length: longrope (Phi-3, Phi-4) has one set for short texts, one for long.

transformers takes the set by the largest position of a forward pass, for all rows in it, and computes a text anew where its
reply outgrows the short set. So texts that may come to be long are computed by themselves, and share nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def short_length(config: Any) -> int | None:
    """The most tokens of a text, prompt and reply, with the factors of short ones; None where there is one set for all."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [part for part in found.values() if isinstance(part, dict)]  # some models have a set for each kind of layer
    scaled = [part for part in (found, *kinds) if part.get("rope_type") == "longrope"]
    lengths = [part.get("original_max_position_embeddings") for part in scaled]
    known = [*lengths, getattr(config, "original_max_position_embeddings", None) if scaled else None]
    return min((int(length) for length in known if length is not None), default=None)


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """Have a model attend by the named implementation."""
    before = model.config._attn_implementation
    if before == name:
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
