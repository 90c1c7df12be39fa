"""Vertex AI through the real google-genai and google-auth: sign-in, Cloud Storage and tuning jobs on the loopback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from dspyc.errors import ConfigError, DataError, ProviderError
from dspyc.providers.job import RemoteJob
from dspyc.providers.polling import Polling
from dspyc.providers.vertex import VertexProvider

from .vertex_server import VertexServer

pytest.importorskip("google.genai")

ROWS = [{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}]

QUICK = Polling(first=0.01, most=0.02, patience=10)
CREATE = "POST /v1beta1/projects/p/locations/us-central1/tuningJobs"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexServer]:
    with VertexServer() as made:
        (tmp_path / "account.json").write_text(json.dumps(made.account()))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", made.url)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", made.url)
        monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
        yield made


def finetune(rows: list[dict[str, Any]] = ROWS, **kwargs: Any) -> RemoteJob:
    where = {"vertex_project": "p", "vertex_location": "us-central1"}
    provider = VertexProvider(where, polling=QUICK)
    with dspy.context(experimental=True):
        lm = dspy.LM("vertex_ai/gemini-2.5-flash", provider=provider)
        job = lm.finetune(rows, TrainDataFormat.CHAT, {"gcs_path": "gs://rows/tuning", **kwargs})
    assert isinstance(job, RemoteJob)
    return job


def test_rows_become_a_model_at_its_endpoint(server: VertexServer) -> None:
    job = finetune(epochs=2, adapter_size="ADAPTER_SIZE_FOUR", validation_data=ROWS)
    tuned = job.result(30)
    assert tuned.model == "vertex_ai/gemini/99"
    assert (tuned.kwargs["vertex_project"], tuned.kwargs["vertex_location"]) == ("p", "us-central1")
    (made,) = server.jobs.values()
    assert made["baseModel"] == "gemini-2.5-flash"
    spec = made["supervisedTuningSpec"]
    assert spec["hyperParameters"] == {"epochCount": 2, "adapterSize": "ADAPTER_SIZE_FOUR"}
    (line,) = server.objects[spec["trainingDatasetUri"]].splitlines()
    assert json.loads(line)["contents"][1] == {"role": "model", "parts": [{"text": "4"}]}
    assert spec["validationDatasetUri"] == f"gs://rows/tuning/{job.record.token}/validation.jsonl"


def test_an_answer_that_does_not_come_is_asked_for_again(server: VertexServer) -> None:
    class Impatient(VertexProvider):
        timeout = 1.0  # in which the server makes the job, at the least

    provider = Impatient({"vertex_project": "p", "vertex_location": "us-central1"}, polling=QUICK)
    creating, create = server.hold(CREATE, after=True)
    looking, look = server.hold(f"GET {CREATE.removeprefix('POST ')}/")
    job = dspyc.LM("vertex_ai/gemini-2.5-flash", provider=provider).finetune(
        ROWS, TrainDataFormat.CHAT, {"gcs_path": "gs://rows/tuning"}
    )
    assert creating.is_set()
    assert job.wait(30) == "succeeded"
    assert looking.is_set()
    assert len(server.jobs) == 1
    create.set()
    look.set()


def test_too_many_validation_rows_are_refused(server: VertexServer) -> None:
    with pytest.raises(DataError, match="There are 5,001 validation rows; Vertex AI takes 5,000"):
        finetune(validation_data=ROWS * 5001)
    assert server.seen == []


def test_what_cannot_be_reached_is_said(server: VertexServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="bucket does not exist"):
        finetune(gcs_path="gs://none/x")
    with pytest.raises(ConfigError, match="There is no `gcs_path`"):
        finetune(gcs_path=None)
    with pytest.raises(ConfigError, match="`adapter_size` is 4"):
        finetune(adapter_size=4)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(ProviderError, match="was not found") as caught:
        finetune(ROWS * 3)
    assert "gcloud auth" in caught.value.hint
