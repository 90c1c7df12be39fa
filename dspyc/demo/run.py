"""The demo: the support desk, compiled from an expert's answers into the bundled student."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from ..compiler.artifact import stands_at
from ..errors import ArtifactError
from ..optimizers import BootstrapFinetune
from ..providers import LocalLM
from ..signatures import TerseAdapter, adapt
from .expert import expert_lm
from .support_desk import SupportDesk, load_examples, metric

if TYPE_CHECKING:
    from ..compiler import CompileReport

OUT = Path("runs") / "demo"
TRAIN_KWARGS: dict[str, Any] = {
    "method": "full",
    "epochs": 10,
    "batch_size": 32,
    "scheduler": "one_cycle",
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "embedding_dropout": 0.1,
    "label_smoothing": 0.05,
    "precision": "fp32",  # a student this small copies order numbers badly when it is trained in bf16 (docs/log.md)
}


@dataclass(frozen=True)
class DemoResult:
    """Shares of test tickets with all four answers right; `interval` is of after − before, at 95 %."""

    before: float
    teacher: float
    after: float
    interval: tuple[float, float]
    seconds: float
    calls: dict[str, int]
    artifact: str
    report: "CompileReport"

    def to_dict(self) -> dict[str, Any]:
        facts = {name: value for name, value in vars(self).items() if name != "report"}
        return {**facts, "interval": list(self.interval)}


def run_demo(
    seed: int = 0,
    out: str | Path | None = None,
    show_progress: bool = True,
    *,
    trainset: Sequence[dspy.Example] | None = None,
    valset: Sequence[dspy.Example] | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
) -> DemoResult:
    """Compile the support desk and save it in `out`/artifact.

    `out`/run holds the run until the artifact is saved: a demo that was stopped goes on where it was, and one that ended
    begins anew. `trainset`, `valset` and `train_kwargs` stand in for all training tickets, all test tickets and
    `TRAIN_KWARGS`.

    Raises:
        DspycError: The run folder or the artifact cannot be written; the latter is found before anything is run.
    """
    started = time.monotonic()
    out = Path(out) if out is not None else OUT
    artifact, run = out / "artifact", out / "run"
    if stands_at(artifact):
        _remove(run)
        _remove(artifact)  # last: while it stands, the next demo begins anew
    train, _, test = load_examples()
    student = SupportDesk()
    student.set_lm(LocalLM("dspyc/tiny", max_tokens=32, cache=False))
    for predictor in student.predictors():
        adapt(predictor, TerseAdapter())  # before and after differ in their weights alone
    optimizer = BootstrapFinetune(
        metric=metric,
        teacher_lm=expert_lm(),
        train_kwargs=TRAIN_KWARGS if train_kwargs is None else train_kwargs,
        num_threads=32,
        run_dir=run,
        validation_fraction=0.0,  # nothing is chosen by the loss on held-out rows, so all rows train
        seed=seed,
        show_progress=show_progress,
    )
    compiled = optimizer.compile(student, trainset=trainset or train, valset=valset or test)
    compiled.save(artifact, source="dspyc.demo.support_desk:SupportDesk")
    report = compiled.report
    verdict = report.verdict
    return DemoResult(
        before=verdict.before,
        teacher=verdict.teacher,
        after=verdict.after,
        interval=verdict.interval,
        seconds=round(time.monotonic() - started, 1),
        calls=dict(report.calls),
        artifact=str(artifact),
        report=report,
    )


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ArtifactError(
            f"What an earlier demo left in {folder} cannot be removed: {error}.", hint="Name another folder."
        ) from error
