"""A function's text is that of the function which is loaded, whatever its file says by now."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dspyc.evaluation import metric_fingerprint

METRIC = """
def metric(example, prediction, trace=None):
    try:
        return example.a == prediction.a in {"one", "two"}  # exact
    except ValueError:
        return 0
"""
SHOW = "import m; from dspyc.evaluation import metric_fingerprint as f; print(f(m.metric))"


def test_a_file_that_was_edited_is_not_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file, name = tmp_path / "edited.py", "edited"
    file.write_text(METRIC)
    old = importlib.import_module(name)
    later = METRIC.replace("==", "!=")
    file.write_text(later)  # before it was first seen
    prints = [metric_fingerprint(old.metric)]
    new = importlib.reload(old)
    prints.append(metric_fingerprint(new.metric))
    file.write_text(METRIC.replace("exact", "the same code"))
    assert metric_fingerprint(new.metric) == prints[1]  # what was seen is what is loaded
    prints.append(metric_fingerprint(importlib.reload(new).metric))
    assert len(set(prints)) == 3
    del sys.modules[name]


def test_lines_above_a_function_are_not_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file, name = tmp_path / "moved.py", "moved"
    prints: list[Any] = []
    for above in ("", "# a line\n", "def metric(): ...\n"):
        file.write_text(above + METRIC)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        file.write_text("\n\n" + METRIC)  # moved since
        prints.append(metric_fingerprint(module.metric))
    assert len(set(prints)) == 1
    del sys.modules[name]


def test_the_text_counts_and_not_how_it_was_compiled(tmp_path: Path) -> None:
    file, found = tmp_path / "m.py", []
    for text in (METRIC, METRIC, METRIC.replace("example,", "example: str,")):
        file.write_text(text)
        for seed in ("1", "2"):  # compiled, and read from the cache
            env = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
            done = subprocess.run([sys.executable, "-c", SHOW], cwd=tmp_path, env=env, capture_output=True, check=True)
            found.append(done.stdout)
    assert len(set(found[:4])) == 1
    assert found[4] == found[5] != found[0]
