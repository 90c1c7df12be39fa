"""A folder with a program, a metric and data, as a user would have them."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import Result

from .commands import compile_shop

MODULE = """
import os

import dspy
import dspyc

program = dspy.Predict("thing -> colour: Literal['red', 'blue']")
number = 7


class Shop(dspy.Module):
    def __init__(self):
        super().__init__()
        self.name = dspy.Predict("thing -> colour: Literal['red', 'blue']")

    def forward(self, thing):
        return self.name(thing=thing)


def with_student():
    made = Shop()
    made.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=16))
    return made


def metric(example, prediction, trace=None):
    return prediction.colour == example.colour


def expert(inputs):
    return {"colour": "red" if "red" in inputs["thing"] else "blue"}


def teacher():
    return dspyc.ScriptedLM(expert)


def always_blue():
    made = Shop()
    made.set_lm(dspyc.ScriptedLM(lambda inputs: {"colour": "blue"}))
    return made


def needs(argument):
    return program


class Proud(Shop):
    # Right while its weights are the base's: training can only make it worse.

    def forward(self, thing):
        own = self.name.lm.model == self.base
        return dspy.Prediction(colour=expert({"thing": thing})["colour"] if own else "wrong")


def proud():
    made = Proud()
    made.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=16))
    made.base = made.name.lm.model
    return made


class Green(Shop):
    # As no student answers: right but for one thing, whose colour is none that is allowed.
    def forward(self, thing):
        return dspy.Prediction(colour="green") if thing.endswith(" 3") else dspy.Prediction(**expert({"thing": thing}))


class Told(Shop):
    def forward(self, thing, told=None):
        return dspy.Prediction(colour=told or "green")


class Bare(Shop):
    def forward(self, thing):
        return "blue"


class Strict(Shop):
    def forward(self, thing):
        if thing.endswith(" 3"):
            raise ValueError("a thing too many")
        return dspy.Prediction(**expert({"thing": thing}))


def broken(example, prediction, trace=None):
    raise KeyError("no such field")


def paid():
    return dspy.LM("openai/gpt-4.1-mini-2025-04-14", api_base=os.environ["SERVER"], cache=False)
"""


def write_shop(folder: Path) -> None:
    (folder / "shop.py").write_text(MODULE)
    rows = [{"thing": f"a {colour} thing {i}", "colour": colour} for i, colour in enumerate(["red", "blue"] * 6)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, made the current one."""
    monkeypatch.chdir(tmp_path)
    write_shop(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """An artifact of the shop that labels taught, and what its compile said."""
    folder = tmp_path_factory.mktemp("compiled")
    write_shop(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = compile_shop()
    assert result.exit_code == 0, result.stderr
    return folder / "built", result


@pytest.fixture
def built(shop: Path, compiled_once: tuple[Path, Result]) -> Path:
    """The shop's own copy of that artifact, which it finds as `built`."""
    shutil.copytree(compiled_once[0], shop / "built")
    return shop / "built"
