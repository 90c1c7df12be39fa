"""dspyc data: rows looked at before anybody pays for them."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .failures import explained
from .output import Json, console, emit

if TYPE_CHECKING:
    from ..providers.costs import CostEstimate
    from ..providers.rows import RowReport

_SHOWN = 50  # refused rows on a screen; --json has all of them

data = typer.Typer(name="data", help="Look at training rows.", no_args_is_help=True)


class Target(str, Enum):
    """Whose rules: the names of `dspyc.providers.rows`."""

    openai = "openai"
    azure = "azure"
    nova = "bedrock-nova"
    bedrock = "bedrock"
    databricks = "databricks"
    databricks_chat = "databricks-chat"
    databricks_instruction = "databricks-instruction"
    together = "together"
    fireworks = "fireworks"
    vertex = "vertex"


@data.command()
@explained
def check(
    rows: Annotated[Path, typer.Argument(help="JSONL, one row a line: messages, or prompt and response.")],
    provider: Annotated[Target, typer.Option("--for", help="Whose rules to hold the rows to.")],
    model: Annotated[str, typer.Option(help="The base model, for its price.")] = "",
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the rows, for the price.")] = 3,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Fail where training costs more.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Let it cost more than --max-usd, or what nobody knows.")] = False,
    as_json: Json = False,
) -> None:
    """Which rows a provider would refuse, and why; and what training on the others costs."""
    from ..providers.costs import estimate_cost
    from ..providers.rows import formatter
    from ..training.formats import read_objects

    report = formatter(provider.value).format_numbered(read_objects(rows))
    cost = estimate_cost(report.rows, provider.value, model, epochs)
    _tell(rows, report, cost, as_json)
    if not report.ok:
        raise typer.Exit(1)
    cost.check(max_usd, confirmed=yes)


def _tell(path: Path, report: "RowReport", cost: "CostEstimate", as_json: bool) -> None:
    screen = console(as_json)
    for refusal in report.refused[:_SHOWN]:
        screen.print(f"Line {refusal.number}: {'; '.join(refusal.reasons)}", soft_wrap=True)
    if len(report.refused) > _SHOWN:
        screen.print(f"And {len(report.refused) - _SHOWN:,} more; --json lists them all.")
    verdict = f"{len(report.rows):,} rows can be sent, {len(report.refused):,} would be refused."
    if report.problem:
        verdict += f" {report.problem}."
    screen.print(f"{report.formatter.name}: {verdict}", soft_wrap=True)
    screen.print(cost.describe(), soft_wrap=True)
    if not report.ok:
        screen.print(f"Rules: {report.formatter.source}", soft_wrap=True)
    if as_json:
        refused = [{"line": refusal.number, "reasons": list(refusal.reasons)} for refusal in report.refused]
        counts = {"ok": report.ok, "rows": len(report.rows), "refused": refused, "problem": report.problem}
        money = {"tokens": cost.tokens, "epochs": cost.epochs, "usd": cost.usd}
        emit({"file": str(path), "provider": report.formatter.name, **counts, **money})
