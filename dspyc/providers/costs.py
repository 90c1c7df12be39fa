"""What training will cost, said before it starts: tokens × epochs × the provider's list price, where one is published.

estimate = estimate_cost(rows, "openai", "gpt-4.1-mini-2025-04-14", epochs=3)
print(estimate.describe())                             # About 41,000 tokens × 3 epochs: about 0.62 USD.
estimate.check(max_usd=5)                              # ConfigError where it is more
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..files import json_bytes

_BYTES_A_TOKEN = 4  # of JSON in English; a provider's own tokenizer counts some 20 % more or less
_TOKENS_AN_IMAGE = 765  # an estimate: OpenAI counts 85 in low detail, and 765 in high detail of 1024 × 1024 pixels
_IMAGE = re.compile(rb"data:image/[a-z+.-]+;base64,[A-Za-z0-9+/=]+")

# USD for a million trained tokens, by the beginning of the base model's name: list prices as last known here, not looked up.
_PRICES = {
    "openai": {
        "gpt-4.1-nano": 1.5,
        "gpt-4.1-mini": 5.0,
        "gpt-4.1": 25.0,
        "gpt-4o-mini": 3.0,
        "gpt-4o": 25.0,
        "gpt-3.5-turbo": 8.0,
    },
    "bedrock": {"amazon.nova-micro": 1.0, "amazon.nova-lite": 2.0, "amazon.nova-pro": 8.0},
}
_BEFORE_NAME = re.compile(r"^(ft:|(us|eu|apac|us-gov|global)\.)")  # of a tuned model, and of regions at Bedrock


@dataclass(frozen=True)
class CostEstimate:
    """Tokens of one pass over the rows, the passes, and USD in all: None where no price is known."""

    tokens: int
    epochs: float
    usd: float | None
    model: str

    def describe(self) -> str:
        """A sentence for people."""
        price = f"no price is known here for {self.model or 'this model'}"
        said = (
            price
            if self.usd is None
            else f"{_usd(self.usd)} at the list price last known here, without what serving costs"
        )
        return f"About {self.tokens:,} tokens × {self.epochs:g} epochs: {said}."

    def check(self, max_usd: float | None, *, confirmed: bool = False) -> None:
        """Stop before more is spent than the caller allows.

        Raises:
            ConfigError: More than `max_usd`, or an unknown price beside one, and not `confirmed`.
        """
        if max_usd is None or confirmed:
            return
        if self.usd is None:
            hint = "Leave `max_usd` out (in a shell: pass --yes) to start all the same."
            raise ConfigError(f"{self.describe()} The limit is {max_usd:g} USD.", hint=hint)
        if self.usd > max_usd:
            hint = "Raise `max_usd`, or leave it out (in a shell: --max-usd, --yes)."
            raise ConfigError(f"{self.describe()} The limit is {max_usd:g} USD.", hint=hint)


def estimate_cost(rows: Sequence[Mapping[str, Any]], provider: str, model: str = "", epochs: float = 3) -> CostEstimate:
    """The cost of training on rows as they are sent; they are counted by their length, since providers count with their own
    tokenizers, and images in them by their number."""
    size = images = 0
    for row in rows:
        text, found = _IMAGE.subn(b"", json_bytes(row))
        size, images = size + len(text), images + found
    tokens = max(1, round(size / _BYTES_A_TOKEN)) + images * _TOKENS_AN_IMAGE if rows else 0
    price = _price(provider, model)
    return CostEstimate(tokens, epochs, None if price is None else tokens * epochs * price / 1e6, model)


def _usd(amount: float) -> str:
    return f"about {amount:,.2f} USD" if amount >= 0.005 else "less than 0.01 USD"


def _price(provider: str, model: str) -> float | None:
    known = _PRICES.get(provider.partition("-")[0], {})  # "bedrock-nova" names rows
    base = _BEFORE_NAME.sub("", model.rpartition("/")[2])
    return next((known[name] for name in sorted(known, key=len, reverse=True) if base.startswith(name)), None)
