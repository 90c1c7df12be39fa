"""The benchmarks: each begins with what there is, and the results that it left have what is promised of them."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
HELPERS = {"dspy_rows", "harness", "inference_sides", "machine"}  # what they share
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in HELPERS)
PROMISED = {
    "banking77": ("accuracy", "training_seconds", "train_rows", "epochs", "seed"),
    "local_inference": (
        "shapes.classify.greedy",
        "shapes.cot.greedy",
        "programs.cot.ratios",
        "idle.ratio",
        "candidates.ratio",
        "constrained.cot",
    ),
    "random_search": (
        *("wall_ratio", "call_ratio", "quality_difference", "interval", "bootstrap_bound_ratio", "overhead_ratio"),
        *("no_race_bound_ratio", "resume_seconds"),
    ),
    "sft_throughput": (
        *(f"shapes.{shape}.ratio" for shape in ("classify", "cot", "demos")),
        *("memory_ratio", "grad_rel_diff"),
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_begins(name: str) -> None:
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"--json", "--save"} <= set(done.stdout.replace("[", " ").replace("]", " ").split())


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_of_dspyc_when_it_runs_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "dspyc":
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module}.{name.name}"


@pytest.mark.parametrize("name", NAMES)
def test_results_have_what_is_promised(name: str) -> None:
    results = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    for path in (*PROMISED[name], "machine.processor", "machine.cores", "machine.dspyc", "machine.date"):
        found: Any = results
        for key in path.split("."):
            found = found[key]
        assert found not in (None, {}, []), path
