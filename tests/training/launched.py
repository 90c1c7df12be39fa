"""Two processes of a test's own script, started as users of accelerate start theirs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(*, held: bool = False) -> dict[str, str]:
    """Of a process that is started: `held` stops the main one of those that train, after eight steps, until it is ended."""
    folders = [str(ROOT), str(Path(__file__).with_name("held"))] if held else [str(ROOT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def in_two(script: str, base: Path, out: Path, *options: str) -> Path:
    """Run `script` with `base` and `out` as its arguments; `out`, which it has filled. `options` are accelerate's."""
    file = out / "script.py"
    file.write_text(script)
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(file), str(base), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return out
