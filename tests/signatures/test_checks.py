"""What cannot become rows is refused before a teacher is paid, by name."""

from collections.abc import Callable
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.adapters.types.citation import Citations
from dspy.adapters.types.decision import Choice, Noul, Score
from dspy.adapters.types.document import Document

import dspyc
from dspyc.errors import ConfigError, RenderError
from dspyc.signatures import TerseAdapter, check_renderable
from dspyc.signatures.checks import check_replies_possible

from .engines import prepared_lm
from .programs import Sort
from .test_render import Agent, Triage


class Mute(dspy.Adapter):
    """Says how to read, not how to write."""

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return {}


class Album(pydantic.BaseModel):
    cover: dspy.Image


def predict(kind: Any, *, given: Any = str) -> dspy.Predict:
    return dspy.Predict(dspy.Signature({"q": (given, dspy.InputField()), "a": (kind, dspy.OutputField())}, "Do."))


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter, BAMLAdapter, TerseAdapter])
@pytest.mark.parametrize("signature", [Triage, Sort, Agent, "q -> a: dict[str, float], b: Literal['x', 1], c: int"])
def test_ordinary_predictors_pass_without_a_call(adapter: Any, signature: Any) -> None:
    lm = prepared_lm(tools=True)
    check_renderable("p", dspy.Predict(signature), adapter=adapter(), lm=lm, modalities={"text"})
    assert lm.engine.requests == []


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            lambda: dspy.TwoStepAdapter(prepared_lm()),
            "`p` cannot be trained for TwoStepAdapter: a second language model",
        ),
        (Mute, "`p` cannot be trained for Mute: it does not say how a reply is written"),
        (dspy.Adapter, "`p` cannot be trained for Adapter"),
    ],
)
def test_adapters_that_cannot_write_a_reply(adapter: Callable[[], Any], message: str) -> None:
    with pytest.raises(RenderError, match=message) as refused:
        check_renderable("p", dspy.Predict("q -> a"), adapter=adapter(), lm=prepared_lm())
    assert "dspyc.TerseAdapter" in refused.value.hint


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Choice["x", "y"], "decides `a`"),
        (Noul, "decides `a`"),
        (Score["low", "high"], "decides `a`"),
        (dspy.Image, "a dspy.Image in `a`"),
        (list[dspy.Audio], "a dspy.Audio in `a`"),
        (Album, "a dspy.Image in `a`"),
        (dspy.History, "a dspy.History in `a`"),
        (list[dspy.Tool], "a dspy.Tool in `a`"),
        (Citations, "a dspy.Citations in `a`"),
        (Document, "a dspy.Document in `a`"),
        (Callable[[int], int], "cannot be written as text"),
    ],
)
def test_outputs_that_no_text_can_hold(kind: Any, name: str) -> None:
    with pytest.raises(RenderError, match=f"Predictor `p` .*{name}") as refused:
        check_renderable("p", predict(kind), adapter=dspy.ChatAdapter(), lm=prepared_lm())
    assert refused.value.hint


@pytest.mark.parametrize("kind", [dspy.Image, list[dspy.Image], dspy.Image | None, Album, dict[str, list[Album]]])
def test_images_for_a_student_that_reads_text(kind: Any) -> None:
    predictor = predict(str, given=kind)
    options: dict[str, Any] = {"adapter": dspy.ChatAdapter(), "lm": prepared_lm()}
    with pytest.raises(RenderError, match=r"`p` takes a dspy\.Image in `q`; its student reads text only"):
        check_renderable("p", predictor, **options, modalities={"text"})
    check_renderable("p", predictor, **options, modalities={"text", "image"})
    check_renderable("p", predictor, **options)


def test_reasoning_that_the_model_keeps_to_itself() -> None:
    predictor, adapter = predict(dspy.Reasoning), dspy.ChatAdapter()
    with pytest.raises(RenderError, match=r"leaves `a` to the native channel of test/prepared.*reasoning_effort=None"):
        check_renderable("p", predictor, adapter=adapter, lm=prepared_lm(reasoning=True))
    check_renderable("p", predictor, adapter=adapter, lm=prepared_lm(reasoning=True, reasoning_effort=None))
    check_renderable("p", predictor, adapter=adapter, lm=prepared_lm())
    predictor.config = {"reasoning_effort": None}
    check_renderable("p", predictor, adapter=adapter, lm=prepared_lm(reasoning=True))


def test_tool_calls_without_tools() -> None:
    adapter = dspy.ChatAdapter(use_native_function_calling=True)
    with pytest.raises(
        RenderError, match=r"tool calls in `a`, but no input field declares the tools.*list\[dspy.Tool\]"
    ):
        check_renderable("p", predict(dspy.ToolCalls), adapter=adapter, lm=prepared_lm(tools=True))


def test_a_language_model_that_takes_no_messages() -> None:
    with pytest.raises(RenderError, match="`p` runs on a str"):
        check_renderable("p", dspy.Predict("q -> a"), adapter=dspy.ChatAdapter(), lm="openai/gpt-5")


def test_demos_that_cannot_be_written() -> None:
    class Unspeakable(TerseAdapter):
        def format_assistant_message_content(
            self, signature: Any, outputs: Any, missing_field_message: Any = None
        ) -> str:
            raise KeyError("a")

    predictor = dspy.Predict("q -> a: Literal['x']")
    predictor.demos = [{"q": "1", "a": "x"}]
    with pytest.raises(RenderError, match="`p` has a prompt that Unspeakable cannot write: KeyError"):
        check_renderable("p", predictor, adapter=Unspeakable(), lm=prepared_lm())


def test_a_literal_is_not_a_decision() -> None:
    check_renderable("p", predict(Literal["x", "y"]), adapter=dspy.ChatAdapter(), lm=prepared_lm())


@pytest.mark.parametrize(("wrong", "said"), [(TerseAdapter, "the class TerseAdapter"), ("terse", "a str")])
def test_an_adapter_is_an_object(wrong: Any, said: str) -> None:
    with pytest.raises(RenderError, match=f"The adapter of predictor `p` is {said}; an object is allowed"):
        check_renderable("p", dspy.Predict("q -> a"), adapter=wrong, lm=prepared_lm())


UNWRITABLE = Literal["one\ntwo", "three"]  # of two lines, which ChatAdapter does not read back


def test_what_a_constrained_model_cannot_reply_is_refused() -> None:
    lm, predictor = dspyc.LocalLM("dspyc/tiny"), predict(UNWRITABLE)
    with pytest.raises(ConfigError, match=r"Predictor `p`: Output `a` .* cannot be constrained"):
        check_renderable("p", predictor, adapter=dspy.ChatAdapter(), lm=lm)
    check_renderable("p", predictor, adapter=dspy.JSONAdapter(), lm=lm)
    check_renderable("p", predictor, adapter=dspy.XMLAdapter(), lm=lm)  # whose replies are free
    check_renderable("p", predictor, adapter=dspy.ChatAdapter(), lm=dspyc.LocalLM("dspyc/tiny", constrained=False))


def _scored(lm: Any) -> dspy.Predict:
    class Scored(dspy.Signature):  # type: ignore[misc]
        """Rate it."""

        q: str = dspy.InputField()
        mark: Score["bad", "good"] = dspy.OutputField()  # type: ignore[valid-type]  # noqa: F821
        held: Noul = dspy.OutputField()

    made = dspy.Predict(Scored)
    made.lm = lm
    return made


def test_a_decision_with_an_option_that_the_adapter_cannot_read_is_refused_before_a_call_is() -> None:
    decided = predict(Choice["one\ntwo", "three"])
    decided.signature = decided.signature.with_updated_fields("a", desc="which of them")  # as DSPy wants a decision
    decided.lm = dspyc.LocalLM("dspyc/tiny", cache=False)
    with dspy.context(adapter=dspy.ChatAdapter()):
        for ask in (check_replies_possible, lambda program: program(q="which?")):
            with pytest.raises(ConfigError, match=r"Output `a` .* cannot be constrained"):
                ask(decided)
    with dspy.context(adapter=dspy.JSONAdapter()):
        check_replies_possible(decided)
        assert decided(q="which?").a.value in ("one\ntwo", "three")


def test_decisions_and_calls_with_tools_are_answered_without_a_grammar_of_theirs() -> None:
    lm = dspyc.LocalLM("dspyc/tiny")
    decided = predict(Choice[("refund", "money"), ("other", "the rest")])
    called = dspy.Predict("q, tools: list[dspy.Tool] -> calls: dspy.ToolCalls, a: Literal['one\\ntwo', 'three']")
    decided.lm = called.lm = lm
    check_replies_possible(decided)
    check_replies_possible(_scored(lm))
    with dspy.context(adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        check_replies_possible(called)
    with pytest.raises(ConfigError, match="Output `a`"):
        check_replies_possible(called)
