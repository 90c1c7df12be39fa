"""Notebooks are executed by a kernel of this very interpreter, whatever kernels the machine has."""

import json
import os
import sys
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient


def execute(notebook: nbformat.NotebookNode, home: Path, folder: Path) -> None:
    """Run all cells, in `folder`; what they leave in caches is below `home`. The outputs are in the notebook then."""
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.kernel_manager_class = "jupyter_client.manager.KernelManager"
    client.create_kernel_manager().kernel_spec_manager = _kernel(home / "kernels")
    environment = {
        **os.environ,
        "DSPYC_HOME": str(home / "dspyc"),
        "DSPY_CACHEDIR": str(home / "dspy"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    client.execute(env=environment)


def _kernel(folder: Path) -> KernelSpecManager:
    (folder / "python3").mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3",
        "language": "python",
    }
    (folder / "python3" / "kernel.json").write_text(json.dumps(spec))
    return KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)
