"""Together over a real socket: files and fine-tunes at a server with its published routes."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.clients.utils_finetune import TrainDataFormat

from dspyc.errors import ConfigError, DataError, ProviderError
from dspyc.providers.job import RemoteJob
from dspyc.providers.polling import Polling
from dspyc.providers.rest import seconds
from dspyc.providers.together import TogetherProvider

from .together_server import TogetherServer

ROWS = [{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TogetherServer]:
    with TogetherServer() as made:
        monkeypatch.setenv("TOGETHER_BASE_URL", f"{made.url}/v1")
        monkeypatch.setenv("TOGETHER_API_KEY", made.key)
        monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
        yield made


def finetune(rows: list[dict[str, Any]] = ROWS, **kwargs: Any) -> RemoteJob:
    provider = TogetherProvider(polling=Polling(first=0.01, most=0.02, patience=10))
    with dspy.context(experimental=True):
        lm = dspy.LM("together_ai/Qwen/Qwen3-8B", provider=provider)
        job = lm.finetune(rows, TrainDataFormat.CHAT, kwargs)
    assert isinstance(job, RemoteJob)
    return job


def test_rows_become_a_model(server: TogetherServer) -> None:
    job = finetune(n_epochs=2, suffix="triage", validation_data=ROWS)
    assert job.result(30).model == "together_ai/me/Qwen3-8B-triage"
    (made,) = server.jobs.values()
    assert (made["model"], made["n_epochs"]) == ("Qwen/Qwen3-8B", 2)
    assert [json.loads(line) for line in server.files[made["training_file"]].splitlines()] == ROWS
    assert made["validation_file"] == "file-1"
    assert [event.message for event in job.events()] == ["Fine tune request created"]
    assert job.events()[0].at == 1795262400


@pytest.mark.parametrize(
    ("settings", "n_evals"), [({}, 1), ({"n_epochs": 4}, 4), ({"n_evals": 9}, 9), ({"n_evals": None, "n_epochs": 2}, 2)]
)
def test_validation_rows_are_measured_once_an_epoch(
    server: TogetherServer, settings: dict[str, Any], n_evals: int
) -> None:
    finetune(validation_data=ROWS, **settings).result(30)
    finetune(**settings).result(30)
    with_rows, without = server.jobs.values()
    assert (with_rows["n_evals"], without.get("n_evals")) == (n_evals, settings.get("n_evals"))


@pytest.mark.parametrize(
    ("fraction", "more"), [("Z", 0), (".5Z", 0.5), (".123456789Z", 0.123456), (".1234+00:00", 0.1234)]
)
def test_times_are_read_with_any_fraction_of_a_second(fraction: str, more: float) -> None:
    assert seconds(f"2026-11-21T12:00:00{fraction}") == pytest.approx(1795262400 + more)


def test_who_ends_an_endpoint_is_said(server: TogetherServer) -> None:
    with pytest.raises(ConfigError, match="paid by the minute until it is stopped there"):
        finetune().stop_endpoint()


def test_faults_that_pass_and_those_that_do_not(
    server: TogetherServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.DEBUG):
        job = finetune()
        server.fail("GET", 429)
        server.fail("GET", 503)
        assert job.wait(30) == "succeeded"
        server.fail("POST /v1/files/upload", 401)
        with pytest.raises(ProviderError, match="HTTP 401") as caught:
            finetune(ROWS * 2)
    assert "TOGETHER_API_KEY" in caught.value.hint
    assert server.key not in str(caught.value) + caplog.text
    kept = [path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not any(server.key.encode() in content for content in kept)


def test_what_cannot_be_used_is_refused_before_anything_is_sent(
    server: TogetherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="`n_epochs` is 0"):
        finetune(n_epochs=0)
    with pytest.raises(DataError, match=r"Row 1: turns 1 and 2 are both the user's"):
        finetune([{"messages": [ROWS[0]["messages"][0], *ROWS[0]["messages"]]}])
    assert server.seen == []
    monkeypatch.delenv("TOGETHER_API_KEY")
    with pytest.raises(ProviderError, match="There is no key for Together"):
        finetune()
