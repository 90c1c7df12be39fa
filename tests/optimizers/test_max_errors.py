"""How many failed runs stop a compile that does not say: as many as DSPy's own setting."""

import contextlib
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.errors import BootstrapError


@pytest.mark.parametrize(
    ("kind", "settings"), [(dspyc.BootstrapFinetune, {}), (dspyc.BootstrapFewShot, {"max_bootstrapped_demos": 1})]
)
@pytest.mark.parametrize("setting", [None, 3])
def test_dspys_setting_is_the_default(tmp_path: Path, kind: Any, settings: Any, setting: int | None) -> None:
    def answer(inputs: dict[str, str]) -> dict[str, str]:
        raise RuntimeError("the model is down")

    teacher, student = (dspy.Predict("question -> answer") for _ in range(2))
    teacher.lm = dspyc.ScriptedLM(answer)
    student.lm = dspyc.LocalLM("dspyc/tiny")
    examples = [dspy.Example(question=str(n), answer="yes").with_inputs("question") for n in range(12)]
    optimizer = kind(dspy.evaluate.answer_exact_match, run_dir=tmp_path, num_threads=1, **settings)
    allowed = setting or 10
    with contextlib.ExitStack() as stack:
        if setting:
            stack.enter_context(dspy.context(max_errors=setting))
        with pytest.raises(BootstrapError, match=f"`max_errors` is {allowed}"):
            optimizer.compile(student, teacher=teacher, trainset=examples)
    assert teacher.lm.engine.calls == allowed
