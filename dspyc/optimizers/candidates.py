"""The candidates of a random search: what DSPy's search would consider, each by its number.

-3 is the student without demos, -2 has labelled ones, -1 is bootstrapped from the training examples in their order, and the
others from shuffled ones.
"""

import random
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import dspy

from ..compiler.bootstrap import observe
from ..compiler.demos import spread
from ..compiler.pool import Pool
from ..compiler.race import Withdrawn
from ..compiler.recording import Subject
from ..compiler.trace import Trace
from ..compiler.withheld import same
from ..errors import BootstrapError
from ..evaluation import metric_fingerprint
from ..signatures import fingerprint, predictors, program_fingerprint
from .checks import errors_allowed
from .demonstrate import Demonstrated, Sizes, demonstrate
from .folds import Folds
from .labeled_few_shot import LabeledFewShot, blank_copy
from .plans import demos_wanted

if TYPE_CHECKING:
    from .random_search import BootstrapFewShotWithRandomSearch


class CandidateMaker:
    """Makes the candidates of one compile, each once, in whatever thread asks."""

    def __init__(
        self,
        options: "BootstrapFewShotWithRandomSearch",
        student: dspy.Module,
        teacher: dspy.Module,
        train: list[dspy.Example],
        labeled_sample: bool,
        numbers: list[int],
    ) -> None:
        self.options, self.student, self.teacher = options, student, teacher
        self.train, self.labeled_sample = train, labeled_sample
        self.max_errors = errors_allowed(options.max_errors)
        self.ahead = True
        self._scored_by = metric_fingerprint(options.metric)
        self.programs: dict[int, dspy.Module] = {}
        self.runs: list[Trace] = []  # the teacher's
        self._tried: dict[int, set[int]] = {}  # examples, by `id`, that a candidate's demos come from or might have
        self._to_bootstrap = sum(number >= -1 for number in numbers)  # less those that failed
        self._lock = threading.Lock()

    def make(self, number: int, pool: Pool) -> Subject:
        """The candidate as the race runs it.

        Raises:
            Withdrawn: Its bootstrap failed, and another's has not.
            BootstrapError: All bootstraps have failed.
        """
        program = self._make(number, pool)
        with self._lock:
            self.programs[number] = program
        identity = fingerprint([program_fingerprint(program), self._scored_by])
        return observe(program, "candidate", identity=identity, traced=False)

    def _make(self, number: int, pool: Pool) -> dspy.Module:
        if number == -3:
            return blank_copy(self.student)
        if number == -2:
            o = self.options
            labels = LabeledFewShot(o.max_labeled_demos, diverse=o.diverse, fit_context=o.fit_context)
            return labels.compile(self.student, trainset=self.train, sample=self.labeled_sample)
        try:
            made = self._bootstrap(number, pool)
        except BootstrapError as error:
            with self._lock:
                self._to_bootstrap -= 1
                if not self._to_bootstrap:
                    raise
            raise Withdrawn(f"not made: {error.message.splitlines()[0]}") from error
        with self._lock:
            self.runs += [run for attempt in made.attempts for run in attempt.runs]
        return made.program

    def with_final(self, folds: Folds, number: int) -> Folds:
        """With the training examples that had no part in a candidate: neither its demos nor tried for them.

        The choice among candidates was by other examples, so the score on these is not flattered by it.
        """
        named = predictors(self.programs[number], frozen=False)
        shown = [dict(demo.items()) for predictor in named.values() for demo in predictor.demos]
        tried = self._tried.get(number, set())
        left = [e for e in self.train if id(e) not in tried and not any(same(demo, dict(e.items())) for demo in shown)]
        return replace(folds, final=left, final_name=f"{len(left)} training examples that had no part in it")

    def _bootstrap(self, number: int, pool: Pool) -> Demonstrated:
        o, train, most = self.options, list(self.train), self.options.max_bootstrapped_demos
        if number >= 0:
            random.Random(number).shuffle(train)
            most = demos_wanted(number, most)
        if o.diverse:
            train = spread(train, most)
        made = demonstrate(
            self.student,
            self.teacher,
            train,
            pool=pool,
            sizes=Sizes(most, o.max_labeled_demos, o.max_rounds, o.diverse, o.fit_context),
            metric_threshold=o.metric_threshold,
            max_errors=self.max_errors,
            teacher_settings=o.teacher_settings,
            fit_labels=o.fit_context,
            ahead=self.ahead,
        )
        self._tried[number] = {id(train[attempt.index]) for attempt in made.attempts}
        return made
