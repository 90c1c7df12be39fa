"""The script that Databricks AI Runtime runs: dspyc's own trainer, then the model's registration in Unity Catalog."""

import json
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

# Runs after `dspyc train`, with the folder of the weights, their name in Unity Catalog, and the alias that names this job.
_REGISTER = """\
import sys

import mlflow
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, name, alias = sys.argv[1:]
mlflow.set_registry_uri("databricks-uc")
parts = {"model": AutoModelForCausalLM.from_pretrained(folder), "tokenizer": AutoTokenizer.from_pretrained(folder)}
with mlflow.start_run():
    made = mlflow.transformers.log_model(
        transformers_model=parts, name="model", task="llm/v1/chat", registered_model_name=name
    )
mlflow.MlflowClient().set_registered_model_alias(name, alias, made.registered_model_version)
"""

# What the volume has is fetched, and brought back at the end, however it comes; the training's events every minute.
_WORK = """\
kept={kept} work=$(mktemp -d)
mkdir -p "$kept" && cp -rL "$kept/." "$work/"
(while sleep 60; do cp "$work/events.jsonl" "$kept/" || true; done) >/dev/null 2>&1 &
trap 'kill $! || true; cp -rL "$work/." "$kept/"' EXIT"""


def script(
    base: str, data: str, out: str, register_to: str, alias: str, training: Mapping[str, Any], gpus: int = 1
) -> str:
    """A bash script.

    Args:
        base: The base model's Hugging Face id, or its folder in a volume.
        data: The rows' file in a volume.
        out: The folder in a volume that keeps checkpoints and weights: a run that is started again goes on with them. Training
            itself writes to a local disk, since files in volumes cannot be appended to.
        register_to: The model's name in Unity Catalog.
        alias: Set on the version that is registered, by which it is found.
        training: Settings of `dspyc.TrainingConfig`.
        gpus: Processes, one a GPU.
    """
    settings = [f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in training.items()]
    merged = [] if training.get("method") == "full" else ["--merge"]
    command = ["dspyc train", "--data", shlex.quote(data), "--model", shlex.quote(base), "--out", '"$work"']
    several = [f"--launcher accelerate --num-processes {gpus}"] if gpus > 1 else []
    weights = '"$work/merged_model"' if merged else '"$work/final_model"'
    names = " ".join([weights, shlex.quote(register_to), shlex.quote(alias)])
    lines = [
        "#!/bin/bash",
        "set -euo pipefail",
        f'pip install --quiet "dspyc[local]=={version("dspyc")}" "mlflow>=3"',
        _WORK.format(kept=shlex.quote(out)),
        " ".join([*command, *merged, *several, *settings]),
        f"python - {names} <<'REGISTER'\n{_REGISTER}REGISTER",
    ]
    return "\n".join(lines) + "\n"
