"""Ctrl-C leaves a run that the same command resumes."""

import os
import signal
import time
from pathlib import Path

from tests.providers.compiling import Elsewhere

from .commands import SAID, dspyc, last_object, run_apart

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

    first = Elsewhere(run_apart, shop, *given).process
    while first.is_alive() and (not asked.exists() or len(asked.read_text().splitlines()) < 3):
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGINT)
    first.join(300)
    out, err = ((shop / name).read_text() for name in SAID)
    assert first.exitcode == 130, err
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
