"""Fireworks over a real socket: datasets, supervised fine-tuning jobs and deployments at a server with its published routes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from dspyc.errors import ConfigError, DataError, ProviderError, TransientError
from dspyc.providers.fireworks import FireworksProvider
from dspyc.providers.job import RemoteJob
from dspyc.providers.known import attach, forget
from dspyc.providers.polling import Polling
from dspyc.providers.remote import Order
from dspyc.providers.rows import Formatter

from .fireworks_server import FireworksServer
from .http_server import LOST

ROWS = [{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}] * 3
STEPS = (
    "GET /v1/accounts",
    "POST /v1/accounts/me/datasets",
    "POST /v1/accounts/me/datasets/",
    "GET /v1/accounts/me/datasets/",
    "POST /v1/accounts/me/supervisedFineTuningJobs",
)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FireworksServer]:
    with FireworksServer() as made:
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


def test_rows_become_a_model_behind_a_deployment(server: FireworksServer, caplog: pytest.LogCaptureFixture) -> None:
    job = finetune(epochs=2, learning_rate=1e-4, start_endpoint=True)
    token = job.record.token
    model = f"accounts/me/models/{token}"
    assert job.result(30).model == f"fireworks_ai/{model}#accounts/me/deployments/{token}-e1"
    (made,) = server.jobs.values()
    assert (made["baseModel"], made["outputModel"]) == ("accounts/fireworks/models/qwen3-8b", model)
    assert (made["epochs"], made["learningRate"]) == (2, 1e-4)
    assert [json.loads(row) for row in server.datasets[token]["rows"]] == ROWS
    assert server.endpoints[f"{token}-e1"]["baseModel"] == model
    assert "paid by the GPU hour until `job.stop_endpoint()`" in caplog.text
    job.stop_endpoint()
    job.stop_endpoint()
    assert server.endpoints == {}


def test_what_a_deployment_costs_has_to_be_accepted_or_declined(server: FireworksServer) -> None:
    with pytest.raises(ConfigError, match="cost by the GPU hour"):
        finetune(start_endpoint=None)
    assert server.seen == []
    alone = finetune().result(30).model
    assert alone.startswith("fireworks_ai/accounts/me/models/")
    assert server.endpoints == {}
    (id,) = server.jobs
    for deployed in (True, False):  # the second time it is up
        assert finetune(start_endpoint=deployed).result(30).model == f"{alone}#accounts/me/deployments/{id}-e1"
    assert list(server.jobs) == [id]


def test_a_deployment_that_was_deleted_or_failed_is_followed_by_another(server: FireworksServer) -> None:
    server.polls = server.ready = 0
    job = finetune(start_endpoint=True)
    first = job.result(30).model
    (id,) = server.endpoints
    server.endpoints[id]["state"] = "DELETED"  # in the console, where Fireworks keeps its id
    assert job.start_endpoint() == first.replace("-e1", "-e2")
    id = id.replace("-e1", "-e2")
    server.endpoints[id]["state"] = "FAILED"
    with pytest.raises(ProviderError, match="is FAILED") as caught:
        job.start_endpoint()
    assert "job.stop_endpoint()" in caught.value.hint
    job.stop_endpoint()
    assert id not in server.endpoints
    assert job.start_endpoint() == first.replace("-e1", "-e3")


def test_a_deployment_whose_answer_was_lost_is_found_and_one_that_is_refused_is_none(server: FireworksServer) -> None:
    server.polls = server.ready = 0
    job = finetune()
    job.wait(30)
    server.fail("POST /v1/accounts/me/deployments", LOST)
    with pytest.raises(TransientError):
        job.provider.start_endpoint(job.record)  # as a process that ends there
    (id,) = server.endpoints
    assert attach(job.id).start_endpoint().endswith(id)
    job.stop_endpoint()
    assert server.endpoints == {}
    server.fail("POST /v1/accounts/me/deployments", 403)
    with pytest.raises(ProviderError, match="403"):
        job.start_endpoint()
    assert forget(job.id).state == "forgotten"


@pytest.mark.parametrize("step", STEPS)
def test_any_answer_may_be_lost_and_there_is_one_job(server: FireworksServer, step: str) -> None:
    server.fail(step, LOST)
    job = finetune()
    assert job.wait(30) == "succeeded"
    assert (len(server.jobs), len(server.datasets)) == (1, 1)


def test_an_endpoint_is_started_and_ended_through_faults_that_pass(server: FireworksServer) -> None:
    job = finetune()
    job.wait(30)
    for request in ("POST", "GET", "DELETE"):
        server.fail(f"{request} /v1/accounts/me/deployments", 503, times=2)
    job.result(30)
    tuned = job.start_endpoint()
    (only,) = server.endpoints
    assert tuned.endswith(only)
    job.stop_endpoint()
    assert server.endpoints == {}


def test_an_endpoint_is_started_for_a_job_whose_end_nobody_saw(server: FireworksServer) -> None:
    server.polls = None
    lm = dspyc.LM("fireworks_ai/accounts/fireworks/models/qwen3-8b")
    lm.provider.polling = Polling(first=600, most=600)  # it looks once
    job = lm.finetune(ROWS, TrainDataFormat.CHAT, {"start_endpoint": False})
    with pytest.raises(ProviderError, match="has no model yet"):
        attach(job.id).start_endpoint()
    server.polls = 0
    assert attach(job.id).start_endpoint().endswith(next(iter(server.endpoints)))


def test_the_account_is_a_part_of_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIREWORKS_API_URL", raising=False)
    places = []
    for account in ("staging", "prod"):
        monkeypatch.setenv("FIREWORKS_ACCOUNT_ID", account)
        places.append((FireworksProvider().place({}), FireworksProvider().place({"account_id": "said"})))
    assert places == [({"account": "staging"}, {"account": "said"}), ({"account": "prod"}, {"account": "said"})]


def test_a_file_that_is_too_large_is_refused(server: FireworksServer) -> None:
    class Small(FireworksProvider):
        def formatter(self, order: Order) -> Formatter:
            return replace(super().formatter(order), most_bytes=2**20)

    long = [{"messages": [{"role": "user", "content": "x" * 2**19}, ROWS[0]["messages"][1]]}] * 3
    lm = dspyc.LM("fireworks_ai/accounts/fireworks/models/qwen3-8b", provider=Small())
    with pytest.raises(DataError, match="The rows are 2 MB; fireworks takes files of 1 MB"):
        lm.finetune(long, TrainDataFormat.CHAT, {"start_endpoint": False})
    assert "POST /v1/accounts/me/datasets" not in server.seen


def test_too_few_rows_are_refused(server: FireworksServer) -> None:
    with pytest.raises(DataError, match="trains on 3 rows or more"):
        finetune(ROWS[:2])
    assert server.seen == []
