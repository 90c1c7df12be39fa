"""Every notebook in tutorials/ runs from a clean state, and what it says about its results is true."""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "tutorials"
# What a notebook claims: expressions that its kernel must find true once all its cells have run.
CLAIMS = {
    "01_first_compile.ipynb": [
        "report.after - report.before >= 0.4",
        "report.interval[0] > 0",
        "report.teacher < 1",
        "report.rows['self'] < len(train)",
        "str(again(said='Could I have two coffee?').drink) == 'coffee'",
        "type(program.lm.engine) is type(again.lm.engine) and program.lm.model != again.lm.model",
    ],
    "03_providers.ipynb": [
        "compiled.report.after - compiled.report.before >= 0.4",
        "compiled.report.interval[0] > 0",
        "started == [facts['remote_id']]",
        "{one.lm.model for one in (compiled, again, elsewhere, loaded)} == {facts['model']} != {program.lm.model}",
        "len(refused) == 2 and all('The limit is 0 USD' in reason for reason in refused.values())",
        "'about 0.0' in refused['bedrock/amazon.nova-lite-v1']",
        "not any(b'not-needed-here' in file.read_bytes() for file in (folder / 'artifact').rglob('*') if file.is_file())",
        "server.wait(60) is not None",
    ],
}


@pytest.fixture
def kernel(tmp_path: Path) -> KernelSpecManager:
    """A kernel of this very interpreter, whatever kernels the machine has."""
    folder = tmp_path / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    return KernelSpecManager(kernel_dirs=[str(folder.parent)], ensure_native_kernel=False)


def test_every_tutorial_has_claims() -> None:
    assert {path.name for path in TUTORIALS.glob("*.ipynb")} == set(CLAIMS)


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_a_tutorial_runs_and_its_claims_hold(name: str, kernel: KernelSpecManager, tmp_path: Path) -> None:
    notebook = nbformat.read(TUTORIALS / name, as_version=4)
    claims = "\n".join(f"assert {claim}, {claim!r}" for claim in CLAIMS[name])
    notebook.cells.append(nbformat.v4.new_code_cell(claims))
    folder = tmp_path / "tutorials"  # where it finds what it does in a clone, and leaves nothing behind
    folder.mkdir()
    (tmp_path / "examples").symlink_to(TUTORIALS.parent / "examples")
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.kernel_manager_class = "jupyter_client.manager.KernelManager"
    manager = client.create_kernel_manager()
    manager.kernel_spec_manager = kernel
    environment = {
        **os.environ,
        "DSPYC_HOME": str(tmp_path / "dspyc"),
        "DSPY_CACHEDIR": str(tmp_path / "dspy"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    client.execute(env=environment)
