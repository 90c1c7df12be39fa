"""What each option of dspyc compile, and --inputs of dspyc eval, changes in what comes out."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from dspyc.cli.compile import AdapterName
from dspyc.signatures.checks import ADAPTERS

from ..providers.openai_server import KEY, OpenAIServer
from .commands import dspyc, last_object

OPTIONS = """

class Leaky(Shop):
    # It repeats the colour that it is given as an input, as the field with the answer is where nobody says what is one.
    def forward(self, thing, colour=None):
        return dspy.Prediction(colour=colour or "blue")


def leaky():
    made = Leaky()
    made.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=16))
    return made


def half(example, prediction, trace=None):
    return 0.5 if prediction.colour == "red" else 0.25


def unsure():
    def answer(inputs):
        if inputs["thing"][-1] in "23":
            raise ValueError("cannot tell")
        return expert(inputs)

    return dspyc.ScriptedLM(answer)


def elsewhere():
    made = Shop()
    made.set_lm(dspyc.LM("openai/gpt-4.1-mini-2025-04-14", api_base=os.environ["SERVER"], cache=False))
    return made
"""


@pytest.fixture
def options(shop: Path) -> Path:
    with (shop / "shop.py").open("a") as module:
        module.write(OPTIONS)
    return shop


ONE_STEP = '{"method": "full", "max_steps": 1, "batch_size": 4}'


def compiled(program: str, *more: str) -> Result:
    given = ["--trainset", "train.jsonl", "--metric", "shop.py:metric", "--out", "built", "--train-kwargs", ONE_STEP]
    return dspyc("compile", f"shop.py:{program}", *given, "--json", *more)


def artifact(name: str) -> dict[str, Any]:
    found = json.loads((Path("built") / name).read_text())
    assert isinstance(found, dict)
    return found


def test_student_max_tokens_and_adapter_are_what_the_artifact_runs_with(options: Path) -> None:
    last_object(compiled("program", "--student", "dspyc/tiny", "--max-tokens", "40", "--adapter", "xml"))
    (lm,) = artifact("artifact.json")["lms"]
    assert (lm["made_from"], lm["settings"]["max_tokens"]) == ("dspyc/tiny", 40)
    assert artifact("program.json")["adapter"]["class"] == "dspy.adapters.xml_adapter:XMLAdapter"


@pytest.mark.parametrize("student", [[], ["--student", "shop.py:teacher"]])
def test_max_tokens_is_refused_where_the_student_has_its_own(options: Path, student: list[str]) -> None:
    refused = compiled("with_student", "--max-tokens", "40", *student)
    assert refused.exit_code == 1
    assert f"the student is made by {student[1] if student else 'the program'}, with its own limit." in refused.stderr
    assert not Path("built.run").exists()


def test_without_adapter_it_is_the_terse_one_and_every_adapter_that_programs_take_can_be_named(built: Path) -> None:
    written = json.loads((built / "program.json").read_text())["name"]["adapter"]["class"]
    assert written == "dspyc.signatures.terse:TerseAdapter"
    assert {name.value for name in AdapterName} == set(ADAPTERS)


def test_only_the_named_fields_are_inputs(options: Path) -> None:
    named = compiled("leaky", "--valset", "train.jsonl", "--inputs", " thing ")
    assert last_object(named)["before"] == 0.5
    assert """dspyc run built --input '{"thing": "…"}'""" in named.stderr

    scored = ("eval", "built", "--devset", "train.jsonl", "--metric", "shop.py:metric", "--json")
    assert last_object(dspyc(*scored))["score"] == 1.0
    assert last_object(dspyc(*scored, "--inputs", "thing,"))["score"] == 0.5


def test_a_lower_threshold_lets_lesser_runs_teach(options: Path) -> None:
    given = ("--metric", "shop.py:half", "--teacher", "shop.py:teacher", "--run-dir", "run", "--valset", "train.jsonl")
    refused = compiled("with_student", *given)
    assert refused.exit_code == 1
    assert "0.5" in refused.stderr
    taught = last_object(compiled("with_student", *given, "--metric-threshold", "0.5"))
    assert taught["rows"] == {"name": 5}  # of six things that are red; one row only measures the loss


def test_max_errors_says_how_many_bad_examples_stop_a_compile(options: Path) -> None:
    given = ("--teacher", "shop.py:unsure", "--num-threads", "1", "--run-dir", "run")
    refused = compiled("with_student", *given, "--max-errors", "1")
    assert refused.exit_code == 1
    assert "`max_errors` is 1" in refused.stderr
    assert last_object(compiled("with_student", *given, "--max-errors", "5"))["artifact"] == "built"


def test_yes_starts_training_elsewhere_that_may_cost_more_than_the_limit(
    options: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenAIServer(polls=0) as server:
        monkeypatch.setenv("SERVER", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        given = ("--max-usd", "0.001", "--run-dir", "run", "--train-kwargs", "{}", "--valset", "train.jsonl")
        refused = compiled("elsewhere", *given)
        assert refused.exit_code == 1
        assert "The limit is 0.001 USD" in refused.stderr
        assert server.jobs == {}
        done = compiled("elsewhere", *given, "--yes")
        assert last_object(done)["artifact"] == "built"
        assert len(server.jobs) == 1
        assert KEY not in done.stdout + done.stderr + refused.stderr
