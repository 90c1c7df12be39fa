"""ScriptedLM: a language model whose answers are a function."""

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from dspyc.errors import ConfigError
from dspyc.models import ScriptedLM


def shout(inputs: dict[str, str]) -> dict[str, Any]:
    return {"answer": inputs["question"].upper()}


def test_inputs_and_outputs_are_the_programs_fields() -> None:
    seen: list[dict[str, str]] = []

    def answer(inputs: dict[str, str]) -> dict[str, Any]:
        seen.append(inputs)
        return {"answer": "yes\nand no", "scores": [0.5, 1], "flag": True, "facts": {"a": "ü"}}

    program = dspy.Predict(
        "question, hints: list[str] -> answer, scores: list[float], flag: bool, facts: dict[str, str]"
    )
    program.demos = [dspy.Example(question="old", hints=[], answer="", scores=[], flag=False, facts={})]
    program.set_lm(ScriptedLM(answer))
    found = program(question="first\n\nsecond [[ line ]]", hints=["a", "b"])
    assert seen == [{"question": "first\n\nsecond [[ line ]]", "hints": '["a", "b"]'}]
    assert (found.answer, found.scores, found.flag, found.facts) == ("yes\nand no", [0.5, 1.0], True, {"a": "ü"})


def test_a_string_is_sent_as_it_is_and_other_messages_come_whole() -> None:
    lm = ScriptedLM(lambda inputs: f"<{inputs['text']}>")
    assert lm("Hello") == ["<Hello>"]


def test_calls_are_counted_across_threads_and_copies() -> None:
    program = dspy.Predict("question -> answer")
    lm = ScriptedLM(shout)
    program.set_lm(lm)
    twin = program.deepcopy()
    assert copy.deepcopy(lm).engine is lm.engine
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: (twin if i % 2 else program)(question=str(i)), range(40)))
    assert lm.engine.calls == 40


def test_async_calls_count_too() -> None:
    lm = ScriptedLM(shout)
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    assert asyncio.run(program.acall(question="hi")).answer == "HI"
    assert lm.engine.calls == 1


def test_what_the_function_raises_surfaces() -> None:
    def fail(inputs: dict[str, str]) -> str:
        raise KeyError("no such ticket")

    lm = ScriptedLM(fail)
    with pytest.raises(dspy.LMError, match="no such ticket"):
        lm("Hello")
    assert lm.engine.calls == 1


def test_usage_counts_words() -> None:
    lm = ScriptedLM(lambda inputs: "three short words")
    lm("two words")
    assert (lm.history[-1]["usage"]["prompt_tokens"], lm.history[-1]["usage"]["completion_tokens"]) == (2, 3)


def test_two_experts_of_one_name_do_not_share_answers() -> None:
    first, second = ScriptedLM(lambda _: "1"), ScriptedLM(lambda _: "2")
    assert (first("q"), second("q")) == (["1"], ["2"])
    kept = ScriptedLM(lambda _: "3", model="scripted/kept", cache=True)
    kept("q")
    kept("q")
    assert kept.engine.calls == 1


def test_an_importable_function_is_saved_and_loaded() -> None:
    state = ScriptedLM(shout, temperature=0.5).dump_state()
    again = dspy.BaseLM.load_state(state, allow_custom_lm_class=True)
    assert again("[[ ## question ## ]]\nhi") == ["[[ ## answer ## ]]\nHI\n\n[[ ## completed ## ]]\n"]
    with pytest.raises(ConfigError, match="cannot be saved"):
        ScriptedLM(lambda _: "1").dump_state()


def test_an_answer_must_be_a_function() -> None:
    with pytest.raises(ConfigError, match="not str"):
        ScriptedLM("yes")
