"""A process that is killed for real at each moment of a job's start, and while it waits: one remote job at the end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dspyc.providers import JobStatus, attach
from dspyc.providers.store import JobStore

from .openai_server import KEY, OpenAIServer

CREATE = "POST /v1/fine_tuning/jobs"
SCRIPT = """
import sys, dspyc
from dspy.clients.utils_finetune import TrainDataFormat
rows = [{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "yes"}]} for i in range(12)]
lm = dspyc.LM("openai/gpt-4.1-mini-2025-04-14", api_base=sys.argv[1])
print(lm.finetune(rows, TrainDataFormat.CHAT, {}).result(60).model)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def order(server: OpenAIServer) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", SCRIPT, server.url], stdout=subprocess.PIPE, text=True)


def kill(process: "subprocess.Popen[str]") -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    ("request_line", "after", "files"),
    [
        ("POST /v1/files", True, 2),  # the upload's answer is lost: the rows are sent again
        (CREATE, False, 1),  # between upload and create
        (CREATE, True, 1),  # between create and its answer
        ("GET /v1/fine_tuning/jobs/", False, 1),  # while waiting
    ],
)
def test_killed_there_is_one_job(request_line: str, after: bool, files: int) -> None:
    with OpenAIServer() as server:
        reached, go = server.hold(request_line, after)
        first = order(server)
        assert reached.wait(60)
        kill(first)
        go.set()
        out, _ = order(server).communicate(timeout=60)
        assert out.strip().endswith("ftjob-1")
        assert list(server.jobs) == ["ftjob-1"]
        assert len(server.files) == files
        assert attach("ftjob-1").wait(60) is JobStatus.succeeded
        assert [record.attempt for record in JobStore().all()] == [1]
