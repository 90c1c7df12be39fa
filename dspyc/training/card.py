"""The model card beside trained weights: what they are, what they learned from and how well, and how to load them.

It holds no path of this machine, no time and no date, so the same run writes the same card.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .config import TrainingConfig
from .curves import CURVES
from .result import TrainingResult

CARD = "README.md"
_PACKAGES = ("dspyc", "torch", "transformers", "peft")


def describe(
    folder: Path,
    result: TrainingResult,
    config: TrainingConfig,
    step: int,
    events: Sequence[Mapping[str, Any]],
    picture: bytes | None,
) -> None:
    """Write the card of the weights of `step` into their folder, and the run's curves where there is a `picture`."""
    losses = {int(e["step"]): float(e["validation_loss"]) for e in events if "validation_loss" in e}
    card = model_card(result, config, step, losses.get(step), curves=picture is not None)
    (folder / CARD).write_text(card, encoding="utf-8")
    if picture is not None:
        (folder / CURVES).write_bytes(picture)


def model_card(
    result: TrainingResult, config: TrainingConfig, step: int, loss: float | None, *, curves: bool = False
) -> str:
    """A Hugging Face model card in Markdown.

    Args:
        step: That of the weights it stands beside.
        loss: Their validation loss in nats a reply token; None where no rows were held out.
        curves: Whether loss_curves.png lies beside it.
    """
    base, adapter = base_name(result.base), result.method != "full"
    linked = f"[{base}](https://huggingface.co/{base})" if _on_the_hub(result.base) else f"`{base}`"
    what = "A LoRA adapter for" if adapter else "A model made from"
    which = "the best by validation loss" if step == result.best_step else "the last"
    parts = [
        _header(base, result.method),
        f"# {base.rpartition('/')[2]}, fine-tuned with dspyc",
        f"{what} {linked}, trained on {result.rows['rows']:,} chat rows. It holds the weights of step {step:,}, {which}.",
    ]
    named = base if _on_the_hub(result.base) or base == "dspyc/tiny" else f"path/to/{base}"
    parts += ["## Use", _usage(named, adapter)]
    parts += ["## Scores", _scores(result, loss)]
    parts += [f"![Losses, learning rate and gradient norm over the steps]({CURVES})"] if curves else []
    parts += ["## Data", _data(result)]
    parts += ["## Settings", _table("setting", "value", _settings(config))]
    parts += ["## Provenance", _table("what", "version", _versions(result))]
    return "\n\n".join(parts) + "\n"


def base_name(model: str) -> str:
    """A model as a card names it: hub ids and names as they are, folders by their last part."""
    return model if _on_the_hub(model) or model == "dspyc/tiny" else Path(model).expanduser().resolve().name


def _on_the_hub(model: str) -> bool:
    is_path = model.startswith((".", "/", "~")) or Path(model).is_dir() or "\\" in model
    return not is_path and model != "dspyc/tiny"


def _header(base: str, method: str) -> str:
    """YAML, of which JSON is a part: a quoted string cannot be taken for anything else."""
    tags = ["dspyc", "dspy", method] if method != "full" else ["dspyc", "dspy"]
    lines = [
        f"base_model: {json.dumps(base)}",
        f"base_model_relation: {'finetune' if method == 'full' else 'adapter'}",
        f"library_name: {'transformers' if method == 'full' else 'peft'}",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---"])


def _usage(base: str, adapter: bool) -> str:
    here = '"path/to/this/folder"'
    model = f'"{base}", adapter={here}' if adapter else here
    return f"```python\nimport dspyc\n\nlm = dspyc.LocalLM({model})  # a dspy.LM\n```"


def _scores(result: TrainingResult, loss: float | None) -> str:
    rows: list[tuple[str, Any]] = []
    if result.train_loss is not None:
        rows.append(("training loss, nats a token, at the end", f"{result.train_loss:.4f}"))
    if loss is not None:
        rows.append(("validation loss, nats a token, of these weights", f"{loss:.4f}"))
    if result.best_step is not None:
        rows.append(("step with the lowest validation loss", f"{result.best_step:,}"))
    early = " (stopped early)" if result.stopped_early else ""
    return _table("score", "value", [*rows, ("optimizer steps of the run", f"{result.steps:,}{early}")])


def _data(result: TrainingResult) -> str:
    """One column each for training and validation rows."""
    reports = [r for r in (result.rows, result.validation_rows) if r["rows"]]
    lines = [("rows", "rows"), ("longest row, tokens", "max_length"), ("learned tokens", "supervised_tokens")]
    table = [[name, *(f"{report[key]:,}" for report in reports)] for name, key in lines]
    table.insert(1, ["tokens", *(f"{round(r['rows'] * r['mean_length']):,}" for r in reports)])
    table.append(["rows too long, left out", *(f"{len(r['too_long']):,}" for r in reports)])
    head = ["", "training", "validation"][: len(reports) + 1]
    return _rows([head, ["---"] * len(head), *table])


def _settings(config: TrainingConfig) -> list[tuple[str, Any]]:
    """All but those that stand for a default, which `rate` tells for the learning rate."""
    given = config.model_dump(mode="json", exclude={"model"})
    given["learning_rate"] = config.rate
    return [(name, f"`{json.dumps(value)}`") for name, value in sorted(given.items()) if value is not None]


def _versions(result: TrainingResult) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("the base's content", f"`{result.base_identity}`")]
    for package in _PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found


def _table(left: str, right: str, rows: list[tuple[str, Any]]) -> str:
    return _rows([[left, right], ["---", "---"], *([name, str(value)] for name, value in rows)])


def _rows(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
