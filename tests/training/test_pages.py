"""A process that only trains: without DSPy, and each step on a CPU finds its memory where the step before left it."""

import itertools
import json
import platform
import statistics
import subprocess
import sys

import pytest

# In a process of its own: what glibc gives back depends on what was freed before.
STEPS = """
import json, resource, sys
sys.modules["dspy"] = None  # it is not installed
import dspyc.cli.train, dspyc.training.merging
from dspyc.training import Callback, TrainingConfig, train

class Pages(Callback):
    counted = []
    def on_log(self, progress):
        self.counted.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

messages = [{"role": "user", "content": "a word"}, {"role": "assistant", "content": "yes"}]
config = TrainingConfig(method="full", max_steps=8, batch_size=8, logging_steps=1, save_steps=100)
train("dspyc/tiny", [{"messages": messages}] * 64, config=config, output_dir=sys.argv[1], device="cpu",
      callbacks=[Pages()], show_progress=False)
print(json.dumps(Pages.counted))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", STEPS, str(tmp_path_factory.mktemp("pages") / "run")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_training_needs_no_dspy(trained: "subprocess.CompletedProcess[str]") -> None:
    """A process that only trains starts two seconds sooner, and smaller, without it."""
    assert trained.returncode == 0, trained.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other heaps give pages back by other rules")
def test_a_step_asks_the_system_for_hardly_any_page(trained: "subprocess.CompletedProcess[str]") -> None:
    counted = json.loads(trained.stdout)
    asked = [after - before for before, after in itertools.pairwise(counted)]
    assert len(asked) == 7
    assert statistics.median(asked) < 200  # 1,500 where glibc is left alone
