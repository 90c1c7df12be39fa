"""dspyc jobs, from a process that did not start the job, against a real server of OpenAI's protocol."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from tests.providers.openai_server import KEY, OpenAIServer

ROWS = [{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "yes"}]} for i in range(12)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with OpenAIServer(polls=None) as running:
        yield running


def dspyc_jobs(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "dspyc", "jobs", *words], capture_output=True, text=True, timeout=120)


def test_a_second_process_sees_waits_and_cancels(server: OpenAIServer) -> None:
    job = dspyc.LM("openai/gpt-4.1-mini-2025-04-14", api_base=server.url).finetune(ROWS, TrainDataFormat.CHAT, {})
    listed = json.loads(dspyc_jobs("list", "--json").stdout)["jobs"]
    assert [(one["id"], one["remote_id"]) for one in listed] == [(job.id, "ftjob-1")]
    assert job.id in dspyc_jobs("list").stdout  # whole, on a screen of 80 columns
    assert json.loads(dspyc_jobs("status", job.id, "--json").stdout)["status"] == "running"
    assert "Step 1: training loss=1.5" in dspyc_jobs("events", "ftjob-1").stdout
    assert dspyc_jobs("wait", job.id, "--timeout", "0").returncode == 3
    cancelled = dspyc_jobs("cancel", job.id)
    assert (cancelled.returncode, server.jobs["ftjob-1"]["status"]) == (0, "cancelled")
    assert dspyc_jobs("cancel", job.id).returncode == 1
    waited = dspyc_jobs("wait", job.id)
    assert waited.returncode == 1
    assert "cancelled" in waited.stdout
    assert KEY not in cancelled.stdout + cancelled.stderr + waited.stdout + waited.stderr


def test_a_job_whose_model_is_gone_is_forgotten(server: OpenAIServer) -> None:
    lm = dspyc.LM("openai/gpt-4.1-mini-2025-04-14", api_base=server.url)
    job = lm.finetune(ROWS, TrainDataFormat.CHAT, {})
    refused = dspyc_jobs("forget", job.id)
    assert refused.returncode == 1
    assert "when last looked at" in refused.stderr
    server.polls = 0
    assert job.wait(60) == "succeeded"
    forgotten = dspyc_jobs("forget", "ftjob-1", "--json")
    assert json.loads(forgotten.stdout)["state"] == "forgotten"
    assert json.loads(dspyc_jobs("list", "--json").stdout)["jobs"] == []
    assert lm.finetune(ROWS, TrainDataFormat.CHAT, {}).remote_id == "ftjob-2"
    assert "No job 'ftjob-1' is known" in dspyc_jobs("forget", "ftjob-1").stderr


def test_an_unknown_job_is_said_to_be_unknown(server: OpenAIServer) -> None:
    done = dspyc_jobs("status", "nothing")
    assert done.returncode == 1
    assert "No job 'nothing' is known" in done.stderr
