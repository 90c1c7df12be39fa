"""Who teaches: the programs whose runs a student learns from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from ..errors import ProgramError
from ..signatures import adapt, adapter_of, check_equivalent, copy_program, predictors, program_fingerprint
from ..signatures.adapted import AdaptedMixin
from ..signatures.checks import check_replies_possible


@dataclass(frozen=True)
class Teacher:
    """A program whose every predictor has an LM, its own or DSPy's. `identity` tells its runs from others' in the ledger.

    DSPy's adapter counts in `identity` for predictors that carry none. It is not written into them: their program's `forward`
    may set another, as dspy.Refine does.
    """

    program: dspy.Module
    identity: str

    def is_program(self, program: dspy.Module) -> bool:
        """Whether its runs are those of `program`, as where a student teaches itself."""
        return self.identity == program_fingerprint(program)


def choose_teachers(student: dspy.Module, teacher: Any, teacher_lm: dspy.BaseLM | None) -> list[Teacher]:
    """The given programs; else the student's program run by `teacher_lm`; else the student itself.

    A predictor's own LM always wins; `teacher_lm`, and then DSPy's global LM, serve those that have none.

    Raises:
        ProgramError: Something other than programs arrived, or a predictor is left without an LM.
    """
    if teacher is None:
        return [_finish(_led_by(student, teacher_lm), None)]
    programs = list(teacher) if isinstance(teacher, Sequence) else [teacher]
    if not programs:
        raise ProgramError("`teacher` is an empty list.", hint="Pass a program, a list of programs, or `teacher_lm`.")
    for i, program in enumerate(programs):
        if not isinstance(program, dspy.Module):
            raise ProgramError(
                f"Teacher {i} is a {type(program).__name__}; a dspy.Module is allowed.",
                hint="To teach with a language model, pass it as `teacher_lm`.",
            )
    return [_finish(copy_program(program), teacher_lm) for program in programs]


def demo_teacher(student: dspy.Module, teacher: dspy.Module | None, teacher_settings: Mapping[str, Any]) -> dspy.Module:
    """The program whose good runs become demos, each of its predictors with a language model.

    Raises:
        ProgramError: The student is compiled, or the teacher is not its equal or has no language model.
        ConfigError: The student's language model cannot reply to one of its predictors.
    """
    with dspy.context(**teacher_settings):
        chosen = choose_teachers(student, None if teacher is None else [teacher], teacher_settings.get("lm"))
        if "adapter" in teacher_settings:
            for predictor in predictors(chosen[0].program).values():
                adapt(predictor, adapter_of(predictor))
    check_equivalent(student, chosen[0].program)
    check_replies_possible(student)
    if student._compiled:
        raise ProgramError(
            f"The student {type(student).__name__} is compiled already, and its predictors are to stay as they are.",
            hint="Pass the program that it was compiled from, or set `_compiled = False` on a copy.",
        )
    return chosen[0].program


def _led_by(student: dspy.Module, lm: dspy.BaseLM | None) -> dspy.Module:
    program = copy_program(student)
    if lm is None:
        return program
    for predictor in predictors(program).values():
        predictor.lm = lm
        if isinstance(predictor, AdaptedMixin):  # the adapter of the student's weights, which a teacher does not know
            adapt(predictor, dspy.settings.adapter or dspy.ChatAdapter())
    return program


def _finish(program: dspy.Module, lm: dspy.BaseLM | None) -> Teacher:
    for name, predictor in predictors(program).items():
        predictor.lm = predictor.lm or lm
        if (predictor.lm or dspy.settings.lm) is None:  # the global one is not written in: `forward` may choose another
            raise ProgramError(
                f"The teacher's predictor `{name}` has no language model.",
                hint="Call teacher.set_lm(lm), or pass `teacher_lm` to the optimizer.",
            )
    return Teacher(program, program_fingerprint(program))
