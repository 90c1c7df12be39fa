"""What a compile will ask for, said before anything is spent: calls, tokens, USD and time.

    plan = optimizer.plan(student, trainset=train, valset=val)
    plan.table()                          # and `report.spending()` has plan and actual side by side afterwards

An estimate: every predictor is taken to be called once an example (a loop calls it more often), a token to be four
characters, and a reply to be as long as the example's labels where it has them. Training itself is not in it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dspy
from rich.table import Table

from ..errors import RenderError
from ..signatures import adapter_of, predictors, prompt
from .prices import is_paid, price_of

SECONDS_A_CALL = 2.0
REPLY_TOKENS = 150  # where no label says more
_CHARACTERS_A_TOKEN = 4
_SAMPLE = 8  # examples whose prompts are written


@dataclass(frozen=True)
class Stage:
    """The calls of one part of a compile to one model. `usd` is 0 on this machine and None where the price is unknown."""

    role: str
    model: str
    examples: int
    calls: int
    tokens: int
    usd: float | None
    paid: bool


@dataclass(frozen=True)
class Plan:
    """The stages of a compile in their order; `seconds` is the time of their calls at `threads` at once."""

    stages: list[Stage]
    threads: int

    @property
    def calls(self) -> int:
        """Calls of models elsewhere; those of models on this machine cost nothing."""
        return sum(stage.calls for stage in self.stages if stage.paid)

    @property
    def tokens(self) -> int:
        """Prompts and replies of models elsewhere."""
        return sum(stage.tokens for stage in self.stages if stage.paid)

    @property
    def usd(self) -> float | None:
        """None where a price is unknown; `unknown_prices` names those models."""
        return None if self.unknown_prices else sum(stage.usd or 0.0 for stage in self.stages)

    @property
    def unknown_prices(self) -> list[str]:
        return sorted({stage.model for stage in self.stages if stage.usd is None and stage.calls})

    @property
    def seconds(self) -> float:
        return sum(stage.calls for stage in self.stages) * SECONDS_A_CALL / self.threads

    def to_dict(self) -> dict[str, Any]:
        totals = {name: getattr(self, name) for name in ("calls", "tokens", "usd", "seconds", "unknown_prices")}
        return {**totals, "threads": self.threads, "stages": [asdict(stage) for stage in self.stages]}

    def table(self) -> Table:
        """The plan for a terminal or a notebook."""
        table = Table(title="Plan: an estimate, before anything is spent")
        for name in ("part", "model", "examples", "calls", "tokens", "USD"):
            table.add_column(name, justify="left" if name in ("part", "model") else "right")
        for stage in self.stages:
            counts = (f"{stage.examples:,}", f"{stage.calls:,}", f"{stage.tokens:,}")
            table.add_row(stage.role, stage.model, *counts, in_usd(stage.usd) if stage.paid else "on this machine")
        table.add_row(
            "all that is paid for", "", "", f"{self.calls:,}", f"{self.tokens:,}", in_usd(self.usd), style="bold"
        )
        unknown = f"; no price is known for {', '.join(self.unknown_prices)}" if self.unknown_prices else ""
        table.caption = (
            f"about {self.seconds:.0f} s of calls, {self.threads} at once, at {SECONDS_A_CALL:g} s each{unknown}"
        )
        return table


def in_usd(amount: float | None) -> str:
    """USD for people."""
    return "unknown" if amount is None else f"{amount:.4f}" if amount < 1 else f"{amount:,.2f}"


def plan_stages(program: dspy.Module, role: str, examples: Sequence[dspy.Example]) -> list[Stage]:
    """What running `program` on `examples` asks of each of its models."""
    stages: dict[str, Stage] = {}
    for predictor in predictors(program).values():
        lm = predictor.lm or dspy.settings.lm
        sampled = [_tokens(predictor, lm, example) for example in examples[:_SAMPLE]]
        sent = sum(prompt for prompt, _ in sampled) / max(1, len(sampled)) * len(examples)
        said = sum(reply for _, reply in sampled) / max(1, len(sampled)) * len(examples)
        price, paid = price_of(lm), is_paid(lm)
        usd = (price.of(sent, said) if price else None) if paid else 0.0
        known = stages.get(lm.model, Stage(role, lm.model, len(examples), 0, 0, 0.0, paid))
        stages[lm.model] = Stage(
            role,
            lm.model,
            len(examples),
            known.calls + len(examples),
            known.tokens + round(sent + said),
            None if usd is None or known.usd is None else known.usd + usd,
            paid,
        )
    return list(stages.values())


def _tokens(predictor: dspy.Predict, lm: dspy.BaseLM, example: dspy.Example) -> tuple[float, float]:
    """Of the prompt, as far as the example has its inputs, and of the reply."""
    fields = predictor.signature
    given = {name: example.get(name, "…") for name in fields.input_fields}
    try:
        messages = prompt(predictor, given, adapter=adapter_of(predictor), lm=lm).messages
        sent = sum(len(str(message["content"])) for message in messages)
    except RenderError:  # an input of a type that only the program can make
        sent = len(fields.instructions) + sum(len(str(value)) for value in given.values())
    labels = [str(example[name]) for name in fields.output_fields if name in example]
    if len(labels) == len(fields.output_fields):
        return sent / _CHARACTERS_A_TOKEN, sum(len(label) + 30 for label in labels) / _CHARACTERS_A_TOKEN
    return sent / _CHARACTERS_A_TOKEN, REPLY_TOKENS
