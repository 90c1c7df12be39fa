"""KNNFewShot: for every input the demos that are most like it.

The method is that of Liu et al. (2022, arXiv 2101.06804), under DSPy's name. DSPy asks a teacher again for every input; here
its runs are made once, when the program is compiled, and every predictor chooses from them by what it is asked itself.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from ..compiler import artifact
from ..compiler.examples import check_examples
from ..compiler.fitting import FitContext, fitted
from ..compiler.plan import Plan
from ..compiler.ray_workers import Executor
from ..compiler.trace import Trace
from ..errors import ConfigError
from ..signatures import predictors
from ..signatures.nearest import Nearest, choose_nearest
from .bootstrap_few_shot import BootstrapFewShot
from .checks import check_executor, check_fit
from .labeled_few_shot import LabeledFewShot

logger = logging.getLogger(__name__)
Traces = Sequence[Trace] | str | os.PathLike[str] | None


class KNNFewShot(Teleprompter):
    """Let every predictor show, for each input, the `k` demos of its pool whose inputs are most like it.

    The pool is the training examples as they are; with a teacher, or settings of BootstrapFewShot, it is the good runs on all
    of them, made once. A demo with the very inputs of a call is never shown.

    Args:
        k: Demos in a prompt; or by predictor's name, where those that are not named show none.
        trainset: The examples; those that `compile` is given win.
        vectorizer: By what texts are alike. Default: scikit-learn's tf-idf, with no network and no model
            (`pip install "dspyc[search]"`).
        fit_context: Leave the longest demos out of a pool, so that any `k` of it fit the student's context, counted by its own
            tokenizer; a number of tokens sets the limit instead. Default: where the student is on this machine.
        executor, run_dir: As for BootstrapFewShot.
        **few_shot_bootstrap_args: Of BootstrapFewShot, such as `metric`. `max_bootstrapped_demos` is by default all examples.
    """

    def __init__(
        self,
        k: int | Mapping[str, int],
        trainset: Sequence[dspy.Example] | None = None,
        vectorizer: dspy.Embedder | None = None,
        *,
        fit_context: FitContext = None,
        executor: Executor = "threads",
        run_dir: str | os.PathLike[str] | None = None,
        **few_shot_bootstrap_args: Any,
    ) -> None:
        super().__init__()
        for number in k.values() if isinstance(k, Mapping) else [k]:
            Nearest(number, vectorizer)
        check_fit(fit_context)
        check_executor(executor)
        self.k, self.trainset, self.vectorizer = k, trainset, vectorizer
        self.fit_context, self.executor, self.run_dir = fit_context, executor, run_dir
        self.few_shot_bootstrap_args = few_shot_bootstrap_args

    def compile(
        self,
        student: dspy.Module,
        *,
        teacher: dspy.Module | None = None,
        trainset: Sequence[dspy.Example] | None = None,
        traces: Traces = None,
    ) -> dspy.Module:
        """A copy of `student` whose predictors choose their demos, with `report` and `save`.

        `traces` teach in place of a teacher, as in BootstrapFewShot.

        Raises:
            DspycError: Its subclass says what was wrong.
        """
        examples = check_examples(self.trainset if trainset is None else trainset, "trainset")
        wanted = self._wanted(student, len(examples))
        compiled = self._with_pools(student, teacher, examples, traces)
        for name, predictor in predictors(compiled, frozen=False).items():
            if name not in wanted:
                predictor.demos = []
                continue
            asked = [*examples, *predictor.demos]
            predictor.demos = fitted(name, predictor, predictor.demos, asked, self.fit_context, shown=wanted[name])
            if len(predictor.demos) < wanted[name]:
                logger.warning("`%s` has %d demos to choose %d from.", name, len(predictor.demos), wanted[name])
            choose_nearest(predictor, Nearest(wanted[name], self.vectorizer))
        pools = {name: len(predictor.demos) for name, predictor in predictors(compiled, frozen=False).items()}
        found = {**compiled.report.dataset, "demos": pools, "shown": wanted}
        return artifact.attach(compiled, replace(compiled.report, dataset=found))

    def plan(
        self,
        student: dspy.Module,
        *,
        teacher: dspy.Module | None = None,
        trainset: Sequence[dspy.Example] | None = None,
        traces: Traces = None,
    ) -> Plan:
        """What `compile` with the same arguments will ask for: an estimate, at no cost. A `vectorizer` is not in it."""
        examples = check_examples(self.trainset if trainset is None else trainset, "trainset")
        self._wanted(student, len(examples))
        if (bootstrap := self._bootstrap(teacher, len(examples), traces)) is None:
            return Plan([], 1)
        return bootstrap.plan(student, teacher=teacher, trainset=examples, traces=traces)

    def _wanted(self, student: dspy.Module, examples: int) -> dict[str, int]:
        """Demos by predictor's name."""
        names = list(predictors(student, frozen=False))
        wanted = dict(self.k) if isinstance(self.k, Mapping) else dict.fromkeys(names, self.k)
        if unknown := sorted(wanted.keys() - set(names)):
            raise ConfigError(f"`k` names {unknown}; the student's predictors are {sorted(names)}.")
        for name, number in wanted.items():
            if number > examples:
                raise ConfigError(
                    f"`k` asks for {number} demos for predictor `{name}`, and `trainset` has {examples} example(s).",
                    hint="Pass more examples, or a smaller `k`.",
                )
        return wanted

    def _with_pools(
        self, student: dspy.Module, teacher: dspy.Module | None, examples: list[dspy.Example], traces: Traces
    ) -> dspy.Module:
        if (bootstrap := self._bootstrap(teacher, len(examples), traces)) is not None:
            return bootstrap.compile(student, teacher=teacher, trainset=examples, traces=traces)
        return LabeledFewShot(len(examples), fit_context=False).compile(student, trainset=examples, sample=False)

    def _bootstrap(self, teacher: dspy.Module | None, examples: int, traces: Traces) -> BootstrapFewShot | None:
        """What makes the pool; None where it is the examples as they are."""
        if teacher is None and traces is None and not self.few_shot_bootstrap_args:
            return None
        settings = {"max_bootstrapped_demos": examples, **self.few_shot_bootstrap_args}
        return _PoolBootstrap(**settings, executor=self.executor, run_dir=self.run_dir, fit_context=self.fit_context)


class _PoolBootstrap(BootstrapFewShot):
    """Keeps all demos; its `fit_context` is that of a teacher's labelled ones."""

    fits_demos = False
