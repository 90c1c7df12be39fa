"""Plan and actual, side by side."""

from typing import Any

from rich.table import Table

from .plan import between, in_usd


def spending_table(
    plan: dict[str, Any] | None, spent: dict[str, Any], *, priced: bool, seconds: float, note: str = ""
) -> Table:
    """What a compile was to spend on models elsewhere by its plan, and what it spent; both are as their `to_dict` says.

    `priced` says that the USD are known; `note` says what else the seconds have in them.
    """
    table = Table(title="Spent on models elsewhere")
    for name in ("", "plan", "actual"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("calls", between(plan["least"], plan["calls"]) if plan else "–", f"{spent['calls']:,}")
    table.add_row("tokens", f"{plan['tokens']:,}" if plan else "–", f"{spent['tokens']:,}")
    known = priced or not spent["calls"]
    table.add_row("USD", in_usd(plan["usd"]) if plan else "–", in_usd(spent["usd"] if known else None))
    table.add_row("seconds", f"{plan['seconds']:.0f}" if plan else "–", f"{seconds:.0f}{note}")
    if plan and plan["least"] < plan["calls"]:
        table.caption = "tokens, USD and seconds of the plan are those of the most calls"
    return table
