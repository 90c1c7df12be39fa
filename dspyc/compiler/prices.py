"""What a language model's tokens cost, by LiteLLM's price table, of which DSPy carries a copy."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from ..providers.local import LocalProvider


@dataclass(frozen=True)
class Price:
    """USD for one token."""

    prompt: float
    reply: float

    def of(self, prompt_tokens: float, reply_tokens: float) -> float:
        return prompt_tokens * self.prompt + reply_tokens * self.reply


def is_paid(lm: Any) -> bool:
    """Whether a model answers elsewhere: what runs on this machine, in a server of ours too, costs nothing but time."""
    is_here = getattr(getattr(lm, "engine", None), "is_here", False)
    return not (is_here or isinstance(getattr(lm, "provider", None), LocalProvider))


def price_of(lm: Any) -> Price | None:
    """The list price of an LM, None where it is unknown: custom engines, and models that the table does not have."""
    if not isinstance(getattr(lm, "engine", None), str):
        return None
    return _listed(lm.model)


@cache
def _listed(model: str) -> Price | None:
    from dspy.clients.model_metadata import model_info, rate  # loads the table at its first use

    provider, _, name = model.partition("/") if "/" in model else ("openai", "", model)
    if name.startswith("ft:"):  # ft:BASE:ORGANISATION:SUFFIX:ID; the table has ft:BASE
        name = ":".join(name.split(":")[:2])
    info = model_info(provider, name)
    prompt, reply = rate(info, "input_cost_per_token"), rate(info, "output_cost_per_token")
    return Price(prompt, reply) if prompt is not None and reply is not None else None
