"""Rows as tokens: what does not fit is reported, what cannot be learned is refused before a model is loaded."""

import logging
from pathlib import Path
from typing import Any

import pytest

from dspyc.errors import ConfigError, DataError
from dspyc.models import ChatTokenizer
from dspyc.providers.local import split
from dspyc.training import TrainingConfig, encode_rows, train

from . import small


def test_long_rows_are_left_out_whole_and_reported() -> None:
    rows = small.rows(4)
    rows[2]["messages"][0]["content"] = "x" * 100
    encoded, report = encode_rows(rows, ChatTokenizer(small.tokenizer()), 80)
    assert len(encoded) == report.rows == 3
    ((index, predictor, length),) = [(r.index, r.predictor, r.length) for r in report.too_long]
    assert (index, predictor) == (2, "tree")
    assert length > 100
    assert report.max_length <= 80
    assert report.supervised_tokens == sum(len(w) + 1 for w in ("ash", "birch", "elm"))


@pytest.fixture
def weightless(tmp_path: Path) -> Path:
    """A model folder whose weights are no weights: whatever loads it fails otherwise than these tests expect."""
    model = small.folder(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"none")
    return model


def test_no_rows_and_no_fitting_rows_are_errors_before_the_model_is_loaded(weightless: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are no training rows"):
        train(str(weightless), [], output_dir=tmp_path / "a")
    with pytest.raises(DataError, match=r"None of the 3 training rows fits into 12 tokens \(row 0: \d+"):
        train(str(weightless), small.rows(3), config=TrainingConfig(max_length=12), output_dir=tmp_path / "b")


def asked(question: Any, **answer: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "b"} | answer,
        ]
    }


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(50_000):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "no list of messages"),
        ({"messages": []}, "no list of messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "must be the assistant's"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
                    {"role": "assistant", "content": "a"},
                ],
                "predictor": "see",
            },
            r"Training row 1 \(predictor `see`\).*image",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "nothing in front of the assistant's reply"),
        (asked(5), "cannot be encoded.*content is text"),
        (asked("\ud83d"), r"half of a surrogate pair"),
        (asked("a") | {"tools": "oops"}, "cannot be encoded.*tools"),
        (asked("a", tool_calls="bad"), "cannot be encoded.*tool_calls"),
        (asked("a", content=""), "no supervised token"),
        (asked("a", content=" \n"), "no supervised token"),
        (asked("a", content=None), "no supervised token"),
        (asked("a", content=[{"type": "text", "text": " "}]), "no supervised token"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}, "no supervised token"),
        pytest.param(asked(deep()), "recursion", id="deep"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(weightless: Path, tmp_path: Path, row: dict, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(DataError, match=said) as raised:
        train(str(weightless), [*small.rows(1), row], output_dir=tmp_path / "out")
    assert "row 1" in str(raised.value)


def test_a_reply_of_tool_calls_alone_is_learned() -> None:
    calls = [{"type": "function", "function": {"name": "find", "arguments": "{}"}}]
    encoded, _ = encode_rows([asked("a", content=None, tool_calls=calls)], ChatTokenizer(small.tokenizer()))
    assert len(encoded) == 1


def test_rows_have_the_numbers_that_they_had_before_some_were_held_out(weightless: Path, tmp_path: Path) -> None:
    given = small.rows(50)
    for number in (40, 41):
        given[number] = {"messages": []}
        rows, held_out = split(given, 0.1)
        with pytest.raises(DataError, match=rf"row {number} \(predictor|row {number}, counted from 0, is no chat row"):
            train(str(weightless), rows, output_dir=tmp_path / str(number), validation=held_out)
        given[number] = small.rows(50)[number]
    rows, held_out = split(given, 0.1)
    chat = ChatTokenizer(small.tokenizer())
    numbers = [[row.index for row in encode_rows(part, chat)[0]] for part in (rows, held_out)]
    assert sorted(numbers[0] + numbers[1]) == list(range(50))
    assert [given[i] for i in numbers[0]] == rows


def test_transformers_says_nothing_of_rows_that_are_too_long(caplog: pytest.LogCaptureFixture) -> None:
    talk = logging.getLogger("transformers")
    talk.addHandler(caplog.handler)
    try:
        encode_rows(small.rows(2, "x" * 300), ChatTokenizer(small.tokenizer()))
    finally:
        talk.removeHandler(caplog.handler)
    assert "indexing errors" not in caplog.text


def test_settings_that_the_model_or_the_rows_do_not_allow(weightless: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`max_length` is 999, and .* takes 256 tokens"):
        train(str(weightless), small.rows(3), config=TrainingConfig(max_length=999), output_dir=tmp_path / "a")
    with pytest.raises(ConfigError, match="early_stopping_patience is 2, and there are no validation rows"):
        train(
            str(weightless), small.rows(3), config=TrainingConfig(early_stopping_patience=2), output_dir=tmp_path / "b"
        )
