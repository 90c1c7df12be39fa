"""References and files, and what is said about those that a beginner gets wrong."""

import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspyc.cli.inputs import expected_inputs, input_names
from dspyc.cli.loading import (
    as_examples,
    is_reference,
    load_lm_or_program,
    load_metric,
    load_program,
    load_reference,
    load_student_lm,
    load_teacher,
    read_object,
    read_records,
)
from dspyc.cli.run import check_inputs
from dspyc.errors import ConfigError, DataError, ModelError
from dspyc.providers import LocalLM, LocalProvider
from dspyc.providers.openai import OpenAIProvider

from ..training import small


@pytest.mark.parametrize("text", ["desk.py:program", "a/b/desk.py:program", "package.desk:program", "desk:program"])
def test_what_is_a_reference(text: str) -> None:
    assert is_reference(text)


@pytest.mark.parametrize("text", ["openai/gpt-5-mini", "dspyc/tiny", "./folder", "ollama_chat/llama3:8b", "llama3:8b"])
def test_what_is_a_model_name(text: str) -> None:
    assert not is_reference(text)


def test_a_file_is_loaded_once_and_its_classes_can_be_imported_by_name(shop: Path) -> None:
    program = load_program("shop.py:with_student")
    metric = load_metric(str(shop / "shop.py") + ":metric")
    assert sys.modules[type(program).__module__].metric is metric
    assert metric(dspy.Example(colour="red"), dspy.Prediction(colour="red")) is True


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twin_of_two.py").write_text(f"where = {folder!r}\n")
    assert load_reference(f"{tmp_path}/one/twin_of_two.py:where") == "one"
    assert load_reference(f"{tmp_path}/two/twin_of_two.py:where") == "two"


def test_a_file_that_is_named_like_an_installed_module_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("mine = True\n")
    assert load_reference(f"{tmp_path}/json.py:mine") is True
    assert not hasattr(sys.modules["json"], "mine")


def test_a_module_by_its_import_name() -> None:
    assert load_reference("dspyc.demo.policy:queue_for")("refund", "low") == "returns"


def test_programs_classes_and_functions_all_give_a_program(shop: Path) -> None:
    for name in ("program", "Shop", "with_student"):
        assert isinstance(load_program(f"shop.py:{name}"), dspy.Module)
    assert isinstance(load_lm_or_program("shop.py:teacher"), dspy.LM)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("shop.py", "not a reference"),
        ("nowhere.py:program", "no file nowhere.py"),
        ("no_such_module_here:program", "no module 'no_such_module_here'"),
        ("shop.py:programm", "It has: program"),
        ("shop.py:number", "is a int"),
        ("shop.py:needs", "Calling shop.py:needs without arguments failed: TypeError: needs() missing 1 required"),
        ("shop.py:paid", "Calling shop.py:paid without arguments failed: KeyError: 'SERVER'"),
        ("broken.py:program", "SyntaxError"),
        ("failing.py:program", "ZeroDivisionError"),
    ],
)
def test_a_bad_program_reference_says_why(shop: Path, reference: str, said: str) -> None:
    (shop / "broken.py").write_text("def f(:\n")
    (shop / "failing.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError) as raised:
        load_program(reference)
    assert said in f"{raised.value.message} {raised.value.hint}"


def test_an_error_of_ours_in_a_program_is_said_as_it_is(shop: Path) -> None:
    (shop / "lost.py").write_text("import dspyc\n\n\ndef program():\n    return dspyc.LocalLM('./no-folder')\n")
    with pytest.raises(ModelError, match="does not exist"):
        load_program("lost.py:program")


def test_a_metric_must_be_callable(shop: Path) -> None:
    with pytest.raises(ConfigError, match=r"shop\.py:number is a int"):
        load_metric("shop.py:number")


@pytest.mark.parametrize("folder", ["./mine", "mine", "openai/gpt-4.1-mini-2025-04-14"])
def test_a_folder_is_a_local_model_whatever_its_name(shop: Path, folder: str) -> None:
    small.folder(shop / folder)
    student, teacher = load_student_lm(folder, max_tokens=9), load_teacher(folder)
    assert student.model == teacher.model == LocalLM(shop / folder).model
    assert isinstance(student.provider, LocalProvider)
    assert student.kwargs["max_tokens"] == 9


def test_the_bundled_student_can_learn_and_teach() -> None:
    assert load_student_lm("dspyc/tiny").model == load_teacher("dspyc/tiny").model == LocalLM("dspyc/tiny").model


def test_a_providers_model_is_trained_by_it_and_teaches_as_any_other() -> None:
    student = load_student_lm("openai/gpt-4.1-mini-2025-04-14", max_tokens=9)
    assert isinstance(student.provider, OpenAIProvider)
    assert student.kwargs["max_tokens"] == 9
    teacher = load_teacher("openai/gpt-5-mini")
    assert (type(teacher), teacher.model) == (dspy.LM, "openai/gpt-5-mini")


def test_a_setting_that_dspy_refuses_for_a_model_is_explained() -> None:
    with pytest.raises(
        ConfigError, match=r"openai/gpt-5-mini cannot be had with .*'max_tokens': 9.* max_tokens >= 16000"
    ):
        load_student_lm("openai/gpt-5-mini", max_tokens=9)


def test_a_reference_leads_to_what_it_names(shop: Path) -> None:
    assert load_student_lm("shop.py:teacher").model == load_teacher("shop.py:teacher").model == "scripted/expert"
    assert isinstance(load_teacher("shop.py:Shop"), dspy.Module)


@pytest.mark.parametrize("model", ["./no-folder", "/no-folder", "~/no-folder"])
def test_a_folder_that_is_not_there_is_said_before_anything_is_asked(shop: Path, model: str) -> None:
    for load in (load_student_lm, load_teacher):
        with pytest.raises(ModelError, match="does not exist"):
            load(model)


def test_a_reference_to_what_cannot_learn_or_teach_is_refused(shop: Path) -> None:
    with pytest.raises(ConfigError, match=r"--student shop\.py:program is a Predict; a language model is allowed"):
        load_student_lm("shop.py:program")
    for load in (load_student_lm, load_teacher):
        with pytest.raises(
            ConfigError, match=r"shop\.py:number is a int; a language model or a dspy\.Module is allowed"
        ):
            load("shop.py:number")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}\n\n{"a": 2\n', "line 3 is not JSON"),
        ('{"a": 1}\n[1, 2]\n', "line 2 is a JSON list"),
        ("\n\n", "holds no examples"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        read_records(tmp_path / "rows.jsonl")


def test_line_separators_inside_a_value_do_not_end_the_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": "one\u2028two"}\r\n{"a": "three"}', encoding="utf-8")
    assert read_records(tmp_path / "rows.jsonl") == [{"a": "one\u2028two"}, {"a": "three"}]


def test_a_missing_file_and_a_binary_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    for name in ("rows.jsonl", "nothing.jsonl"):
        with pytest.raises(DataError, match=name):
            read_records(tmp_path / name)


def test_an_example_without_an_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"thing": "x"}\n{"object": "y"}\n')
    with pytest.raises(DataError, match=r"example 2 has no 'thing'; it has \['object'\]"):
        as_examples(read_records(path), path, ["thing"])


@pytest.mark.parametrize(("text", "said"), [("{a: 1}", "not JSON"), ("[1]", "is a JSON list")])
def test_an_option_that_is_no_object(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_object(text, "--input")


def test_inputs_are_what_forward_names(shop: Path) -> None:
    assert input_names(load_program("shop.py:Shop"), {"thing", "colour", "id"}) == ["thing"]


def test_inputs_of_a_predict_are_its_input_fields_that_the_rows_have() -> None:
    program = dspy.Predict("question, context -> answer")
    assert expected_inputs(program) == ["question", "context"]
    assert input_names(program, {"question", "answer"}) == ["question"]
    with pytest.raises(ConfigError, match="None of the fields"):
        input_names(program, {"answer"})


class Wrapped(dspy.Module):
    """It takes what it is given, and names nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.react = dspy.ReAct("question -> answer", tools=[])

    def forward(self, **given: Any) -> Any:
        return self.react(question=given["topic"])


@pytest.mark.parametrize(
    ("program", "inputs"),
    [
        (dspy.Predict("question, context -> answer"), ["question", "context"]),
        (dspy.ChainOfThought("question, context -> answer"), ["question", "context"]),
        (dspy.ReAct("question, context -> answer", tools=[]), ["question", "context"]),
        (dspy.ProgramOfThought("question -> answer"), ["question"]),
        (dspy.RLM("question, context -> answer"), ["question", "context"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_dspys_modules_take_the_inputs_of_their_signatures(program: dspy.Module, inputs: list[str]) -> None:
    assert expected_inputs(program) == inputs
    check_inputs(program, dict.fromkeys(inputs, "?"))
    with pytest.raises(DataError, match=r"--input lacks \['question'\] and has \['qestion'\]"):
        check_inputs(program, {**dict.fromkeys(inputs[1:], "?"), "qestion": "?"})


def test_of_a_program_that_takes_anything_nothing_is_demanded() -> None:
    check_inputs(Wrapped(), {"topic": "parcels"})
    check_inputs(Wrapped(), {})
