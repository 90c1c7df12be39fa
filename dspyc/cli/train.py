"""dspyc train: rows in, weights out."""

import json
import shlex
import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from .failures import explained, interrupted
from .launch import join_in, launch, launched
from .output import Json, console, emit

if TYPE_CHECKING:
    from ..training import TrainingConfig, TrainingResult

_MERGED = "merged_model"


class Launcher(str, Enum):
    """What can start several processes."""

    accelerate = "accelerate"


@explained
def train(
    data: Annotated[Path, typer.Option(help="JSONL, one row a line: messages, or prompt and response.")],
    model: Annotated[str, typer.Option(help="A folder, a Hugging Face id or dspyc/tiny.")],
    out: Annotated[Path, typer.Option(help="The folder for everything; the same command goes on in it.")],
    method: Annotated[str | None, typer.Option(help="lora, qlora or full.")] = None,
    preset: Annotated[str | None, typer.Option(help="quick_test, low_resource, high_quality or production.")] = None,
    task: Annotated[str | None, typer.Option(help="chat, code, instruct, domain or custom.")] = None,
    validation: Annotated[Path | None, typer.Option(help="JSONL that only measures.")] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Else the share of --data that only measures. Default: 0.1; 0 for none.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the rows.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row; longer ones are left out.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Of the adapter.")] = None,
    freeze_ratio: Annotated[
        float | None, typer.Option(help="The share of the layers, from the bottom, to keep.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or fp32.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, as name=value; the value is JSON or text.")
    ] = None,
    resume_from: Annotated[
        int | None, typer.Option(help="Go on from the checkpoint of this step instead of the newest; once.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write an adapter's whole weights too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    launcher: Annotated[Launcher | None, typer.Option(help="Train in several processes.")] = None,
    num_processes: Annotated[int | None, typer.Option(min=1, help="How many.")] = None,
    accelerate_config: Annotated[Path | None, typer.Option(help="What `accelerate config` wrote.")] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on rows: chats, prompts with responses, instructions with outputs."""
    flags = {
        "method": method,
        "preset": preset,
        "task": task,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_length": max_length,
        "lora_rank": lora_rank,
        "freeze_ratio": freeze_ratio,
        "precision": precision,
        "seed": seed,
    }
    config = _config({name: value for name, value in flags.items() if value is not None}, settings or [])
    if merge and config.method == "full":
        raise ConfigError(
            "--merge and --method full contradict each other.", hint="Full training writes whole weights: leave it out."
        )
    rows, held_out = _rows(data, validation, validation_fraction)
    if _in_several(launcher, num_processes, accelerate_config):
        raise typer.Exit(launch(num_processes, accelerate_config, device))
    _carry_out(model, rows, held_out, config, out, device, resume_from, merge, as_json)


def _carry_out(
    model: str,
    rows: Any,
    held_out: Any,
    config: "TrainingConfig",
    out: Path,
    device: str,
    resume_from: int | None,
    merge: bool,
    as_json: bool,
) -> None:
    from ..training import processes
    from ..training import train as run_training

    if launched():
        join_in()
    try:
        result = run_training(
            model, rows, config=config, output_dir=out, validation=held_out, device=device, resume_from=resume_from
        )
        if not processes.is_main():
            return
        merged = _merged(result, out) if merge else None
    except KeyboardInterrupt:
        raise interrupted(out) from None
    _tell(result, out, merged, as_json)


def _config(flags: dict[str, Any], assignments: list[str]) -> "TrainingConfig":
    """The flags and --set together; a name that both give is an error."""
    from ..training import TrainingConfig

    given = dict(flags)
    for assignment in assignments:
        name, value = _assigned(assignment)
        if name in given:
            where = f"--{name.replace('_', '-')} and --set" if name in flags else "--set twice"
            raise ConfigError(f"`{name}` is given by {where}.", hint="Give it once.")
        given[name] = value
    return TrainingConfig.from_kwargs(given)


def _assigned(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r} is no name=value.", hint="Write --set weight_decay=0.1, one for each.")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value  # a word needs no quotes


def _rows(data: Path, validation: Path | None, share: float | None) -> tuple[Any, Any]:
    from ..training.formats import read_rows

    if validation is not None and share is not None:
        raise ConfigError("--validation and --validation-fraction contradict each other.", hint="Give one of them.")
    rows = read_rows(data)
    if validation is not None:
        return rows, read_rows(validation)
    from ..providers.local import split

    return split(rows, 0.1 if share is None else share)


def _in_several(launcher: Launcher | None, num_processes: int | None, config: Path | None) -> bool:
    """Whether to start processes, rather than be the only one or one of those that were started."""
    if launcher is None and (num_processes is not None or config is not None):
        raise ConfigError(
            "--num-processes and --accelerate-config are for a launcher.", hint="Add --launcher accelerate."
        )
    if launcher is None or launched():
        return False
    if num_processes is None and config is None:
        raise ConfigError("--launcher needs to know how many processes to start.", hint="Add --num-processes 2.")
    return num_processes != 1


def _merged(result: "TrainingResult", out: Path) -> Path:
    """The adapter and its base as one model that transformers loads, made where it is not there yet."""
    from ..models.weights import quiet
    from ..training.merging import merge

    folder = out / _MERGED
    if not folder.exists():
        with quiet(), warnings.catch_warnings():  # as in training: what goes wrong is an error
            warnings.simplefilter("ignore")
            merge(result.path, folder, base=result.base)
    return folder


def _tell(result: "TrainingResult", out: Path, merged: Path | None, as_json: bool) -> None:
    from ..training.curves import CURVES

    screen = console(as_json)
    validated = "" if result.validation_loss is None else f", {result.validation_loss:.3f} on validation rows"
    early = ", stopped early" if result.stopped_early else ""
    loss = "not known" if result.train_loss is None else f"{result.train_loss:.3f}"
    screen.print(f"{result.steps:,} steps in {result.seconds:.0f} s{early}. Loss: {loss}{validated}.")
    screen.print(f"Model: {result.path}", soft_wrap=True)
    if result.best_path is not None and result.best_step != result.kept_step:
        screen.print(f"Best on validation rows, step {result.best_step}: {result.best_path}", soft_wrap=True)
    if merged is not None:
        screen.print(f"Merged with its base: {merged}", soft_wrap=True)
    adapted = result.method != "full" and merged is None
    loaded = f'"{result.base}", adapter="{result.path}"' if adapted else f'"{merged or result.path}"'
    code = f'import dspyc; print(dspyc.LocalLM({loaded})("Hello!")[0])'
    curves = str(out / CURVES) if (out / CURVES).exists() else None
    if curves is not None:
        screen.print(f"Curves: {curves}", soft_wrap=True)
    screen.print(f"Next: python -c {shlex.quote(code)}", soft_wrap=True)
    if as_json:
        emit({**result.to_dict(), "out": str(out), "merged": merged and str(merged), "curves": curves})
