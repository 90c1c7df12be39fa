"""The commands in this process, as a user gives them, and what they end with."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from dspyc.cli import app

SAID = ("stdout.txt", "stderr.txt")  # of a command in a process of its own
QUICK = '{"method": "full", "max_steps": 2, "batch_size": 4}'


def dspyc(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def run_apart(folder: Path, *arguments: str) -> None:
    """The command as a process of its own runs it, which ends with it: forked, so it says to files what it says."""
    os.chdir(folder)
    for descriptor, name in enumerate(SAID, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = ["dspyc", *arguments]
    app()


def compile_shop(*more: str) -> Result:
    options = ["--trainset", "train.jsonl", "--metric", "shop.py:metric", "--out", "built", "--train-kwargs", QUICK]
    return dspyc("compile", "shop.py:with_student", *options, *more)


def last_object(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.strip().split("\n")[-1])
    assert isinstance(found, dict)
    return found
