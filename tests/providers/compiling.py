"""A compile with a student elsewhere, and other processes that do such things: forked from one that has imported everything, so
that a test may start and kill many of them."""

import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import dspy

import dspyc
from dspyc.providers import attach
from dspyc.providers.polling import Polling
from tests.forks import FORKS

for name in ("litellm", "boto3", "databricks.sdk", "google.genai", "openai"):  # before processes are forked
    with suppress(ImportError):
        importlib.import_module(name)


def compile_program(model: str, settings: dict[str, Any], train_kwargs: dict[str, Any], run_dir: str) -> dspy.Module:
    """A program that answers "yes", once its model is tuned."""
    program = dspy.Predict("question -> answer")
    lm = dspyc.LM(model, cache=False, num_retries=0, **settings)
    lm.provider.polling = Polling(first=0.01, most=0.05)
    program.set_lm(lm)
    examples = [dspy.Example(question=f"Is {i} a number?", answer="yes").with_inputs("question") for i in range(14)]
    optimizer = dspyc.BootstrapFinetune(
        metric=lambda example, prediction, trace=None: prediction.answer == example.answer,
        adapter=dspyc.TerseAdapter(),
        train_kwargs=train_kwargs,
        run_dir=Path(run_dir),
        num_threads=2,
        show_progress=False,
    )
    return optimizer.compile(program, trainset=examples[:12], valset=examples[12:])


def compiled_model(*arguments: Any) -> str:
    return str(compile_program(*arguments).lm.model)


def status(id: str) -> str:
    return attach(id).status().value


def cancel(id: str) -> bool:
    return attach(id).cancel()


class Elsewhere:
    """A function called in a process of its own, which has this one's environment."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._answer, theirs = FORKS.Pipe(duplex=False)
        self.process: BaseProcess = FORKS.Process(
            target=_run, args=(dict(os.environ), theirs, function, arguments), daemon=True
        )
        self.process.start()
        theirs.close()

    def result(self) -> Any:
        """What it returned; the error that it raised is raised here."""
        try:
            found, error = self._answer.recv()
        finally:
            self.process.join(60)
        if error is not None:
            raise error
        return found


def _run(environment: dict[str, str], answer: Connection, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    try:
        answer.send((function(*arguments), None))
    except Exception as error:
        answer.send((None, error))
