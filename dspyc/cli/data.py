"""dspyc data: rows looked at before anybody pays for them."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from .failures import explained
from .output import Json, console, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ..providers.costs import CostEstimate
    from ..providers.rows import RowReport

_EPOCHS = 3.0  # of a price, where none are given
_SHOWN = 50  # refused rows on a screen; --json has all of them

data = typer.Typer(name="data", help="Look at training rows.", no_args_is_help=True)


class Target(str, Enum):
    """Whose rules: this machine's, or those of a name of `dspyc.providers.rows`."""

    local = "local"
    openai = "openai"
    openai_preferences = "openai-preferences"
    azure = "azure"
    nova = "bedrock-nova"
    bedrock = "bedrock"
    databricks = "databricks"
    together = "together"
    fireworks = "fireworks"
    vertex = "vertex"


@data.command()
@explained
def check(
    rows: Annotated[Path, typer.Argument(help="JSONL, one row a line: messages, or prompt and response.")],
    provider: Annotated[Target, typer.Option("--for", help="Whose rules to hold the rows to.")],
    model: Annotated[str, typer.Option(help="The base model, for its price; with --for local, for its tokens.")] = "",
    max_length: Annotated[int | None, typer.Option(help="Tokens a row, with --for local.")] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0, help="Passes over the rows, for the price. Default: 3.")
    ] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="Fail where training costs more.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Let it cost more than --max-usd, or what nobody knows.")] = False,
    as_json: Json = False,
) -> None:
    """Which rows a provider, or training here, would refuse, and why; and what training on the others costs."""
    from ..providers.costs import estimate_cost
    from ..providers.rows import formatter
    from ..training.formats import read_objects

    if provider is Target.local:
        _refuse_prices({"--epochs": epochs is not None, "--max-usd": max_usd is not None, "--yes": yes})
        _check_local(rows, model, max_length, as_json)
        return
    if max_length is not None:
        raise ConfigError("--max-length is for --for local.", hint="Leave it out: providers have limits of their own.")
    report = formatter(provider.value).format_numbered(read_objects(rows))
    cost = estimate_cost(report.rows, provider.value, model, _EPOCHS if epochs is None else epochs)
    _tell(rows, report, cost, as_json)
    if not report.ok:
        raise typer.Exit(1)
    cost.check(max_usd, confirmed=yes)


def _refuse_prices(given: dict[str, bool]) -> None:
    """Raises ConfigError where an option that has to do with prices is given; training here has none."""
    if named := [option for option, is_given in given.items() if is_given]:
        raise ConfigError(
            f"{', '.join(named)} and --for local do not go together.", hint="Training here costs nothing: leave it out."
        )


def _check_local(path: Path, model: str, max_length: int | None, as_json: bool) -> None:
    if not model:
        raise ConfigError("--for local counts tokens by a model's tokenizer.", hint="Add --model, as in dspyc train.")
    from ..training.formats import read_objects
    from ..training.inspection import inspect_rows

    found = inspect_rows(read_objects(path), model, max_length)
    long = [
        (row.index, f"{row.length} tokens, and {found.report.limit} fit: left out") for row in found.report.too_long
    ]
    screen = console(as_json)
    _list([*found.refused, *long], screen)
    screen.print(f"local: {found.describe()} {len(found.refused):,} would be refused.", soft_wrap=True)
    if as_json:
        refused = [{"line": line, "reasons": [reason]} for line, reason in found.refused]
        facts = {"ok": found.ok, **found.report.to_dict(), "refused": refused}
        counts = {"tokens": found.tokens, "computed_tokens": found.computed}
        emit({"file": str(path), "provider": "local", "model": model, **facts, **counts})
    if not found.ok:
        raise typer.Exit(1)


def _list(named: "Sequence[tuple[int, str]]", screen: "Console") -> None:
    """A line for each line of the file that something is to be said of."""
    for line, reason in named[:_SHOWN]:
        screen.print(f"Line {line}: {reason}", soft_wrap=True)
    if len(named) > _SHOWN:
        screen.print(f"And {len(named) - _SHOWN:,} more; --json lists them all.")


def _tell(path: Path, report: "RowReport", cost: "CostEstimate", as_json: bool) -> None:
    screen = console(as_json)
    _list([(refusal.number, "; ".join(refusal.reasons)) for refusal in report.refused], screen)
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
