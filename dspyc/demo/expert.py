"""The demo's teacher: an expert that knows the tickets, and is wrong about 12 % of them.

Its errors give the metric something to filter. Which tickets it gets wrong depends on their text alone, so every run, in
any order and on any number of threads, sees the same teacher.
"""

import random
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

import dspy

from ..models import ScriptedLM
from .policy import queue_for
from .support_desk import Intent, Queue, Urgency, load_examples

ERROR_RATE = 0.12
_CHOICES: dict[str, tuple[str, ...]] = {
    "intent": get_args(Intent),
    "urgency": get_args(Urgency),
    "queue": get_args(Queue),
}


def expert_lm() -> dspy.LM:
    """A `ScriptedLM` that answers both predictors of `SupportDesk`."""
    return ScriptedLM(answer, model="scripted/support-desk-expert", cache=False)


def answer(inputs: Mapping[str, str]) -> dict[str, str]:
    """What the expert says to one prompt: the fields of `triage`, or of `route` where the intent is given."""
    ticket = inputs["ticket"]
    known = _lookup(ticket)
    if "intent" not in inputs:
        right = {"intent": known["intent"], "urgency": known["urgency"]}
    else:
        queue = queue_for(inputs["intent"], inputs["urgency"])
        right = {"queue": queue, "order_number": known["order_number"]}
    return {name: _wrong(name, value, ticket) if name == mistaken(ticket) else value for name, value in right.items()}


def mistaken(ticket: str) -> str | None:
    """The answer that the expert gets wrong for this ticket, if any."""
    rng = random.Random(f"expert {ticket}")
    return rng.choice(("intent", "urgency", "queue", "order_number")) if rng.random() < ERROR_RATE else None


def _wrong(name: str, value: str, ticket: str) -> str:
    if name == "order_number":
        return value[:-1] if value != "none" else "#1"
    return random.Random(f"wrong {ticket}").choice([choice for choice in _CHOICES[name] if choice != value])


def _lookup(ticket: str) -> dspy.Example:
    """The data's answers to `ticket`, or to the ticket that shares the largest part of its words."""
    known = _tickets()
    if ticket in known:
        return known[ticket]
    words = set(ticket.lower().split())

    def overlap(other: str) -> float:
        others = set(other.lower().split())
        return len(words & others) / len(words | others)

    return known[max(known, key=overlap)]


@cache
def _tickets() -> dict[str, Any]:
    return {example.ticket: example for split in load_examples() for example in split}
