"""A step on a CPU finds its memory where the step before left it, and a process that only trains never loads DSPy."""

import itertools
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

# In a process of its own: what glibc gives back depends on what was freed before.
STEPS = """
import json, resource, sys
sys.modules["dspy"] = None  # it cannot be imported: without it such a process starts a second sooner, and is smaller
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


def test_a_process_that_only_trains_needs_no_dspy_and_a_step_hardly_any_page(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STEPS, str(tmp_path / "run")]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300)
    counted = json.loads(done.stdout)
    asked = [after - before for before, after in itertools.pairwise(counted)]
    assert len(asked) == 7
    if platform.libc_ver()[0] == "glibc":  # other heaps give pages back by other rules
        assert statistics.median(asked) < 200  # 1,500 where glibc is left alone
