"""The commands in this process, as a user gives them, and what they end with."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from dspyc.cli import app

QUICK = '{"method": "full", "max_steps": 2, "batch_size": 4}'


def dspyc(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def compile_shop(*more: str) -> Result:
    options = ["--trainset", "train.jsonl", "--metric", "shop.py:metric", "--out", "built", "--train-kwargs", QUICK]
    return dspyc("compile", "shop.py:with_student", *options, *more)


def last_object(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.strip().split("\n")[-1])
    assert isinstance(found, dict)
    return found
