"""Every provider for tests that hold for all of them: its server, and how a program of the caller's reaches it.

@pytest.mark.parametrize("case", EVERYONE, ids=str)
def test_…(case, tmp_path, monkeypatch):
    with case.server(polls=0) as server:
        case.sign_in(server, tmp_path, monkeypatch)
        case.lm(server).finetune(ROWS, TrainDataFormat.CHAT, case.train_kwargs)
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import pytest

import dspyc
from dspyc.providers.polling import Polling

from .http_server import HttpServer

ROWS = [
    {"messages": [{"role": "user", "content": f"{i}+{i}?"}, {"role": "assistant", "content": str(2 * i)}]}
    for i in range(12)
]
QUICK = Polling(first=0.01, most=0.05, patience=10)


@dataclass(frozen=True)
class Case:
    """One provider. `environment`: variables by name, in which {url} is the server's address, {key} its key, and {folder} a
    folder of the test's; `files`: what lies in that folder, likewise. The moments are how the requests begin."""

    name: str
    module: str  # "module.Class" of its server
    needs: str  # the package without which it cannot be asked
    model: str
    environment: dict[str, str]
    upload: str
    create: str
    look: str
    cancelled: dict[str, str]  # what a job becomes that somebody else cancels
    settings: dict[str, str] = field(default_factory=dict)  # of dspyc.LM
    train_kwargs: dict[str, Any] = field(default_factory=dict)
    serve: str | None = None  # the request that starts what costs money
    unknown: str | None = None  # a base model that the provider refuses to train
    files: Callable[[Any], dict[str, str]] = lambda server: {}

    def server(self, **settings: Any) -> HttpServer:
        pytest.importorskip(self.needs)
        module, _, name = self.module.partition(".")
        made: HttpServer = getattr(importlib.import_module(f".{module}", __package__), name)(**settings)
        made.reply = lambda request: "no" if request["model"] in self.model else "yes"  # a base model knows nothing
        return made

    def sign_in(self, server: HttpServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Credentials and addresses by environment variables, and a fresh store of jobs."""
        for name, text in self.files(server).items():
            (folder / name).write_text(text)
        known = {"url": server.url.removesuffix("/v1"), "key": server.key, "folder": str(folder)}
        for name, value in {**self.environment, "DSPYC_HOME": "{folder}/home"}.items():
            monkeypatch.setenv(name, value.format(**known))
        if self.name == "bedrock":
            import boto3

            boto3.resource("s3").Bucket("rows-bucket").create()
            server.seen.clear()

    def lm_settings(self, server: HttpServer) -> dict[str, str]:
        return {k: v.format(url=server.url.removesuffix("/v1")) for k, v in self.settings.items()}

    def lm(self, server: HttpServer, model: str | None = None, polling: Polling = QUICK, **settings: Any) -> dspy.LM:
        made = dspyc.LM(model or self.model, cache=False, num_retries=0, **self.lm_settings(server), **settings)
        made.provider.polling = polling
        return made

    def __str__(self) -> str:
        return self.name


EVERYONE = (
    Case(
        "openai",
        "openai_server.OpenAIServer",
        "openai",
        "openai/gpt-4.1-mini-2025-04-14",
        {"OPENAI_API_KEY": "{key}"},
        upload="POST /v1/files",
        create="POST /v1/fine_tuning/jobs",
        look="GET /v1/fine_tuning/jobs/",
        cancelled={"status": "cancelled"},
        settings={"api_base": "{url}/v1"},
        unknown="openai/unknown",
    ),
    Case(
        "azure",
        "openai_server.OpenAIServer",
        "openai",
        "azure/gpt-4.1-mini-2025-04-14",
        {"AZURE_API_KEY": "{key}"},
        upload="POST /openai/v1/files",
        create="POST /openai/v1/fine_tuning/jobs",
        look="GET /openai/v1/fine_tuning/jobs/",
        cancelled={"status": "cancelled"},
        settings={"api_base": "{url}", "api_version": "2024-10-21"},
        train_kwargs={"deployment": "desk"},
        unknown="azure/unknown",
    ),
    Case(
        "bedrock",
        "bedrock_server.BedrockServer",
        "moto.server",
        "bedrock/amazon.nova-lite-v1:0",
        {
            "AWS_ENDPOINT_URL": "{url}",
            "AWS_BEDROCK_RUNTIME_ENDPOINT": "{url}",
            "AWS_ACCESS_KEY_ID": "{key}-id",
            "AWS_SECRET_ACCESS_KEY": "{key}-secret",
            "AWS_SESSION_TOKEN": "{key}-token",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "{folder}/config",
            "AWS_SHARED_CREDENTIALS_FILE": "{folder}/credentials",
            "AWS_EC2_METADATA_DISABLED": "true",
        },
        upload="PUT /rows-bucket/",
        create="POST /model-customization-jobs",
        look="GET /model-customization-jobs/",
        serve="POST /model-customization/custom-model-deployments",
        cancelled={"status": "Stopped"},
        train_kwargs={"s3_path": "s3://rows-bucket/tuning/", "role_arn": "arn:aws:iam::123456789012:role/tuner"},
        unknown="bedrock/amazon.nova-unknown-v1",
    ),
    Case(
        "databricks",
        "databricks_server.DatabricksServer",
        "databricks.sdk",
        "databricks/meta-llama/Llama-3.2-1B-Instruct",
        {
            "DATABRICKS_HOST": "{url}",
            "DATABRICKS_TOKEN": "{key}",
            "DATABRICKS_CONFIG_FILE": "{folder}/databrickscfg",
        },
        upload="PUT /api/2.0/fs/files",
        create="POST /api/2.2/jobs/runs/submit",
        look="GET /api/2.2/jobs/runs/get",
        serve="POST /api/2.0/serving-endpoints",
        cancelled={"life": "TERMINATED", "result": "CANCELED"},
        settings={"api_base": "{url}/serving-endpoints"},
        train_kwargs={"train_data_path": "/Volumes/main/default/tuning/rows", "register_to": "main.default.triage"},
    ),
    Case(
        "together",
        "together_server.TogetherServer",
        "httpx",
        "together_ai/Qwen/Qwen3-8B",
        {"TOGETHER_API_KEY": "{key}"},
        upload="POST /v1/files/upload",
        create="POST /v1/fine-tunes",
        look="GET /v1/fine-tunes/",
        cancelled={"status": "cancelled"},
        settings={"api_base": "{url}/v1"},
        unknown="together_ai/unknown/model",
    ),
    Case(
        "fireworks",
        "fireworks_server.FireworksServer",
        "httpx",
        "fireworks_ai/accounts/fireworks/models/qwen3-8b",
        {
            "FIREWORKS_API_URL": "{url}",
            "FIREWORKS_API_BASE": "{url}/inference/v1",
            "FIREWORKS_API_KEY": "{key}",
            "FIREWORKS_ACCOUNT_ID": "me",
        },
        upload="POST /v1/accounts/me/datasets/",
        create="POST /v1/accounts/me/supervisedFineTuningJobs",
        look="GET /v1/accounts/me/supervisedFineTuningJobs/",
        serve="POST /v1/accounts/me/deployments",
        cancelled={"state": "JOB_STATE_CANCELLED"},
        train_kwargs={"start_endpoint": True},
        unknown="fireworks_ai/accounts/fireworks/models/unknown",
    ),
    Case(
        "vertex",
        "vertex_server.VertexServer",
        "google.genai",
        "vertex_ai/gemini-2.5-flash",
        {
            "GOOGLE_APPLICATION_CREDENTIALS": "{folder}/account.json",
            "GOOGLE_VERTEX_BASE_URL": "{url}",
            "VERTEXAI_API_BASE": "{url}",
            "STORAGE_EMULATOR_HOST": "{url}",
        },
        upload="POST /upload/storage/",
        create="POST /v1beta1/projects/p/locations/us-central1/tuningJobs",
        look="GET /v1beta1/projects/p/locations/us-central1/tuningJobs/",
        cancelled={"state": "JOB_STATE_CANCELLED"},
        settings={"vertex_project": "p", "vertex_location": "us-central1"},
        train_kwargs={"gcs_path": "gs://rows/tuning"},
        unknown="vertex_ai/unknown",
        files=lambda server: {"account.json": json.dumps(server.account())},
    ),
)
every_provider = pytest.mark.parametrize("case", EVERYONE, ids=str)
