"""Steps by optimizers that keep no record of their own, such as DSPy's: what each made, for a compile that goes on.

kept = KeptStep.of(folder, optimizer_key(optimizer), before, arguments)    # None: the optimizer keeps its own record
made = kept.program() or optimizer.compile(before, **arguments)
kept.keep(made)
"""

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import Teleprompter

from ..files import read_json, write_json
from ..signatures import copy_program, fingerprint, predictors, program_fingerprint
from ..signatures.code import code_key
from ..signatures.fingerprints import identifying, stable
from ..signatures.nearest import NearestMixin

logger = logging.getLogger(__name__)

_LIMITS = ("num_threads",)  # arguments that change nothing of what is made
_RESULTS = frozenset(  # attributes that DSPy's optimizers and those here add
    [
        "candidate_programs",
        "mb_candidate_programs",
        "detailed_results",
        "results_best",
        "results_latest",
        "trial_logs",
        "score",
        "total_calls",
        "prompt_model_total_calls",
        "simba_idx",
        "flag_compilation_error_occurred",
    ]
)


@dataclass(frozen=True)
class KeptStep:
    """Where the predictors that a step makes of `before` are kept, as JSON. The file's name says what the step is."""

    path: Path
    before: dspy.Module

    @classmethod
    def of(
        cls, folder: Path, made_by: str | None, before: dspy.Module, arguments: Mapping[str, Any]
    ) -> "KeptStep | None":
        """The step from `before` by `arguments` of an optimizer's `compile`; None where the optimizer keeps its own record.

        It is another one where anything is different that can be seen: the program, the optimizer by its key, an argument, or
        DSPy's language model.
        """
        if made_by is None:
            return None
        given = [[name, _key_of(value)] for name, value in sorted(arguments.items()) if name not in _LIMITS]
        key = fingerprint([program_fingerprint(before), made_by, given, stable(dspy.settings.lm)])
        return cls(folder / f"made-{key}.json", before)

    def program(self) -> dspy.Module | None:
        """The program that the step made, if it was kept."""
        try:
            kept = read_json(self.path)
            made = self._made_of(kept["predictors"])
        except FileNotFoundError:
            return None
        except Exception as error:  # a predictor of a user's own may raise anything
            logger.warning("%s cannot be read, and its step is run again: %s", self.path, error)
            return None
        if program_fingerprint(made) != kept["program"]:
            logger.warning("%s gives another program than was kept, and its step is run again.", self.path)
            return None
        return made

    def announce(self, step: str, made: dspy.Module) -> None:
        """Say that the step is not taken again.

        Aloud where it had changed nothing: some of DSPy's optimizers return the program as it was when all that they ask fails.
        """
        if program_fingerprint(made) == program_fingerprint(self.before):
            logger.warning("%s changed nothing when it was taken. To take it again, remove %s.", step, self.path)
        else:
            logger.info("%s was taken before: what it made is in %s.", step, self.path)

    def keep(self, made: dspy.Module) -> None:
        """Keep what the step made, where its predictors alone differ from those before, in what DSPy saves of them."""
        try:
            states = {name: _state(predictor) for name, predictor in predictors(made).items()}
            identity = program_fingerprint(self._made_of(json.loads(json.dumps(states))))
            if identity != program_fingerprint(without_results(made, self.before)):
                raise ValueError("it differs in more than what DSPy saves of predictors, such as language models")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"program": identity, "predictors": states})
        except Exception as error:  # a predictor of a user's own may raise anything
            logger.warning("What this step made is not kept: %s. A compile that goes on runs it again.", error)

    def _made_of(self, states: Mapping[str, Any]) -> dspy.Module:
        """The program before, in which predictors have these states, and their own language models, adapters and choices."""
        made = copy_program(self.before)
        named = predictors(made)
        if named.keys() != states.keys():
            raise ValueError(f"it has predictors {sorted(states)}, the program before {sorted(named)}")
        for name, predictor in named.items():
            lm, nearest = predictor.lm, predictor.nearest if isinstance(predictor, NearestMixin) else None
            predictor.load_state(states[name]["state"])
            predictor.signature.__name__ = states[name]["signature"]
            predictor.lm = lm
            if nearest is not None:
                predictor.nearest = nearest
        made._compiled = True
        return made


def optimizer_key(optimizer: Teleprompter) -> str | None:
    """What an optimizer is set to, private attributes included, with its code where a user wrote it.

    None for those of dspyc, which keep their own records. To be asked before it compiles, which may change it.
    """
    if any(kind.__module__.partition(".")[0] == __name__.partition(".")[0] for kind in type(optimizer).__mro__):
        return None
    held = {
        name: value for name, value in vars(optimizer).items() if isinstance(value, dspy.BaseLM) or not callable(value)
    }
    return fingerprint([code_key(optimizer), stable(identifying(held))])


def without_results(made: dspy.Module, before: dspy.Module) -> dspy.Module:
    """A copy of `made` without what optimizers leave on programs about their own work, unless `before` had it."""
    found = copy_program(made)
    for name in _RESULTS & vars(found).keys() - vars(before).keys():
        delattr(found, name)
    return found


def _state(predictor: dspy.Predict) -> dict[str, Any]:
    twin = copy.copy(predictor)
    twin.lm = None
    state = {name: value for name, value in twin.dump_state().items() if name not in ("adapter", "nearest")}
    return {"signature": predictor.signature.__name__, "state": state}


def _key_of(value: Any) -> Any:
    """JSON that names an argument."""
    if isinstance(value, dspy.Module):
        return program_fingerprint(value)
    if isinstance(value, dspy.Example):
        return [stable(value), sorted(value._input_keys or ())]
    if isinstance(value, (list, tuple)):
        return [_key_of(item) for item in value]
    return code_key(value) if callable(value) and not isinstance(value, dspy.BaseLM) else stable(value)
