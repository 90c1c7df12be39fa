"""What a compile will ask for, said before anything is spent: calls, tokens, USD and time.

    plan = optimizer.plan(student, trainset=train, valset=val)
    plan.table()                          # and `report.spending()` has plan and actual side by side afterwards

An estimate: every predictor is taken to be called once an example (a loop calls it more often), a token to be four
characters, and a reply to be as long as the example's labels where it has them. Training itself is not in it. How many calls a
search makes depends on what is answered: `least` and `calls` then bound them, and tokens, USD and time are those of `calls`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import dspy
from rich.table import Table
from rich.text import Text

from ..errors import RenderError
from ..signatures import adapter_of, predictors, prompt
from .prices import is_paid, price_of

SECONDS_A_CALL = 2.0
REPLY_TOKENS = 150  # where no label says more
_CHARACTERS_A_TOKEN = 4
_SAMPLE = 8  # examples whose prompts are written


@dataclass(frozen=True)
class Stage:
    """The calls of one part of a compile to one model: from `least` to `calls`, which are equal if the number is known.

    `usd` is 0 on this machine and None where the price is unknown.
    """

    role: str
    model: str
    examples: int
    calls: int
    least: int
    tokens: int
    usd: float | None
    paid: bool


@dataclass(frozen=True)
class Plan:
    """The stages of a compile in their order; `seconds` is the time of their calls at `threads` at once.

    `unknown` names parts that nothing is known of: steps by optimizers that have no plan.
    """

    stages: list[Stage]
    threads: int
    unknown: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """Calls of models elsewhere; those of models on this machine cost nothing."""
        return sum(stage.calls for stage in self.stages if stage.paid)

    @property
    def least(self) -> int:
        """The fewest that `calls` may turn out to be."""
        return sum(stage.least for stage in self.stages if stage.paid)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and replies, of models elsewhere."""
        return sum(stage.tokens for stage in self.stages if stage.paid)

    @property
    def usd(self) -> float | None:
        """The price of the calls; None if that of a model is unknown, and `unknown_prices` names it."""
        return None if self.unknown_prices else sum(stage.usd or 0.0 for stage in self.stages)

    @property
    def unknown_prices(self) -> list[str]:
        return sorted({stage.model for stage in self.stages if stage.usd is None and stage.calls})

    @property
    def seconds(self) -> float:
        return sum(stage.calls for stage in self.stages) * SECONDS_A_CALL / self.threads

    def to_dict(self) -> dict[str, Any]:
        names = ("calls", "least", "tokens", "usd", "seconds", "unknown_prices", "threads", "unknown")
        totals = {name: getattr(self, name) for name in names}
        return {**totals, "stages": [asdict(stage) for stage in self.stages]}

    def table(self) -> Table:
        """The plan for a terminal or a notebook."""
        table = Table(title="Plan: an estimate, before anything is spent")
        for name in ("part", "model", "examples", "calls", "tokens", "USD"):
            table.add_column(name, justify="left" if name in ("part", "model") else "right")
        for stage in self.stages:
            counts = (f"{stage.examples:,}", between(stage.least, stage.calls), f"{stage.tokens:,}")
            usd = in_usd(stage.usd) if stage.paid else "on this machine"
            table.add_row(*map(Text, (stage.role, stage.model, *counts, usd)))
        totals = (between(self.least, self.calls), f"{self.tokens:,}", in_usd(self.usd))
        table.add_row("all that is paid for", "", "", *totals, style="bold")
        table.caption = Text(self._caption(), "table.caption")
        return table

    def _caption(self) -> str:
        about = "at most" if any(stage.least < stage.calls for stage in self.stages) else "about"
        said = [f"{about} {self.seconds:.0f} s of calls, {self.threads} at once, at {SECONDS_A_CALL:g} s each"]
        if about == "at most":
            said.append("tokens and USD are those of the most calls")
        if self.unknown_prices:
            said.append(f"no price is known for {', '.join(self.unknown_prices)}")
        if self.unknown:
            said.append(f"nothing is known of {', '.join(self.unknown)}")
        return "; ".join(said)


def in_usd(amount: float | None) -> str:
    """USD for people."""
    return "unknown" if amount is None else f"{amount:.4f}" if amount < 1 else f"{amount:,.2f}"


def between(least: int, most: int) -> str:
    """A number for people, of which two bounds may be all that is known."""
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def plan_stages(
    program: dspy.Module,
    role: str,
    examples: Sequence[dspy.Example],
    *,
    runs: int | None = None,
    least: int | None = None,
) -> list[Stage]:
    """What `runs` of `program`, each on one of `examples`, ask of each of its models; by default one of each example.

    `least` is the smallest number of runs that there may be, where that is less.
    """
    runs = len(examples) if runs is None else runs
    least = runs if least is None else min(least, runs)
    stages: dict[str, Stage] = {}
    for predictor in predictors(program).values():
        lm = predictor.lm or dspy.settings.lm
        sampled = [_tokens(predictor, lm, example) for example in examples[:_SAMPLE]]
        sent = sum(prompt for prompt, _ in sampled) / max(1, len(sampled)) * runs
        said = sum(reply for _, reply in sampled) / max(1, len(sampled)) * runs
        price, paid = price_of(lm), is_paid(lm)
        usd = (price.of(sent, said) if price else None) if paid else 0.0
        known = stages.get(lm.model, Stage(role, lm.model, len(examples), 0, 0, 0, 0.0, paid))
        stages[lm.model] = Stage(
            role,
            lm.model,
            len(examples),
            known.calls + runs,
            known.least + least,
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
