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
from ..compiler.examples import contents_of, numbered
from ..compiler.pool import Pool
from ..compiler.race import Withdrawn
from ..compiler.recording import Subject
from ..compiler.withheld import same
from ..errors import BootstrapError
from ..evaluation import metric_fingerprint
from ..signatures import fingerprint, predictors, program_fingerprint
from ..signatures.fingerprints import adapter_key, stable
from ..signatures.likeness import Likenesses
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
        self._contents = dict(zip(map(id, train), contents_of(train), strict=True))
        self._likeness = Likenesses()
        self.max_errors = errors_allowed(options.max_errors)
        self.ahead = True
        # A metric may ask DSPy's language model, as a judge.
        judge = [stable(dspy.settings.lm), adapter_key(dspy.settings.adapter or dspy.ChatAdapter())]
        self.scored_by = fingerprint([metric_fingerprint(options.metric), judge])
        self.programs: dict[int, dspy.Module] = {}
        self.cut_short = False  # whether the budget ended a bootstrap that had found some demos
        self._tried: dict[int, set[str]] = {}  # contents of examples that a candidate's demos come from or might have
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
        identity = fingerprint([program_fingerprint(program), self.scored_by])
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
        wanted, rounds = self._wanted(number), self.options.max_rounds
        tried = sum(attempt.good or len(attempt.runs) == rounds for attempt in made.attempts)
        good = sum(attempt.good for attempt in made.attempts)
        with self._lock:
            self.cut_short |= good < wanted and tried < len(self.train)
        return made.program

    def with_final(self, folds: Folds, number: int) -> Folds:
        """With training examples that had no part in a candidate: not its demos, nor tried for them, nor choosing.

        The choice among candidates was by other examples, so the score on these is not flattered by it. Of many it takes a
        sample.
        """
        named = predictors(self.programs[number], frozen=False)
        shown = [dict(demo.items()) for predictor in named.values() for demo in predictor.demos]
        tried = self._tried.get(number, set())
        spare = [e for e in folds.spare if self._contents[id(e)] not in tried]
        left = [e for e in spare if not any(same(demo, dict(e.items())) for demo in shown)]
        if len(left) <= folds.final_size:
            return replace(folds, final=left, final_name=f"{len(left)} training examples that had no part in it")
        drawn = random.Random(f"final {self.options.seed}").sample(left, folds.final_size)
        name = f"{len(drawn)} training examples, drawn from {len(left)} that had no part in it"
        return replace(folds, final=drawn, final_name=name)

    def _bootstrap(self, number: int, pool: Pool) -> Demonstrated:
        o, train, most = self.options, list(self.train), self._wanted(number)
        if number >= 0:
            random.Random(number).shuffle(train)
        if o.diverse:
            train = spread(train, most, likeness=self._likeness)
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
            keys=numbered(self._contents[id(example)] for example in train),
            likeness=self._likeness,
        )
        self._tried[number] = {self._contents[id(train[attempt.index])] for attempt in made.attempts}
        return made

    def _wanted(self, number: int) -> int:
        return demos_wanted(number, self.options.max_bootstrapped_demos)
