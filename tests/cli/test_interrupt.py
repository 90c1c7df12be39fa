"""Ctrl-C leaves a run that the same command resumes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from .commands import dspyc, last_object

TEACHER = """
import time
from pathlib import Path


def slow(inputs):
    if not Path("quick").exists():
        time.sleep(0.2)
    with Path("asked.txt").open("a") as log:
        log.write(inputs["thing"] + "\\n")
    return expert(inputs)


def slow_teacher():
    return dspyc.ScriptedLM(slow)
"""


def test_ctrl_c_says_where_the_run_is_and_the_same_command_asks_nothing_twice(shop: Path) -> None:
    with (shop / "shop.py").open("a") as module:
        module.write(TEACHER)
    given = ["compile", "shop.py:with_student", "--trainset", "train.jsonl", "--metric", "shop.py:metric"]
    given += ["--teacher", "shop.py:slow_teacher", "--out", "built", "--num-threads", "1", "--json"]
    given += ["--train-kwargs", '{"method": "full", "max_steps": 1, "batch_size": 4}']
    asked = shop / "asked.txt"

    command = [sys.executable, "-c", "from dspyc.cli import app; app()", *given]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=shop)
    while first.poll() is None and (not asked.exists() or len(asked.read_text().splitlines()) < 3):
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=300)
    assert first.returncode == 130, err
    assert "the same command goes on from built.run" in err
    assert "Traceback" not in err
    assert out == ""
    stopped_at = len(asked.read_text().splitlines())
    assert 3 <= stopped_at < 12

    (shop / "quick").touch()
    facts = last_object(dspyc(*given))
    things = asked.read_text().splitlines()
    assert len(things) == len(set(things)) == 12
    assert facts["calls"]["teacher"] == 12
