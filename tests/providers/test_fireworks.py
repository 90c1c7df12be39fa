"""Fireworks over a real socket: datasets, supervised fine-tuning jobs and deployments at a server with its published routes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.clients.utils_finetune import TrainDataFormat

from dspyc.errors import ConfigError, DataError, TrainingError
from dspyc.providers.fireworks import FireworksProvider
from dspyc.providers.job import RemoteJob
from dspyc.providers.polling import Polling

from .http_server import HttpServer, refused

ROWS = [{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}] * 3
JOBS = "/v1/accounts/me/supervisedFineTuningJobs"


class Fireworks(HttpServer):
    routes = (
        ("GET", "/v1/accounts", "accounts"),
        ("POST", "/v1/accounts/me/datasets", "make_dataset"),
        ("POST", "/v1/accounts/me/datasets/<id>:upload", "upload"),
        ("GET", "/v1/accounts/me/datasets/<id>", "dataset"),
        ("POST", JOBS, "create"),
        ("GET", f"{JOBS}/<id>", "job"),
        ("POST", f"{JOBS}/<id>:cancel", "cancel"),
        ("POST", "/v1/accounts/me/deployments", "deploy"),
        ("GET", "/v1/accounts/me/deployments/<id>", "deployment"),
        ("DELETE", "/v1/accounts/me/deployments/<id>", "end"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.deployments: dict[str, dict[str, Any]] = {}
        self.polls, self.failure = 2, ""

    def accounts(self, request: Any) -> dict[str, Any]:
        return {"accounts": [{"name": "accounts/me"}]}

    def make_dataset(self, request: Any) -> Any:
        asked = request.get_json()
        if asked["datasetId"] in self.datasets:
            return refused(409, "it exists")
        self.datasets[asked["datasetId"]] = {**asked["dataset"], "state": "UPLOADING"}
        return {}

    def upload(self, request: Any, id: str) -> dict[str, Any]:
        rows = request.files["file"].read().decode().splitlines()
        assert len(rows) == int(self.datasets[id]["exampleCount"])
        self.datasets[id].update(state="READY", rows=rows)
        return {}

    def dataset(self, request: Any, id: str) -> dict[str, Any]:
        return {"state": self.datasets[id]["state"]}

    def create(self, request: Any) -> Any:
        id = request.args["supervisedFineTuningJobId"]
        if id in self.jobs:
            return refused(409, "it exists")
        name = f"accounts/me/supervisedFineTuningJobs/{id}"
        self.jobs[id] = {**request.get_json(), "name": name, "state": "JOB_STATE_CREATING", "looks": 0}
        return self.jobs[id]

    def job(self, request: Any, id: str) -> Any:
        if id not in self.jobs:
            return refused(404, "there is none")
        job = self.jobs[id]
        job["looks"] += 1
        if job["looks"] > self.polls and job["state"] != "JOB_STATE_CANCELLED":
            job["state"] = "JOB_STATE_FAILED" if self.failure else "JOB_STATE_COMPLETED"
            job["status"] = {"code": "OK", "message": self.failure}
        return job

    def cancel(self, request: Any, id: str) -> dict[str, Any]:
        self.jobs[id]["state"] = "JOB_STATE_CANCELLED"
        return {}

    def deploy(self, request: Any) -> dict[str, Any]:
        self.deployments[request.args["deploymentId"]] = {**request.get_json(), "looks": 0}
        return {}

    def deployment(self, request: Any, id: str) -> dict[str, Any]:
        self.deployments[id]["looks"] += 1
        return {"state": "READY" if self.deployments[id]["looks"] > 1 else "CREATING"}

    def end(self, request: Any, id: str) -> Any:
        return {} if self.deployments.pop(id, None) else refused(404, "there is none")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fireworks]:
    with Fireworks() as made:
        assert isinstance(made, Fireworks)
        monkeypatch.setenv("FIREWORKS_API_URL", made.url)
        monkeypatch.setenv("FIREWORKS_API_KEY", made.key)
        monkeypatch.delenv("FIREWORKS_ACCOUNT_ID", raising=False)
        monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
        yield made


def finetune(rows: list[dict[str, Any]] = ROWS, **kwargs: Any) -> RemoteJob:
    provider = FireworksProvider(polling=Polling(first=0.01, most=0.02, patience=10))
    with dspy.context(experimental=True):
        lm = dspy.LM("fireworks_ai/accounts/fireworks/models/qwen3-8b", provider=provider)
        job = lm.finetune(rows, TrainDataFormat.CHAT, {"start_endpoint": False, **kwargs})
    assert isinstance(job, RemoteJob)
    return job


def test_rows_become_a_model_behind_a_deployment(server: Fireworks, caplog: pytest.LogCaptureFixture) -> None:
    job = finetune(epochs=2, learning_rate=1e-4, start_endpoint=True)
    token = job.record.token
    model = f"accounts/me/models/{token}"
    assert job.result(30).model == f"fireworks_ai/{model}#accounts/me/deployments/{token}"
    (made,) = server.jobs.values()
    assert (made["baseModel"], made["outputModel"]) == ("accounts/fireworks/models/qwen3-8b", model)
    assert (made["epochs"], made["learningRate"]) == (2, 1e-4)
    assert [json.loads(row) for row in server.datasets[token]["rows"]] == ROWS
    assert server.deployments[token]["baseModel"] == model
    assert "paid by the GPU hour until `job.stop_endpoint()`" in caplog.text
    job.stop_endpoint()
    job.stop_endpoint()
    assert server.deployments == {}


def test_what_a_deployment_costs_has_to_be_accepted_or_declined(server: Fireworks) -> None:
    with pytest.raises(ConfigError, match="cost by the GPU hour"):
        finetune(start_endpoint=None)
    assert server.calls == []
    assert finetune().result(30).model.startswith("fireworks_ai/accounts/me/models/")
    assert server.deployments == {}


@pytest.mark.parametrize("lost", range(5))
def test_any_answer_may_be_lost_and_there_is_one_job(server: Fireworks, lost: int) -> None:
    server.faults = [0] * lost + [-500]
    job = finetune()
    assert job.wait(30) == "succeeded"
    assert (len(server.jobs), len(server.datasets)) == (1, 1)


def test_a_job_that_fails_says_why_and_one_is_cancelled(server: Fireworks) -> None:
    server.failure = "row 7 is too long"
    with pytest.raises(TrainingError, match="row 7 is too long"):
        finetune().result(30)
    server.polls = 10_000
    job = finetune(ROWS * 2)
    assert job.cancel()
    assert job.wait(30) == "cancelled"


def test_too_few_rows_are_refused(server: Fireworks) -> None:
    with pytest.raises(DataError, match="trains on 3 rows or more"):
        finetune(ROWS[:2])
    assert server.calls == []
