"""Settings that several optimizers take: each refuses what it cannot use when it is made, in the same words."""

import inspect
import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import dspy
import dspy.teleprompt
import numpy as np
import pytest

import dspyc
from dspyc.errors import ConfigError
from tests.optimizers.simulated import questions, right, simulated_lm

EVERY = [
    dspyc.BetterTogether,
    dspyc.BootstrapFewShot,
    dspyc.BootstrapFewShotWithRandomSearch,
    dspyc.BootstrapFinetune,
    dspyc.KNNFewShot,
    dspyc.LabeledFewShot,
]
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


@pytest.mark.parametrize("kind", SEARCHES, ids=lambda kind: kind.__name__)
def test_a_threshold_is_a_number_of_any_type(kind: Callable[..., Any]) -> None:
    for wrong in ("0.5", float("nan")):
        with pytest.raises(ConfigError, match=f"`metric_threshold` is {wrong!r}; a finite number is allowed"):
            kind(right, metric_threshold=wrong)
    for given in (np.float32(0.5), Fraction(1, 2), 0.5):
        assert json.dumps(kind(right, metric_threshold=given).metric_threshold) == "0.5"
    assert kind(right).metric_threshold is None


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_arguments_without_names_are_dspys(kind: Any) -> None:
    theirs = getattr(dspy.teleprompt, kind.__name__)
    for called in ("__init__", "compile"):
        expected = by_place(getattr(theirs, called))
        assert by_place(getattr(kind, called))[: len(expected)] == expected
    assert by_place(kind.plan) == by_place(kind.compile)


def by_place(called: Callable[..., Any]) -> list[str]:
    return [one.name for one in inspect.signature(called).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]


TAUGHT = [
    ({"teacher_settings": "x"}, r"`teacher_settings` is 'x'; a dict of DSPy settings .*dspy\.LM"),
    (
        {"teacher_settings": {"lm": "openai/gpt-5"}},
        r"'lm'\]` is 'openai/gpt-5'; a dspy\.LM .*dspy\.LM\('openai/gpt-5'\)",
    ),
    ({"teacher_settings": {"llm": None}}, r"names 'llm'.*Did you mean `lm`"),
    ({"teacher_settings": {"LM": None}}, "names 'LM'.*Did you mean `lm`"),
    ({"teacher_settings": {"adapter": "json"}}, r"'adapter'\]` is 'json'; a dspy\.Adapter"),
    ({"teacher_settings": {1: 2}}, r"names 1; DSPy's settings are"),
]


@pytest.mark.parametrize(("wrong", "said"), TAUGHT, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("kind", SEARCHES[:2], ids=lambda kind: kind.__name__)
def test_a_setting_of_the_teacher_is_checked_before_anything_is_paid_for(
    kind: Callable[..., Any], wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(right, **wrong)


@pytest.mark.parametrize("kind", SEARCHES[:2], ids=lambda kind: kind.__name__)
def test_what_dspy_takes_as_settings_of_a_teacher_is_taken(kind: Callable[..., Any]) -> None:
    settings = {"lm": simulated_lm(), "adapter": dspy.JSONAdapter(), "rm": len, "max_errors": 3, "track_usage": True}
    assert kind(right, teacher_settings=settings, metric_threshold=1).teacher_settings == settings
    for own in ({"shelf": 2}, {"lm2": 2}):  # what a program reads of its own; a name like DSPy's has to be configured
        with dspy.context(lm2=1):
            assert kind(right, teacher_settings=own, metric_threshold=True).teacher_settings == own
    with pytest.raises(ConfigError, match="Did you mean `lm`"):
        kind(right, teacher_settings={"lm2": 2})


@pytest.mark.parametrize(("wrong", "said"), [bad for bad in BAD if not {"metric", "budget"} & set(bad[0])])
def test_a_sequence_refuses_them_before_any_call(wrong: dict[str, Any], said: str) -> None:
    student = dspy.Predict("question -> answer")
    student.set_lm(simulated_lm())
    with pytest.raises(ConfigError, match=said):
        dspyc.BetterTogether(right).compile(student, trainset=questions(0, 10), **wrong)
    assert student.lm.engine.asked == []
