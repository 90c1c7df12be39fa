"""Two processes of a test's own script, started as users of accelerate start theirs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def in_two(script: str, base: Path, out: Path, *options: str) -> Path:
    """Run `script` with `base` and `out` as its arguments; `out`, which it has filled. `options` are accelerate's."""
    file = out / "script.py"
    file.write_text(script)
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(file), str(base), str(out)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return out
