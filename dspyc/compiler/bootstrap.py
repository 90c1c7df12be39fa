"""Runs of a program over many examples, concurrent, recorded and resumable."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from enum import Enum
from typing import Any

import dspy
from pydantic import BaseModel

from ..errors import BudgetError, ConfigError, DataError
from ..evaluation.metrics import Metric
from ..progress import bar
from ..signatures import copy_program, fingerprint, predictors, remembering
from ..signatures.adapted import AdaptedMixin
from ..signatures.fingerprints import stable
from .calls import Workers, durable, durable_whoever
from .failures import too_many
from .ledger import Ledger
from .pool import Pool
from .trace import Subject, Trace


def observe(
    program: dspy.Module,
    role: str,
    *,
    identity: str,
    lm: dspy.BaseLM | None = None,
    adapter: dspy.Adapter | None = None,
    traced: bool = True,
    round: int = 0,
) -> Subject:
    """A copy of `program` whose language models remember their calls, and its adapters demos; it is not changed itself.

    `identity` tells this subject's traces from every other's; `lm` and `adapter` serve predictors without their own.
    LMs that come up during a run (made in `forward`, given by `dspy.context(lm=...)`, a judge's in the metric) remember theirs
    too where a predictor asks them. `traced` runs give the metric DSPy's trace, as a bootstrap does; evaluation gives it
    None, as dspy.Evaluate does. `round` tells LMs that come up to give other replies than in those before.
    """
    copied = copy_program(program, durable)
    for predictor in predictors(copied).values():
        if isinstance(predictor, AdaptedMixin):
            predictor.adapter = durable_whoever(remembering(predictor.adapter))
    shared = lm if lm is not None else dspy.settings.lm
    written_by = durable_whoever(remembering(adapter or dspy.settings.adapter or dspy.ChatAdapter()))
    return Subject(copied, role, identity, durable(shared) if shared is not None else None, written_by, traced, round)


def bootstrap(
    subject: Subject,
    examples: Sequence[dspy.Example],
    *,
    metric: Metric | None,
    ledger: Ledger,
    num_threads: int = 8,
    max_errors: int | None = None,
    show_progress: bool = True,
    workers: Workers | None = None,
) -> list[Trace]:
    """One trace for each example, in the examples' order; where the ledger's budget is spent, for as many as it allowed.

    `max_errors` bad examples stop the bootstrap; None lets every example fail, as a gate does. `workers`, if any, make the
    requests to models that are not on this machine.

    Raises:
        BudgetError: It did not allow one.
        BootstrapError: `max_errors` examples failed; what was paid for stays in the ledger.
        LedgerError: The ledger cannot be written.
    """
    pending = enumerate(zip(examples, example_keys(examples), strict=True))
    done: list[Trace] = []
    errors: list[Trace] = []
    refused: BudgetError | None = None
    with (
        bar(f"{subject.role}: running {len(examples)} examples", len(examples), show=show_progress) as advance,
        Pool(ledger, metric=metric, num_threads=num_threads, workers=workers) as pool,
    ):
        running: set[Future[Trace]] = set()

        def start_next() -> None:
            if (item := next(pending, None)) is not None:
                index, (example, key) = item
                running.add(pool.submit(subject, example, key, index))

        for _ in range(num_threads):
            start_next()
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                try:
                    trace = future.result()
                except BudgetError as error:  # examples that the ledger knows still count
                    refused = error
                    start_next()
                    continue
                done.append(trace)
                if trace.error:
                    errors.append(trace)
                    ledger.event("bad example", role=subject.role, trace=trace.id, error=trace.error)
                advance(note=f"{len(errors)} failed" if errors else "")
                if max_errors is not None and len(errors) >= max_errors:
                    continue
                start_next()
    if max_errors is not None and len(errors) >= max_errors:
        raise too_many(errors, len(done), max_errors, subject.role)
    if refused and not done:
        raise refused
    return sorted(done, key=lambda trace: trace.index)


def check_examples(examples: Any, name: str, *, allow_empty: bool = False, inputs: bool = True) -> list[dspy.Example]:
    """The examples as a list, each with its inputs named unless `inputs=False`.

    Raises:
        DataError: Nothing, or something other than examples with inputs, arrived.
    """
    if isinstance(examples, (str, bytes)) or not hasattr(examples, "__iter__"):
        raise DataError(f"`{name}` is a {type(examples).__name__}; a list of dspy.Example is allowed.")
    checked: list[dspy.Example] = list(examples)
    if not checked and not allow_empty:
        raise DataError(f"`{name}` is empty.", hint="Pass at least one dspy.Example(...).with_inputs(...).")
    for i, example in enumerate(checked):
        if not isinstance(example, dspy.Example):
            raise DataError(
                f"`{name}[{i}]` is a {type(example).__name__}; a dspy.Example is allowed.",
                hint="Write dspy.Example(**row).with_inputs('question').",
            )
        try:
            empty = inputs and not example.inputs().keys()
        except ValueError:
            empty = True
        if empty:
            raise DataError(
                f"`{name}[{i}]` does not say which of its fields {sorted(example.keys())} are inputs.",
                hint="Call .with_inputs('question', ...) on every example.",
            )
    return checked


def example_keys(examples: Sequence[dspy.Example]) -> list[str]:
    """One stable key an example, by content; repeats of an example are numbered, so each has its own run."""
    seen: Counter[str] = Counter()
    keys = []
    for example in examples:
        content = fingerprint([sorted((k, _stable(v)) for k, v in example.items()), sorted(example.inputs().keys())])
        keys.append(f"{content}#{seen[content]}")
        seen[content] += 1
    return keys


def check_threads(num_threads: int | None) -> int:
    """The number of threads to run: DSPy's own setting where none is given.

    Raises:
        ConfigError: It is not a positive whole number.
    """
    number = num_threads if num_threads is not None else (dspy.settings.num_threads or 8)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"`num_threads` is {number!r}; a whole number from 1 is allowed.")
    return number


def _stable(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, dict) and all(key is None or isinstance(key, (str, int, float)) for key in value):
        return {str(k): _stable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stable(v) for v in value]
    if isinstance(value, BaseModel):
        with suppress(ValueError):  # it holds what JSON does not
            if not _holds_sets(value.model_dump()):
                return value.model_dump_json()
    described = stable(value)
    # Where the text of a value says it all, the text is its key: folders and files of earlier versions are found by it.
    as_text = isinstance(value, Enum) or described == [type(value).__name__, repr(value)]
    return f"{type(value).__qualname__}:{value!s}" if as_text else described


def _holds_sets(value: Any) -> bool:
    if isinstance(value, (dict, list, tuple)):
        return any(map(_holds_sets, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (set, frozenset))
