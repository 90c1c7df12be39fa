"""The shape of the package: which room may import which, and what importing it costs."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dspyc"
ORDER = (
    "doors",
    "errors",
    "locks",
    "files",
    "watchdog",
    "child_process",
    "progress",
    "signatures",
    "models",
    "training",
    "providers",
    "evaluation",
    "compiler",
    "optimizers",
    "demo",
    "cli",
)


def imported_rooms(path: Path) -> set[str]:
    """Every room that a file imports, at its top or inside a function."""
    parents = path.relative_to(PACKAGE).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parents[: len(parents) - node.level + 1]
            parts = (*base, *(node.module or "").split("."))
            names = [parts[0]] if parts[0] else [alias.name for alias in node.names]
            found.update(names)
        elif isinstance(node, ast.ImportFrom):
            found.update(_absolute(node.module or ""))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found.update(_absolute(alias.name))
    return found - {""}


def _absolute(module: str) -> set[str]:
    parts = module.split(".")
    return {parts[1] if len(parts) > 1 else "dspyc"} if parts[0] == "dspyc" else set()


def test_every_part_of_the_package_has_its_place_in_the_order() -> None:
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} == set(ORDER)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_to_its_left(path: Path) -> None:
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if room in ("__init__", "__main__"):
        return
    allowed = set(ORDER[: ORDER.index(room) + 1])
    assert imported_rooms(path) <= allowed, f"{path} imports {imported_rooms(path) - allowed}"


@pytest.mark.parametrize("room", ["", *(r for r in ORDER if (PACKAGE / r / "__init__.py").exists())])
def test_a_room_exports_what_it_says(room: str) -> None:
    module = import_module(f"dspyc.{room}".rstrip("."))
    assert module.__doc__
    assert list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_every_error_can_be_caught_by_its_name_in_dspyc() -> None:
    dspyc, errors = import_module("dspyc"), import_module("dspyc.errors")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DspycError)]
    assert {kind.__name__ for kind in kinds} <= set(dspyc.__all__)
    assert all(getattr(dspyc, kind.__name__) is kind for kind in kinds)


HEAVY = (
    *("torch", "transformers", "litellm", "peft", "openai", "rich"),
    *("boto3", "databricks", "google", "ray", "sklearn"),
)


def test_importing_dspyc_loads_nothing_heavy() -> None:
    code = f"import sys, dspyc; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


OF_EXTRAS = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "matplotlib",
    "sklearn",
    "ray",
    "boto3",
    "google",
)
WITHOUT_EXTRAS = f"""
import sys
sys.modules.update(dict.fromkeys({OF_EXTRAS}))  # None: it is not installed
import dspy, dspyc
program = dspy.Predict("question -> answer")
program.set_lm(dspyc.ScriptedLM(lambda inputs: {{"answer": "42"}}))
train = [dspy.Example(question=str(n), answer="42").with_inputs("question") for n in range(9)]
right = lambda example, prediction, trace=None: prediction.answer == example.answer
for optimizer in (
    dspyc.BootstrapFewShot(right),
    dspyc.BootstrapFewShotWithRandomSearch(right, num_candidate_programs=1),
    dspyc.BetterTogether(right, p=dspyc.LabeledFewShot(2)),
):
    options = {{"strategy": "p"}} if isinstance(optimizer, dspyc.BetterTogether) else {{}}
    print(optimizer.compile(program, trainset=train, **options)(question="?").answer)
try:
    dspyc.LocalLM("dspyc/tiny")
except dspyc.DspycError as error:
    print(error)
"""


def test_searches_run_where_only_dspyc_itself_is_installed(tmp_path: Path) -> None:
    code = [sys.executable, "-c", WITHOUT_EXTRAS]
    done = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["42"] * 3
    assert "dspyc[local]" in done.stdout


def test_importing_dspyc_loads_itself_and_no_room() -> None:
    code = "import sys, dspy; before = set(sys.modules); import dspyc; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'dspyc'}\n"


@pytest.mark.parametrize("room", [r for r in ORDER if (PACKAGE / r / "__init__.py").exists()] + ["errors"])
def test_a_room_is_had_by_its_name_in_a_fresh_process(room: str) -> None:
    code = f"import dspyc; assert {room!r} in dir(dspyc); print(dspyc.{room}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"dspyc.{room}"
