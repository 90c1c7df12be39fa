"""Settings that several optimizers take: each refuses what it cannot use when it is made, in the same words."""

from collections.abc import Callable
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.errors import ConfigError
from tests.optimizers.simulated import questions, right, simulated_lm

SEARCHES = [dspyc.BootstrapFewShot, dspyc.BootstrapFewShotWithRandomSearch, dspyc.BootstrapFinetune]
BAD = [
    ({"metric": "exact"}, "`metric` is a str; a function of"),
    ({"budget": 5}, r"`budget` is 5; a dspyc\.Budget is allowed"),
    ({"budget": 0}, r"`budget` is 0; a dspyc\.Budget is allowed"),
    ({"max_errors": 0}, "`max_errors` is 0; a whole number from 1"),
    ({"max_errors": True}, "`max_errors` is True; a whole number from 1"),
    ({"max_errors": "ten"}, "`max_errors` is 'ten'; a whole number from 1"),
    ({"executor": "spark"}, "`executor` is 'spark'; 'threads' and 'ray' are allowed"),
]


@pytest.mark.parametrize(("wrong", "said"), BAD, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("kind", SEARCHES, ids=lambda kind: kind.__name__)
def test_a_setting_that_cannot_be_used_is_named(kind: Callable[..., Any], wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(**{"metric": right, **wrong})


@pytest.mark.parametrize(("wrong", "said"), [bad for bad in BAD if not {"metric", "budget"} & set(bad[0])])
def test_a_sequence_refuses_them_before_any_call(wrong: dict[str, Any], said: str) -> None:
    student = dspy.Predict("question -> answer")
    student.set_lm(simulated_lm())
    with pytest.raises(ConfigError, match=said):
        dspyc.BetterTogether(right).compile(student, trainset=questions(0, 10), **wrong)
    assert student.lm.engine.asked == []
