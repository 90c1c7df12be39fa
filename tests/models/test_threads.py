"""A thread that has computed can let go of those that helped it."""

import subprocess
import sys

import pytest

from dspyc.models.threads import _library

COUNT = """
import os, time, torch
from dspyc.models.threads import let_go_of_threads

def threads():
    return len(os.listdir("/proc/self/task"))

def settled(expected):
    for _ in range(200):
        if threads() == expected:
            return True
        time.sleep(0.01)
    return False

torch.set_num_threads(3)
numbers = torch.randn(2_000_000)
before = threads()
expected = numbers.exp().sum()
assert threads() == before + 2, threads() - before
let_go_of_threads()
assert settled(before), threads() - before
assert torch.equal(numbers.exp().sum(), expected)
assert threads() == before + 2, threads() - before
"""


@pytest.mark.skipif(_library() is None, reason="torch brings no GNU OpenMP here")
def test_helpers_end_and_come_back() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
