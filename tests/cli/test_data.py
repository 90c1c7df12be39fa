"""dspyc data check, run as a user runs it: a file of rows, a provider, and what it would refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dspyc.cli import app
from dspyc.cli.data import Target
from dspyc.providers.rows import FORMATTERS

from ..training import small

GOOD = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
PAIR = {"prompt": "2+2?", "completion": "4"}
RESERVED = {"messages": [{"role": "user", "content": "User: 2+2?"}, {"role": "assistant", "content": ""}]}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(rows: list[Any], provider: str, *arguments: str) -> Result:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CliRunner().invoke(app, ["data", "check", "rows.jsonl", "--for", provider, *arguments])


def test_every_provider_with_a_formatter_can_be_named() -> None:
    assert {target.value for target in Target} == {*FORMATTERS, "local"}


@pytest.mark.parametrize("provider", sorted(name for name in FORMATTERS if FORMATTERS[name].chat))
def test_good_rows_pass(provider: str) -> None:
    result = check([GOOD, PAIR] * 5, provider)
    assert result.exit_code == 0, result.output
    assert f"{provider}: 10 rows can be sent, 0 would be refused." in result.stdout


def test_each_refused_row_is_named_by_its_line_with_every_reason() -> None:
    result = check([GOOD, RESERVED, *[GOOD] * 8, {"question": "?"}], "bedrock-nova")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Line 2: turn 1 contains 'User:', reserved by the provider")
    assert lines[0].endswith("; turn 2 is empty")
    assert lines[1].startswith("Line 11: it has the fields ['question'], and no row has those.")
    assert lines[2] == "bedrock-nova: 9 rows can be sent, 2 would be refused."
    assert "fine-tune-prepare-data-understanding" in lines[4]


def test_too_few_rows_fail_too() -> None:
    result = check([GOOD] * 9, "openai")
    assert result.exit_code == 1
    assert "openai trains on 10 rows or more, and 9 can be used." in result.stdout


def test_json_has_every_refused_row_and_the_price() -> None:
    result = check(
        [GOOD] * 10 + [{}] * 60, "openai", "--json", "--model", "openai/gpt-4.1-mini-2025-04-14", "--epochs", "2"
    )
    facts = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (facts["ok"], facts["rows"], len(facts["refused"])) == (False, 10, 60)
    assert facts["refused"][-1]["line"] == 70
    assert facts["usd"] == pytest.approx(facts["tokens"] * 2 * 5 / 1e6)


def test_what_costs_more_than_allowed_needs_a_yes() -> None:
    model = ("--model", "gpt-4.1", "--max-usd", "0.01")
    dear = check([GOOD] * 100, "openai", *model)
    assert dear.exit_code == 1
    assert "The limit is 0.01 USD" in dear.stderr
    assert check([GOOD] * 100, "openai", *model, "--yes").exit_code == 0
    assert check([GOOD] * 100, "openai", "--model", "gpt-4.1", "--max-usd", "10").exit_code == 0


def test_an_unknown_price_is_said_and_needs_a_yes_beside_a_limit() -> None:
    unknown = check([GOOD] * 3, "fireworks", "--max-usd", "10")
    assert unknown.exit_code == 1
    assert "no price is known here" in unknown.stderr
    assert check([GOOD] * 3, "fireworks", "--max-usd", "10", "--yes").exit_code == 0
    assert check([GOOD] * 3, "fireworks").exit_code == 0


def test_a_file_that_is_no_jsonl_is_said_with_its_line() -> None:
    Path("rows.jsonl").write_text(json.dumps(GOOD) + "\n{\n")
    result = CliRunner().invoke(app, ["data", "check", "rows.jsonl", "--for", "openai"])
    assert result.exit_code == 1
    assert "line 2 is not JSON" in result.stderr


def test_rows_are_held_against_a_model_on_this_machine() -> None:
    small.folder(Path("base"))
    prompt = "a prompt that all of them share, long enough to be worth it: "
    good = [{"prompt": f"{prompt}{i}", "response": "yes"} for i in range(10)]
    model = ("--model", "base", "--json")
    passed = check(good, "local", *model)
    assert passed.exit_code == 0, passed.output
    facts = json.loads(passed.stdout.splitlines()[-1])
    assert (facts["ok"], facts["rows"], facts["supervised_tokens"], facts["limit"]) == (True, 10, 40, 256)
    assert facts["tokens"] == 10 * facts["mean_length"]
    assert facts["computed_tokens"] < 0.6 * facts["tokens"]

    long, mute = {"prompt": "x" * 300, "response": "y"}, {"messages": [*GOOD["messages"][:1], RESERVED["messages"][1]]}
    refused = check([*good, {"question": "?"}, long, mute], "local", "--model", "base")
    assert refused.exit_code == 1
    assert "Line 11: it has the fields ['question']" in refused.stdout
    assert "Line 13: it has no supervised token" in refused.stdout
    assert "tokens, and 256 fit: left out" in refused.stdout.splitlines()[2]
    assert "10 rows of" in refused.stdout
    assert "1 rows are too long and left out" in refused.stdout
    assert "2 would be refused." in refused.stdout
    nothing = check([long], "local", *model, "--max-length", "50")
    assert nothing.exit_code == 1
    assert json.loads(nothing.stdout.splitlines()[-1])["too_long"][0]["index"] == 1
    assert "Add --model" in check(good, "local").stderr
    assert "--max-length is for --for local" in check(good, "openai", "--max-length", "9").stderr


@pytest.mark.parametrize("priced", [("--max-usd", "0"), ("--epochs", "3"), ("--yes",)])
def test_what_is_about_prices_is_refused_for_training_here(priced: tuple[str, ...]) -> None:
    refused = check([GOOD] * 10, "local", "--model", "dspyc/tiny", *priced)
    assert refused.exit_code == 1
    assert f"{priced[0]} and --for local do not go together" in refused.stderr


def test_a_data_set_of_the_hub_is_no_file_and_the_hint_makes_one_of_it() -> None:
    result = CliRunner().invoke(app, ["data", "check", "openai/gsm8k", "--for", "local", "--model", "dspyc/tiny"])
    assert result.exit_code == 1
    assert "to_json('rows.jsonl')" in result.stderr
