"""What a program declares: its predictors, their signatures, and a call as the messages that inference sends.

    for name, predictor in predictors(program).items():
        adapter = adapter_of(predictor)
        check_renderable(name, predictor, adapter=adapter, lm=student_lm)       # before a teacher is paid
        row(predictor, {"ticket": "…"}, {"intent": "refund"}, adapter=adapter, lm=student_lm)["messages"]

`adapt` makes a predictor carry the adapter that its weights were trained with, `check_equivalent` says whether a teacher
can teach a student, `reply_grammar` gives what a reply may look like, and `TerseAdapter` is the adapter of students whose
weights already know the task.
"""

from typing import TYPE_CHECKING

from ..doors import opened

if TYPE_CHECKING:
    from .adapted import AdaptedPredict as AdaptedPredict
    from .adapted import adapt as adapt
    from .adapted import adapter_of as adapter_of
    from .adapted import adapter_state as adapter_state
    from .adapted import load_adapter as load_adapter
    from .checks import check_renderable as check_renderable
    from .digests import fingerprint as fingerprint
    from .fingerprints import adapter_fingerprint as adapter_fingerprint
    from .fingerprints import signature_fingerprint as signature_fingerprint
    from .grammar import reply_grammar as reply_grammar
    from .remembered import remembering as remembering
    from .render import Prompt as Prompt
    from .render import Row as Row
    from .render import prompt as prompt
    from .render import row as row
    from .structure import check_equivalent as check_equivalent
    from .structure import check_student as check_student
    from .structure import copy_program as copy_program
    from .structure import predictors as predictors
    from .structure import program_fingerprint as program_fingerprint
    from .terse import TerseAdapter as TerseAdapter
    from .terse import task_name as task_name

_DOORS = {
    "AdaptedPredict": "adapted",
    "Prompt": "render",
    "Row": "render",
    "TerseAdapter": "terse",
    "adapt": "adapted",
    "adapter_fingerprint": "fingerprints",
    "adapter_of": "adapted",
    "adapter_state": "adapted",
    "check_equivalent": "structure",
    "check_renderable": "checks",
    "check_student": "structure",
    "copy_program": "structure",
    "fingerprint": "digests",
    "load_adapter": "adapted",
    "predictors": "structure",
    "program_fingerprint": "structure",
    "prompt": "render",
    "remembering": "remembered",
    "reply_grammar": "grammar",
    "row": "render",
    "signature_fingerprint": "fingerprints",
    "task_name": "terse",
}

__all__ = list(_DOORS)
__getattr__ = opened(__name__, _DOORS)
