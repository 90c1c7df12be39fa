"""What the commands say of themselves; none is forgotten, as they are read from the application."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dspyc.cli import app


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def test_the_commands_are_known() -> None:
    assert {("demo",), ("compile",), ("eval",), ("run",), ("train",)} < set(ALL)
    assert {("jobs", "wait"), ("data", "check"), ("runs", "export")} < set(ALL)


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "dspyc")
def test_a_command_explains_itself_and_each_of_its_options(path: tuple[str, ...]) -> None:
    shown = CliRunner(env={"COLUMNS": "400"}).invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    assert ALL[path].help
    assert ALL[path].help in shown.stdout
    for parameter in ALL[path].params:
        assert parameter.help, parameter.name
        assert parameter.help in shown.stdout
        assert all(name in shown.stdout for name in parameter.opts if name.startswith("-"))


@pytest.mark.parametrize("path", [path for path in ALL if not hasattr(ALL[path], "commands")], ids=" ".join)
def test_every_command_takes_json(path: tuple[str, ...]) -> None:
    assert "--json" in {name for parameter in ALL[path].params for name in parameter.opts}
