"""dspyc compile: a program, examples and a metric in, an artifact out."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ArtifactError, ConfigError
from .failures import explained, interrupted
from .inputs import chosen_inputs
from .loading import (
    as_examples,
    is_reference,
    load_metric,
    load_program,
    load_student_lm,
    load_teacher,
    read_object,
    read_records,
)
from .output import Json, console, emit, quiet, summary

if TYPE_CHECKING:
    import dspy

    from ..compiler import Budget, Plan

_MAX_TOKENS = 256


class AdapterName(str, Enum):
    """The adapters that a compiled program can run with."""

    terse = "terse"
    chat = "chat"
    json = "json"
    xml = "xml"


class OnRegression(str, Enum):
    """What happens when the compiled program scores below the student."""

    warn = "warn"
    refuse = "raise"
    keep_student = "keep_student"


@explained
def compile_program(
    program: Annotated[str, typer.Argument(help="module.py:program: a dspy.Module, or what makes one.")],
    trainset: Annotated[Path, typer.Option(help="JSONL, one example a line.")],
    out: Annotated[Path, typer.Option(help="The folder for the artifact.")],
    metric: Annotated[str | None, typer.Option(help="module.py:metric. Without it every good run counts.")] = None,
    valset: Annotated[Path | None, typer.Option(help="JSONL to compare on. Default: a fifth of --trainset.")] = None,
    inputs: Annotated[str | None, typer.Option(help="Input fields, as a,b. Default: what forward takes.")] = None,
    student: Annotated[
        str | None, typer.Option(help="A folder, dspyc/tiny, a hub id, openai/… or module.py:lm.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="openai/gpt-5-mini, a folder, or module.py:name.")] = None,
    adapter: Annotated[AdapterName, typer.Option(help="How the student is prompted.")] = AdapterName.terse,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The longest reply of a --student that is no reference. Default: 256.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="What a resume reads. Default: OUT.run.")] = None,
    train_kwargs: Annotated[str, typer.Option(help="""Training settings, as '{"num_train_epochs": 3}'.""")] = "{}",
    num_threads: Annotated[int | None, typer.Option(min=1, help="Examples that run at once. Default: 8.")] = None,
    metric_threshold: Annotated[float | None, typer.Option(help="The lowest score that teaches. Default: 1.")] = None,
    max_errors: Annotated[
        int | None, typer.Option(min=1, help="How many bad examples stop the compile. Default: 10.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    on_regression: Annotated[
        OnRegression, typer.Option(help="Where the result is worse than the student: save it, none, or the student.")
    ] = OnRegression.warn,
    max_usd: Annotated[
        float | None,
        typer.Option(min=0, help="Spend no more on calls, and besides no more on each training job elsewhere."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start training jobs whatever they cost.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is at OUT.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would ask and cost, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a program's prompts into weights, by a teacher's good runs or by labels."""
    loaded = load_program(program)
    names, train, held_out = _examples(loaded, trainset, valset, inputs)
    judged_by = load_metric(metric) if metric else None
    settings = _training_settings(train_kwargs, None if yes else max_usd)
    taught_by = _teaching(load_teacher(teacher)) if teacher else {}
    _give_student(loaded, student, max_tokens)
    kept_in = run_dir if run_dir is not None else out.parent / f"{out.name}.run"

    from ..compiler import save
    from ..optimizers import BootstrapFinetune
    from ..signatures.checks import ADAPTERS

    optimizer = BootstrapFinetune(
        metric=judged_by,
        train_kwargs=settings,
        adapter=ADAPTERS[adapter.value](),
        num_threads=num_threads,
        teacher_lm=taught_by.get("teacher_lm"),
        metric_threshold=metric_threshold,
        max_errors=max_errors,
        on_regression=on_regression.value,
        run_dir=kept_in,
        budget=_budget(max_usd),
        seed=seed,
    )
    asked: dict[str, Any] = {"trainset": train, "valset": held_out, "teacher": taught_by.get("teacher")}
    if plan:
        _show_plan(optimizer.plan(loaded, **asked), as_json)
        return
    _check_out(out, overwrite)
    if max_usd is not None:
        _check_prices(optimizer.plan(loaded, **asked), max_usd)
    quiet()
    try:
        compiled = optimizer.compile(loaded, **asked)
        save(compiled, out, source=program)
    except KeyboardInterrupt:
        raise interrupted(kept_in) from None
    _tell(compiled.report, out, names, as_json)


def _examples(
    program: "dspy.Module", trainset: Path, valset: Path | None, inputs: str | None
) -> "tuple[list[str], list[dspy.Example], list[dspy.Example] | None]":
    """The names of the inputs, the examples to learn from, and those to compare on, if any were given."""
    records = read_records(trainset)
    names, needed = chosen_inputs(program, inputs, records)
    train = as_examples(records, trainset, names, needed)
    held_out = as_examples(read_records(valset), valset, names, needed) if valset else None
    return names, train, held_out


def _training_settings(train_kwargs: str, max_usd: float | None) -> dict[str, Any]:
    """The settings of --train-kwargs, with the limit of a training elsewhere."""
    settings = read_object(train_kwargs, "--train-kwargs")
    return settings if max_usd is None else {**settings, "max_usd": max_usd}


def _budget(max_usd: float | None) -> "Budget | None":
    """The limit of a compile's calls; None for none."""
    from ..compiler import Budget

    if max_usd == 0:
        raise ConfigError("--max-usd 0 allows no call.", hint="Leave it out; --plan says what a compile would spend.")
    return None if max_usd is None else Budget(usd=max_usd)


def _check_out(out: Path, overwrite: bool) -> None:
    """Find before anything is spent what would stop the artifact from being written."""
    from ..compiler.artifact import stands_at

    if stands_at(out) and not overwrite:
        raise ArtifactError(
            f"{out} holds an artifact already.", hint="Pass --overwrite to replace it, or another --out."
        )


def _check_prices(plan: "Plan", max_usd: float) -> None:
    """A limit in USD cannot be kept for a model whose price nobody knows, and is refused at its first call: too late."""
    if plan.unknown_prices:
        raise ConfigError(
            f"The price of {', '.join(plan.unknown_prices)} is unknown, so --max-usd {max_usd:g} cannot be kept.",
            hint="Leave it out; to limit training elsewhere alone, --train-kwargs '{\"max_usd\": 5}'.",
        )


def _show_plan(plan: "Plan", as_json: bool) -> None:
    screen = console(as_json)
    screen.print(plan.table())
    screen.print("Training itself is not in it.")
    if as_json:
        emit(plan.to_dict())


def _tell(report: Any, out: Path, inputs: list[str], as_json: bool) -> None:
    screen = console(as_json)
    screen.print(report.table())
    screen.print(summary(report.calls, report.seconds))
    for line in _warnings(report):
        screen.print(line, style="yellow")
    example = ", ".join(f'"{name}": "…"' for name in inputs)
    screen.print(f"Artifact: {out}", soft_wrap=True)
    screen.print(f"Next: dspyc run {out} --input '{{{example}}}'", soft_wrap=True)
    if as_json:
        names = ("before", "teacher", "after", "interval", "kept_student", "stopped", "seconds", "calls", "rows")
        facts = {name: getattr(report, name) for name in names}
        outcome = report.verdict.outcome if report.verdict else "not compared"
        emit({"outcome": outcome, **facts, "run_dir": report.run_dir, "artifact": str(out)})


def _warnings(report: Any) -> Iterator[str]:
    """What the artifact is not."""
    if report.verdict and report.verdict.regressed:
        kept = (
            "The artifact holds the student as it was" if report.kept_student else "The artifact holds it all the same"
        )
        yield f"Worse than the student it started from: {report.before:.3f} before, {report.after:.3f} after. {kept}."
    if report.stopped:
        yield f"Stopped early: {report.stopped}. With a higher --max-usd and --overwrite the same command goes on."


def _teaching(teacher: Any) -> dict[str, Any]:
    import dspy

    return {"teacher_lm" if isinstance(teacher, dspy.BaseLM) else "teacher": teacher}


def _give_student(program: "dspy.Module", model: str | None, max_tokens: int | None) -> None:
    from ..signatures import predictors

    if model is None and any(predictor.lm is None for predictor in predictors(program).values()):
        raise ConfigError(
            "The program has no language model to train.",
            hint="Pass --student dspyc/tiny, a folder or a Hugging Face id, or call set_lm in the module.",
        )
    if max_tokens is not None and (model is None or is_reference(model)):
        raise ConfigError(
            f"--max-tokens is {max_tokens}, and the student is made by {model or 'the program'}, with its own limit.",
            hint="Leave it out, or name a model with --student.",
        )
    if model is not None:
        program.set_lm(load_student_lm(model, max_tokens=max_tokens or _MAX_TOKENS))
