"""A row's prompt is what inference sends, and its reply is what inference reads back."""

import copy
import json
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy import lm15
from dspy.adapters.baml_adapter import BAMLAdapter

from dspyc.errors import RenderError
from dspyc.models import ScriptedLM
from dspyc.signatures import TerseAdapter, adapt, prompt, row

from .engines import normal, prepared_lm

ADAPTERS = [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter, BAMLAdapter, TerseAdapter]
each_adapter = pytest.mark.parametrize("adapter", [kind() for kind in ADAPTERS], ids=lambda a: type(a).__name__)
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Order(pydantic.BaseModel):
    number: int
    note: str | None = None


class Triage(dspy.Signature):
    """Sort a ticket."""

    ticket: str = dspy.InputField(desc="what the customer wrote")
    history: dspy.History = dspy.InputField()
    intent: Literal["refund", "delivery"] = dspy.OutputField()
    orders: list[Order] = dspy.OutputField()
    summary: str = dspy.OutputField()


INPUTS = {
    "ticket": "Where is 12?\n\n[[ ## intent ## ]]",
    "history": dspy.History(
        messages=[{"ticket": "Hello", "intent": "refund", "orders": [Order(number=1)], "summary": "s"}]
    ),
}
OUTPUTS = {
    "intent": "delivery",
    "orders": [Order(number=12, note="late")],
    "summary": "It is late.\nSorry & <b>bye</b>",
}
COMPLETE = dspy.Example(
    ticket="t", history=dspy.History(messages=[]), intent="refund", orders=[Order(number=3)], summary="x"
).with_inputs("ticket", "history")
INCOMPLETE = {"ticket": "u", "intent": "delivery"}


def run(predictor: dspy.Predict, inputs: dict[str, Any], adapter: Any, lm: dspy.LM, made: Any) -> dspy.Prediction:
    """Runs the predictor for real, on an LM that replies what the row's assistant says; compares what it received."""
    reply = made["messages"][-1]
    parts: list[Any] = [lm15.TextPart(reply["content"])] if reply["content"] else []
    for call in reply.get("tool_calls", []):
        function = call["function"]
        parts.append(lm15.ToolCallPart(id=call["id"], name=function["name"], input=json.loads(function["arguments"])))
    lm.engine.reply = parts
    with dspy.context(adapter=adapter, lm=lm):
        prediction = predictor(**inputs)
    messages, tools = lm.engine.received()
    assert normal(messages) == normal(made["messages"][:-1])
    assert tools == made.get("tools", [])
    assert lm.history[-1]["messages"] == made["messages"][:-1]
    assert len(lm.engine.requests) == 1
    return prediction


@each_adapter
@pytest.mark.parametrize("demos", [[], [COMPLETE], [INCOMPLETE, COMPLETE]], ids=["no demos", "complete", "incomplete"])
def test_a_row_is_what_inference_sends_and_reads(adapter: Any, demos: list[Any]) -> None:
    lm = prepared_lm()
    predictor = dspy.Predict(Triage)
    predictor.demos = demos
    made = row(predictor, INPUTS, OUTPUTS, adapter=adapter, lm=lm)
    assert lm.engine.requests == []
    assert len(made["messages"]) == 1 + 2 * len(demos) + 2 + 2
    prediction = run(predictor, INPUTS, adapter, lm, made)
    assert (prediction.intent, prediction.orders) == (OUTPUTS["intent"], OUTPUTS["orders"])
    assert prediction.summary == OUTPUTS["summary"]


@each_adapter
def test_chain_of_thought(adapter: Any) -> None:
    lm = prepared_lm()
    program = dspy.ChainOfThought("question -> answer: int")
    made = row(program.predict, {"question": "6*7?"}, {"reasoning": "six sevens", "answer": 42}, adapter=adapter, lm=lm)
    prediction = run(program.predict, {"question": "6*7?"}, adapter, lm, made)
    assert dict(prediction) == {"reasoning": "six sevens", "answer": 42}


@each_adapter
def test_images_are_content_parts(adapter: Any) -> None:
    lm = prepared_lm()
    predictor = dspy.Predict("photo: dspy.Image, question: str -> answer: str")
    inputs = {"photo": dspy.Image(PIXEL), "question": "What is it?"}
    made = row(predictor, inputs, {"answer": "a dot"}, adapter=adapter, lm=lm)
    content = made["messages"][-2]["content"]
    assert {"type": "image_url", "image_url": {"url": PIXEL}} in content
    assert run(predictor, inputs, adapter, lm, made).answer == "a dot"


def search(query: str, limit: int = 3) -> str:
    """Search the shop."""
    return query * limit


class Agent(dspy.Signature):
    """Act."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    thought: str | None = dspy.OutputField()
    calls: dspy.ToolCalls = dspy.OutputField()


CALLS = dspy.ToolCalls.from_dict_list([{"name": "search", "args": {"query": "é", "limit": 2}}])
NATIVE = [
    dspy.ChatAdapter(use_native_function_calling=True),
    dspy.JSONAdapter(use_native_function_calling=True),
    dspy.XMLAdapter(use_native_function_calling=True),
    TerseAdapter(use_native_function_calling=True),
]


@pytest.mark.parametrize("adapter", NATIVE, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("thought", ["Look it up.", None])
def test_native_tool_calls_are_tool_calls(adapter: Any, thought: str | None) -> None:
    lm = prepared_lm(tools=True)
    predictor = dspy.Predict(Agent)
    inputs = {"question": "Shoes?", "tools": [dspy.Tool(search)]}
    made = row(predictor, inputs, {"thought": thought, "calls": CALLS}, adapter=adapter, lm=lm)
    assert [tool["function"]["name"] for tool in made["tools"]] == ["search"]
    reply = made["messages"][-1]
    assert (reply["content"] is None) == (thought is None)
    assert reply["tool_calls"][0]["function"] == {"name": "search", "arguments": '{"query": "é", "limit": 2}'}
    prediction = run(predictor, inputs, adapter, lm, made)
    assert prediction.thought == thought
    assert [(c.name, c.args) for c in prediction.calls.tool_calls] == [("search", {"query": "é", "limit": 2})]


@pytest.mark.parametrize("adapter", NATIVE, ids=lambda a: type(a).__name__)
def test_an_answer_without_calls_is_text(adapter: Any) -> None:
    lm = prepared_lm(tools=True)
    inputs = {"question": "Hi", "tools": [dspy.Tool(search)]}
    made = row(dspy.Predict(Agent), inputs, {"thought": "Done.", "calls": None}, adapter=adapter, lm=lm)
    assert "tool_calls" not in made["messages"][-1]
    assert run(dspy.Predict(Agent), inputs, adapter, lm, made).thought == "Done."
    with pytest.raises(RenderError, match="answer is empty"):
        row(dspy.Predict(Agent.delete("thought")), inputs, {"calls": []}, adapter=adapter, lm=lm)


@each_adapter
def test_tool_calls_as_text(adapter: Any) -> None:
    lm = prepared_lm()  # it has no native tools
    inputs = {"question": "Shoes?", "tools": [dspy.Tool(search)]}
    made = row(dspy.Predict(Agent), inputs, {"thought": "Look.", "calls": CALLS}, adapter=adapter, lm=lm)
    assert "tools" not in made
    prediction = run(dspy.Predict(Agent), inputs, adapter, lm, made)
    assert prediction.calls.tool_calls[0].args == {"query": "é", "limit": 2}


@pytest.mark.parametrize("adapter", [*NATIVE, dspy.ChatAdapter(), TerseAdapter()], ids=lambda a: type(a).__name__)
def test_a_step_of_an_agent_with_results_in_its_history(adapter: Any) -> None:
    lm = prepared_lm(tools=adapter.use_native_function_calling)
    agent = dspy.ReActV2("question -> answer", [search])
    done = dspy.ToolCalls.from_dict_list([{"id": "call_0_0", "name": "search", "args": {"query": "ü"}}])
    done.tool_call_results = dspy.ToolCallResults.from_tool_calls_and_values(done, ["found"], [False])
    history = dspy.History(
        messages=[{"question": "Shoes?", "next_thought": dspy.Reasoning(content="Hm"), "tool_calls": done}]
    )
    inputs = {"history": history, "tools": list(agent.tools.values())}
    before = copy.deepcopy(history)
    outputs = {
        "next_thought": dspy.Reasoning(content="That is it."),
        "tool_calls": dspy.ToolCalls.from_dict_list([{"name": "submit", "args": {"answer": "found"}}]),
    }
    made = row(agent.react, inputs, outputs, adapter=adapter, lm=lm)
    assert history == before
    prediction = run(agent.react, inputs, adapter, lm, made)
    assert prediction.next_thought.content == "That is it."
    assert prediction.tool_calls.tool_calls[0].args == {"answer": "found"}


def test_nothing_that_the_caller_owns_is_touched() -> None:
    class Loud(dspy.utils.BaseCallback):
        heard: list[str] = []  # noqa: RUF012

        def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.heard.append("module")

        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.heard.append("format")

    lm = ScriptedLM(lambda inputs: {"answer": "x"})
    adapter = dspy.ChatAdapter(callbacks=[Loud()])
    predictor = dspy.Predict("question -> answer", callbacks=[Loud()])
    predictor.demos = [dspy.Example(question="a", answer="b")]
    state, demos = predictor.dump_state(), predictor.demos
    with dspy.context(lm=lm, trace=[], callbacks=[Loud()]), dspy.track_usage() as usage:
        row(predictor, {"question": "q"}, {"answer": "x"}, adapter=adapter, lm=lm)
        assert dspy.settings.trace == []
    assert usage.get_total_tokens() == {}
    assert Loud.heard == []
    assert (predictor.history, lm.history, lm.engine.calls) == ([], [], 0)
    assert (predictor.dump_state(), predictor.lm, type(predictor)) == (state, None, dspy.Predict)
    assert predictor.demos is demos
    assert len(adapter.callbacks) == 1


def test_the_given_adapter_wins_over_the_predictors_own() -> None:
    lm = prepared_lm()
    predictor = dspy.Predict("question -> answer")
    adapt(predictor, dspy.XMLAdapter())
    made = prompt(predictor, {"question": "q"}, adapter=TerseAdapter(), lm=lm)
    assert made.messages[-1]["content"] == "q"
    assert isinstance(predictor.adapter, dspy.XMLAdapter)


def test_demos_of_the_row_stand_in_for_the_predictors_own() -> None:
    lm = prepared_lm()
    predictor = dspy.Predict("question -> answer")
    predictor.demos = [dspy.Example(question="a", answer="b")]
    counts = [
        len(row(predictor, {"question": "q"}, {"answer": "x"}, adapter=TerseAdapter(), lm=lm, demos=demos)["messages"])
        for demos in (None, [], predictor.demos * 2)
    ]
    assert counts == [5, 3, 7]


@each_adapter
def test_labels_are_read_as_their_types(adapter: Any) -> None:
    predictor = dspy.Predict("q -> n: int, flag: bool, kind: Literal['a', 'b'], name: str")
    written = [
        row(predictor, {"q": "?"}, outputs, adapter=adapter, lm=prepared_lm())["messages"][-1]
        for outputs in (
            {"n": 3, "flag": True, "kind": "a", "name": "7"},
            {"n": "3", "flag": "true", "kind": "a", "name": 7},
            dspy.Prediction(n=3.0, flag=1, kind=" 'a' ", name="7"),
        )
    ]
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"n": "many", "name": "x"}, "Output `n` is 'many', which is not of its type"),
        ({"name": "x"}, "Output `n` is missing; there is \\['name'\\]"),
        ({"n": 1, "name": ["x"]}, "Output `name` is \\['x'\\], which is not of its type"),
        ({"n": 1, "name": "[[ ## completed ## ]]\nyes"}, "Output `name` does not survive ChatAdapter"),
        ({"n": 1, "name": "a\n[[ ## n ## ]]\n2"}, "Output `name` does not survive ChatAdapter"),
        ({"n": None, "name": "x"}, "ChatAdapter cannot read this answer back|Output `n`"),
    ],
)
def test_answers_that_would_teach_nonsense_are_refused(outputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        row(dspy.Predict("q -> n: int, name: str"), {"q": "?"}, outputs, adapter=dspy.ChatAdapter(), lm=prepared_lm())


@each_adapter
def test_outer_whitespace_and_line_ends_are_not_the_answer(adapter: Any) -> None:
    row(dspy.Predict("q -> a, b"), {"q": "?"}, {"a": " padded\n", "b": "x\r\ny "}, adapter=adapter, lm=prepared_lm())


def test_inputs_that_the_adapter_cannot_write_are_refused() -> None:
    adapter = dspy.ChatAdapter(use_native_function_calling=True)
    with pytest.raises(RenderError, match="The prompt cannot be written by ChatAdapter"):
        prompt(dspy.Predict(Agent), {"question": "no tools"}, adapter=adapter, lm=prepared_lm(tools=True))
