"""What the benchmarks share: turns, each in a fresh process, and the options that say what is printed and written."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

Turn = Callable[[dict[str, Any]], dict[str, Any]]


class TurnError(Exception):
    """A turn's process ended with an error, or did something else than the others."""


class Turns:
    """Runs a script's turns, one fresh process each; `common` are facts that every turn is told."""

    def __init__(self, script: str, **common: Any) -> None:
        self.script, self.common = script, common

    def __call__(self, name: str, **facts: Any) -> dict[str, Any]:
        turn = json.dumps({"turn": name, **self.common, **facts})
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, self.script, "--turn", turn]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise TurnError(f"{turn} failed:\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def run_turn(text: str, turns: Mapping[str, Turn]) -> None:
    """The other end of `Turns`: what a fresh process does with the text behind `--turn`."""
    turn = json.loads(text)
    print(json.dumps(turns[turn.pop("turn")](turn)))


def options(doc: str | None, results: Path) -> argparse.ArgumentParser:
    """A parser with the first line of the script's text, --json, and --save (by itself to `results`)."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="nothing on stdout but the JSON line")
    parser.add_argument(
        "--save", type=Path, nargs="?", const=results, help=f"also write it; by itself to {results.name}"
    )
    return parser


def some_of(allowed: Collection[str]) -> dict[str, Any]:
    """Settings of an option that takes names with commas between; all of them where it is left out."""

    def read(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(allowed):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(allowed)}")
        return text.split(",")

    return {"type": read, "default": list(allowed), "help": ",".join(allowed)}


def say(line: str) -> None:
    """Progress, beside stdout, which is for the result."""
    print(line, file=sys.stderr, flush=True)


def publish(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Print a result as JSON, on one line with --json, and write it where --save says."""
    if args.save is not None:
        args.save.parent.mkdir(parents=True, exist_ok=True)
        args.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=None if args.json else 2))
