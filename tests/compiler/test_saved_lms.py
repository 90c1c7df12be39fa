"""Language models in artifacts: of any class and engine, at any address."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.errors import ArtifactError
from tests.compiler.own_lms import Asking, Refusing, Shouting, whispering
from tests.compiler.test_no_secrets import CANARY, saved, written

ANSWER = """
import json, sys
import dspyc
program = dspyc.load(sys.argv[1])
print(json.dumps([program(q="?").a, program.predictors()[0].lm.model]))
"""


def answers(folder: Path) -> Any:
    done = subprocess.run([sys.executable, "-c", ANSWER, str(folder)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("lm", "answer"),
    [(Shouting("own/shout", words=2), "HERE HERE"), (whispering(), "here")],
    ids=["a class", "an engine"],
)
@pytest.mark.parametrize("kind", [Asking, lambda lm: dspy.Predict("q -> a")], ids=["a module", "Predict"])
def test_one_of_a_users_own_answers_in_another_process(lm: Any, answer: str, kind: Any, tmp_path: Path) -> None:
    program = kind(lm)
    program.set_lm(lm)
    dspyc.save(program, tmp_path / "saved")
    assert answers(tmp_path / "saved") == [answer, lm.model]


@pytest.mark.parametrize("lm", [Shouting("own/shout"), whispering()], ids=["a class", "an engine"])
def test_with_a_program_it_is_the_one_that_the_program_asks(lm: Any, tmp_path: Path) -> None:
    dspyc.save(Asking(lm), tmp_path / "saved")
    assert dspyc.load(tmp_path / "saved", program=Asking(lm)).ask.lm is lm
    assert dspyc.load(tmp_path / "saved", program=lambda: Asking(lm)).ask.lm is lm
    with dspy.context(lm=lm):
        assert dspyc.load(tmp_path / "saved", program=Asking).ask.lm is lm
    for other in (None, Shouting("own/other"), dspy.LM(lm.model)):
        with pytest.raises(
            ArtifactError, match=rf"'{lm.model}' .* is made by .* Pass a program whose predictors ask it"
        ):
            dspyc.load(tmp_path / "saved", program=Asking(other))


def test_one_that_cannot_be_made_again_is_named(tmp_path: Path) -> None:
    class Inner(Shouting):
        pass

    for place, lm, words in (
        ("refusing", Refusing("own/refusing"), "RuntimeError: its licence has ended"),
        ("inner", Inner("own/inner"), "ImportError"),
    ):
        dspyc.save(Asking(lm), tmp_path / place)
        with pytest.raises(ArtifactError, match=rf"'{lm.model}' .* cannot be made again: {words}"):
            dspyc.load(tmp_path / place)
        assert dspyc.load(tmp_path / place, program=Asking(lm)).ask.lm is lm


@pytest.mark.parametrize(
    ("lm", "words"),
    [
        (dspyc.ScriptedLM(lambda inputs: {"a": ""}, model="own/lambda"), "'own/lambda' cannot be saved: .*<lambda>"),
        (Shouting("own/shout", voice=object()), "'own/shout' cannot be saved: its `voice` is no JSON"),
        (dspy.LM("openai/some-model", response_format=dspy.Image), "cannot be saved: its `response_format` is no JSON"),
    ],
)
def test_what_could_not_come_back_is_refused(lm: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=words):
        dspyc.save(Asking(lm), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["api_base", "base_url"])
def test_a_public_address_is_kept(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {name: f"https://user:{CANARY}@example.org/v1?version=2&token={CANARY}", "api_version": "2024-10-21"}
    saved(dspy.LM("openai/some-model", api_key=CANARY, **settings), tmp_path / "saved")
    assert CANARY not in written(tmp_path / "saved")
    with caplog.at_level(logging.INFO, "dspyc"):
        kwargs = dspyc.load(tmp_path / "saved").lm.kwargs
    assert kwargs[name] == "https://example.org/v1?version=2"
    assert kwargs["api_version"] == "2024-10-21"
    assert "api_key" not in kwargs
    assert "openai/some-model" in caplog.text
    assert "is asked at https://example.org/v1?version=2" in caplog.text


def test_of_a_class_of_ones_own_the_address_is_kept_and_the_key_is_not(tmp_path: Path) -> None:
    lm = Shouting("own/shout", api_base="http://localhost:8000/v1", api_key=CANARY)
    saved(lm, tmp_path / "saved")
    assert CANARY not in written(tmp_path / "saved")
    assert dspyc.load(tmp_path / "saved").lm.kwargs["api_base"] == "http://localhost:8000/v1"
