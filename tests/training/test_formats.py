"""Rows as users keep them, read as chat rows; and what is said about those that cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from dspyc.errors import DataError
from dspyc.models import ChatTokenizer
from dspyc.training import encode_rows
from dspyc.training.formats import chat_row, read_rows

from . import small

TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": said(("user", "a"), ("assistant", "b"))}, said(("user", "a"), ("assistant", "b"))),
        ({"prompt": "a", "response": "b"}, said(("user", "a"), ("assistant", "b"))),
        ({"prompt": "a", "completion": "b", "id": 3}, said(("user", "a"), ("assistant", "b"))),
        (
            {"system": "s", "prompt": "a", "response": "b"},
            said(("system", "s"), ("user", "a"), ("assistant", "b")),
        ),
        ({"instruction": "a", "input": "x", "output": "b"}, said(("user", "a\n\nx"), ("assistant", "b"))),
        ({"instruction": "a", "input": "", "output": "b"}, said(("user", "a"), ("assistant", "b"))),
        ({"instruction": "a", "output": "b"}, said(("user", "a"), ("assistant", "b"))),
        ({"code": "class A:\n    pass"}, said(("user", ""), ("assistant", "class A:\n    pass"))),
        ({"text": "once"}, said(("user", ""), ("assistant", "once"))),
    ],
)
def test_every_shape_becomes_a_chat_that_training_takes(row: dict[str, Any], expected: Any) -> None:
    made = chat_row(row)
    assert made == {"messages": expected}
    (encoded,), _ = encode_rows([made], chat := ChatTokenizer(small.tokenizer()))
    assert chat.decode(encoded.ids[encoded.prompt_length :]) == expected[-1]["content"]


def test_tools_and_predictors_stay() -> None:
    row = {"messages": said(("user", "a"), ("assistant", "b")), "tools": [TOOL], "predictor": "p", "trace": "t1"}
    assert chat_row(row) == {name: row[name] for name in ("messages", "tools", "predictor")}


def test_a_file_may_mix_shapes_and_hold_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "response": "b\u2028c"}\r\n\n{"instruction": "d", "output": "e"}', "utf-8")
    assert [row["messages"][-1]["content"] for row in read_rows(path)] == ["b\u2028c", "e"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3 is not JSON"),
        pytest.param("[" * 100_000, "line 3 is not JSON", id="deep"),
        ("[]", "line 3 is a JSON list; an object is allowed"),
        ({"question": "a", "answer": "b"}, "line 3 has the fields ['answer', 'question']"),
        ({"prompt": "a"}, "line 3 has the fields ['prompt']"),
        ({"prompt": "a", "response": 4}, "line 3: `response` is a JSON int; text is allowed"),
        ({"prompt": "a", "response": " "}, "line 3: `response` is empty, so there is nothing to learn"),
        ({"instruction": "a", "input": ["x"], "output": "b"}, "line 3: `input` is a JSON list"),
        ({"messages": "hello"}, "line 3: `messages` is 'hello'; a list of turns is allowed"),
        ({"messages": []}, "line 3: `messages` is []"),
        ({"messages": [{"content": "a"}]}, "line 3: turn 1 is {'content': 'a'}, without a role"),
        ({"messages": said(("assistant", "a"), ("user", "b"))}, "line 3: the last turn is the user's"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: Any, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n\n' + (line if isinstance(line, str) else json.dumps(line)))
    with pytest.raises(DataError) as raised:
        read_rows(path)
    assert f"{path}, {message}" in raised.value.message
    assert raised.value.hint


def test_a_file_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, why in (("nothing.jsonl", "cannot be read"), ("empty.jsonl", "holds no examples")):
        with pytest.raises(DataError, match=rf"{name} {why}"):
            read_rows(tmp_path / name)
