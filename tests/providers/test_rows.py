"""Each provider's rows, by the rules that it publishes: what is written, and what is refused with which reason."""

import json
from dataclasses import replace
from typing import Any

import pytest

from dspyc.errors import ConfigError, DataError
from dspyc.providers.costs import estimate_cost
from dspyc.providers.rows import FORMATTERS, formatter

CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]
}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
TOOLS: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ],
    "tools": [TOOL],
}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
LOCAL_IMAGE = {"type": "image_url", "image_url": {"url": "cat.gif"}}


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def reasons(provider: str, row: dict[str, Any]) -> str:
    refused = formatter(provider).format([row]).refused
    return "; ".join(refused[0].reasons) if refused else ""


SPLIT = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
WEIGHED = {"role": "assistant", "content": "4", "weight": 1}
ALL = [name for name in FORMATTERS if name != "azure" and FORMATTERS[name].chat]
PLAIN = ["together", "fireworks", "databricks"]
WITH_TOOLS = ["openai", "together", "fireworks", "databricks", "vertex"]
ALTERNATING = ["bedrock-nova", "bedrock", "together", "vertex"]


@pytest.mark.parametrize("provider", ["openai", "azure", *PLAIN])
def test_the_chat_protocol_is_kept_as_it_is(provider: str) -> None:
    (row,) = formatter(provider).format([{**CHAT, "predictor": "solve"}]).rows
    assert row == CHAT  # without the name that only our reports read


def test_nova_takes_conversations() -> None:
    (row,) = formatter("bedrock-nova").format([CHAT]).rows
    assert row == {
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [{"text": "2+2?"}]},
            {"role": "assistant", "content": [{"text": "4"}]},
        ],
    }
    (bare,) = formatter("bedrock-nova").format([turns(("user", "2+2?"), ("assistant", "4"))]).rows
    assert "system" not in bare


def test_other_models_on_bedrock_take_prompts_with_completions() -> None:
    (row,) = formatter("bedrock").format([CHAT]).rows
    assert row == {"prompt": "Be brief.\n\n2+2?", "completion": "4"}


@pytest.mark.parametrize("provider", ALL)
def test_prompts_with_completions_are_rows_too(provider: str) -> None:
    pair = formatter(provider).format([{"prompt": "2+2?", "completion": "4"}])
    assert pair.rows == formatter(provider).format([turns(("user", "2+2?"), ("assistant", "4"))]).rows != ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"input": {"messages": []}}, "`input` has no messages"),
        ({"input": CHAT}, "the last message of `input` is not the user's"),
        ({"preferred_output": []}, "`preferred_output` is not a list of one message"),
        ({"non_preferred_output": [{"role": "user", "content": "4"}]}, "not an assistant's message with content"),
        ({"non_preferred_output": CHAT["messages"][-1:]}, "both outputs are the same"),
    ],
)
def test_preferences_are_a_prompt_and_two_replies_that_differ(change: dict[str, Any], reason: str) -> None:
    replies = {
        "preferred_output": CHAT["messages"][-1:],
        "non_preferred_output": [{"role": "assistant", "content": "5"}],
    }
    row = {"input": {"messages": CHAT["messages"][:-1]}, **replies}
    assert formatter("openai-preferences").format([row]).rows == (row,)
    assert reason in reasons("openai-preferences", {**row, **change})


def test_preferences_cost_what_chats_of_their_length_do() -> None:
    assert estimate_cost([CHAT], "openai-preferences", "gpt-4.1") == estimate_cost([CHAT], "openai", "gpt-4.1")


def test_a_file_of_too_many_bytes_is_a_problem_of_the_rows_as_a_whole() -> None:
    small = replace(formatter("fireworks"), most_bytes=2**20)
    row = turns(("user", "x" * 2**19), ("assistant", "4"))
    assert small.format([row] * 3).problem == "The rows are 2 MB; fireworks takes files of 1 MB"
    with pytest.raises(DataError, match="takes files of 1 MB"):
        small.format([row] * 3).accepted(counted=False)
    assert small.format([CHAT] * 3).ok


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("openai/ft:gpt-4.1-mini-2025-04-14:org::abc", 5.0),
        ("bedrock/us.amazon.nova-lite-v1:0", 2.0),
        ("bedrock/converse/eu.amazon.nova-pro-v1:0", 8.0),
        ("openai/other.gpt-4.1", None),
    ],
)
def test_the_price_is_the_base_models_whatever_stands_before_its_name(model: str, known: float | None) -> None:
    found = estimate_cost([CHAT], model.partition("/")[0], model, epochs=1)
    assert found.usd == (None if known is None else pytest.approx(found.tokens * known / 1e6))


def test_an_image_in_a_row_is_counted_as_an_image() -> None:
    def tokens(*urls: str) -> int:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return estimate_cost([{"messages": [{"role": "user", "content": parts}]}], "openai").tokens

    data = f"data:image/png;base64,{'iVBORw0KGgo' * 10_000}=="
    assert 765 < tokens(data) < 765 + 50
    assert 2 * 765 < tokens(data, data) < 2 * 765 + 100
    assert tokens("https://example.com/cat.png") < 50


def test_vertex_takes_contents_of_a_user_and_a_model() -> None:
    (row,) = formatter("vertex").format([CHAT]).rows
    assert row == {
        "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
        "contents": [{"role": "user", "parts": [{"text": "2+2?"}]}, {"role": "model", "parts": [{"text": "4"}]}],
    }


def test_vertex_takes_tools_as_declarations_calls_and_responses() -> None:
    (row,) = formatter("vertex").format([TOOLS]).rows
    assert row["tools"] == [{"functionDeclarations": [TOOL["function"]]}]
    assert [content["role"] for content in row["contents"]] == ["user", "model", "user", "model"]
    assert row["contents"][1]["parts"] == [{"functionCall": {"name": "add", "args": {"a": 2, "b": 2}}}]
    assert row["contents"][2]["parts"] == [{"functionResponse": {"name": "add", "response": {"result": 4}}}]


def test_vertex_names_the_function_that_was_called_last_under_an_id() -> None:
    other = {**CALL, "function": {"name": "halve", "arguments": "{}"}}
    asked = [{"role": "user", "content": "And half of it?"}, {"role": "assistant", "tool_calls": [other]}]
    twice = [*TOOLS["messages"], *asked, {"role": "tool", "tool_call_id": "c1", "content": "2"}, TOOLS["messages"][-1]]
    (row,) = formatter("vertex").format([{**TOOLS, "messages": twice}]).rows
    parts = [part for content in row["contents"] for part in content["parts"]]
    assert [part["functionResponse"]["name"] for part in parts if "functionResponse" in part] == ["add", "halve"]


@pytest.mark.parametrize("provider", ["openai", "together", "fireworks", "databricks"])
def test_tools_are_kept_as_they_are(provider: str) -> None:
    assert formatter(provider).format([TOOLS]).rows == (TOOLS,)


@pytest.mark.parametrize("provider", ["bedrock-nova", "bedrock"])
def test_tools_are_refused_where_they_are_not_trained(provider: str) -> None:
    found = reasons(provider, TOOLS)
    assert "turn 2 calls tools" in found
    assert "turn 3 has the role 'tool'" in found
    assert "it has tools" in found


@pytest.mark.parametrize("provider", PLAIN)
def test_text_in_parts_becomes_one_string(provider: str) -> None:
    (row,) = formatter(provider).format([turns(("user", SPLIT), ("assistant", "4"))]).rows
    assert row["messages"][0]["content"] == "2+2?"


@pytest.mark.parametrize("provider", ALL)
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "it has the fields [], and no row has those"),
        ({"messages": []}, "it has no list of messages"),
        ({"messages": ["hello"]}, "turn 1 is a JSON str"),
        (turns(("user", "2+2?"), ("assistant", "")), "turn 2 is empty"),
        (turns(("user", "2+2?"), ("assistant", None)), "turn 2 has content of another kind than text: null"),
        (turns(("user", 4), ("assistant", "4")), "turn 1 has content of another kind than text: 4"),
        (turns(("user", [{"type": "input_audio"}]), ("assistant", "4")), "turn 1 has content of another kind"),
        (turns(("human", "2+2?"), ("assistant", "4")), "turn 1 has the role 'human'"),
        (turns(("user", "2+2?")), "the last turn is the user's"),
        (turns(("assistant", "4")), "it has no user turn"),
    ],
)
def test_what_every_provider_refuses(provider: str, row: dict[str, Any], reason: str) -> None:
    assert reason in reasons(provider, row)


@pytest.mark.parametrize("provider", ALTERNATING)
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (turns(("system", "S"), ("user", "a"), ("user", "b"), ("assistant", "c")), "turns 2 and 3 are both the user's"),
        (turns(("user", "a"), ("system", "S"), ("assistant", "c")), "turn 2 is the system's; only the first may be"),
        (turns(("assistant", "a"), ("user", "b"), ("assistant", "c")), "it has to be the user's"),
    ],
)
def test_turns_that_do_not_alternate_are_refused(provider: str, row: dict[str, Any], reason: str) -> None:
    assert reason in reasons(provider, row)


def test_fireworks_takes_the_systems_turn_first_alone() -> None:
    row = turns(("user", "a"), ("system", "S"), ("assistant", "c"))
    assert reasons("fireworks", row) == "turn 2 is the system's; only the first may be"
    assert reasons("openai", row) == ""


def test_a_prompt_with_a_completion_is_one_exchange() -> None:
    row = turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert reasons("bedrock", row) == "it has 2 user turns; this provider's rows hold 1"
    assert reasons("bedrock-nova", row) == ""


@pytest.mark.parametrize(
    "word", ["User:", "Bot:", "Assistant:", "System:", "Thought:", "<image>", "<video>", "<unk>", "[EOS]", "assistant:"]
)
def test_words_that_nova_reserves_are_found_in_any_turn(word: str) -> None:
    asked = turns(("user", f"What does {word} mean?"), ("assistant", "A role."))
    answered = turns(("user", "Which?"), ("assistant", f"It is {word}"))
    assert "turn 1 contains" in reasons("bedrock-nova", asked)
    assert "turn 2 contains" in reasons("bedrock-nova", answered)
    assert reasons("bedrock", asked) == ""


@pytest.mark.parametrize("provider", ALL)
def test_weights_are_for_those_who_publish_them(provider: str) -> None:
    row = {"messages": [{"role": "user", "content": "2+2?"}, WEIGHED]}
    found = reasons(provider, row)
    if provider in ("openai", "together", "fireworks"):
        assert found == ""
        assert "nothing is learned" in reasons(provider, {"messages": [row["messages"][0], {**WEIGHED, "weight": 0}]})
        assert "the weight 0.5" in reasons(provider, {"messages": [row["messages"][0], {**WEIGHED, "weight": 0.5}]})
        assert "the weight True" in reasons(provider, {"messages": [row["messages"][0], {**WEIGHED, "weight": True}]})
    else:
        assert "has a `weight`" in found


@pytest.mark.parametrize("provider", ALL)
def test_images_are_for_those_who_train_on_them(provider: str) -> None:
    row = turns(("user", [{"type": "text", "text": "What is it?"}, IMAGE]), ("assistant", "A cat."))
    assert ("holds an image" in reasons(provider, row)) is (provider != "openai")


def test_openai_takes_ten_images_by_address_or_as_data() -> None:
    assert "11 images" in reasons("openai", turns(("user", [IMAGE] * 11), ("assistant", "Cats.")))
    assert "an image is 'cat.gif'" in reasons("openai", turns(("user", [LOCAL_IMAGE]), ("assistant", "A cat.")))
    assert "images belong into a user turn" in reasons("openai", turns(("user", "Draw."), ("assistant", [IMAGE])))


@pytest.mark.parametrize("provider", WITH_TOOLS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tool_calls": [{**CALL, "id": None}]}, "without an id"),
        (
            {"tool_calls": [{**CALL, "function": {"name": "add", "arguments": {"a": 2}}}]},
            "as the text of a JSON object",
        ),
        ({"tool_calls": [{**CALL, "function": {"name": "a b", "arguments": "{}"}}]}, "a name and arguments"),
        ({"tool_calls": [{**CALL, "id": "c2"}]}, "turn 3 answers the tool call 'c1', which was not made before it"),
    ],
)
def test_tool_calls_are_checked(provider: str, change: dict[str, Any], reason: str) -> None:
    messages = list(TOOLS["messages"])
    messages[1] = {**messages[1], **change}
    assert reason in reasons(provider, {**TOOLS, "messages": messages})


@pytest.mark.parametrize("provider", WITH_TOOLS)
def test_a_call_without_its_result_is_refused(provider: str) -> None:
    row = {**TOOLS, "messages": [*TOOLS["messages"][:2], TOOLS["messages"][3]]}
    assert "turn 3 comes before the results of the tool calls c1" in reasons(provider, row)


def test_every_row_and_every_reason_is_reported_with_its_number() -> None:
    bad = turns(("assistant", "System: hi"), ("assistant", ""))
    report = formatter("bedrock-nova").format([CHAT, bad, CHAT, {}])
    assert [refusal.number for refusal in report.refused] == [2, 4]
    assert len(report.refused[0].reasons) == 5
    assert len(report.rows) == 2
    with pytest.raises(DataError, match=r"refuse 2 of 4 rows\. Row 2: .*Row 4: it has the fields") as caught:
        report.accepted()
    assert "fine-tune-prepare-data-understanding" in caught.value.hint


@pytest.mark.parametrize(("provider", "fewest"), [("openai", 10), ("bedrock-nova", 8), ("fireworks", 3)])
def test_too_few_rows_are_said(provider: str, fewest: int) -> None:
    with pytest.raises(DataError, match=f"trains on {fewest} rows or more, and {fewest - 1} can be used"):
        formatter(provider).format([CHAT] * (fewest - 1)).accepted()
    assert len(formatter(provider).format([CHAT] * fewest).accepted()) == fewest


def test_too_many_rows_are_said() -> None:
    small = replace(formatter("openai"), fewest=1, most=2)
    assert len(small.format([CHAT] * 2).accepted()) == 2
    with pytest.raises(DataError, match="openai trains on 2 rows or fewer, and there are 3"):
        small.format([CHAT] * 3).accepted()
    assert len(small.format([CHAT] * 3).accepted(counted=False)) == 3  # rows to validate with


def test_the_limits_are_those_that_the_providers_publish() -> None:
    limits = {"bedrock-nova": 20_000, "fireworks": 3_000_000, "vertex": 1_000_000}  # as in docs/providers.md
    assert {name: formatter(name).most for name in FORMATTERS if formatter(name).most is not None} == limits


def test_the_callers_rows_stay_as_they_are() -> None:
    row = {**TOOLS, "messages": [*TOOLS["messages"]], "predictor": "p"}
    before = json.dumps(row)
    for name in FORMATTERS:
        formatter(name).format([row])
    assert json.dumps(row) == before


def test_an_unknown_provider_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"no rows for 'bedrok'\. Use one of openai, openai-preferences, bedrock-nova"
    ):
        formatter("bedrok")
