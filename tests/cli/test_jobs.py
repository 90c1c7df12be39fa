"""dspyc jobs, from a process that did not start the job, against a real server of OpenAI's protocol."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from tests.providers.openai_server import KEY, OpenAIServer

from .commands import dspyc as run

ROOT = Path(__file__).parents[2]

ROWS = [{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "yes"}]} for i in range(12)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with OpenAIServer(polls=None) as running:
        yield running


ELSEWHERE = """
import json, sys
from tests.cli.commands import dspyc

ended = [dspyc("jobs", *words) for words in json.loads(sys.argv[1])]
print(json.dumps([[one.exit_code, one.stdout, one.stderr] for one in ended]))
"""


@dataclass(frozen=True)
class Ended:
    exit_code: int
    stdout: str
    stderr: str


def elsewhere(*commands: tuple[str, ...]) -> list[Ended]:
    """What `dspyc jobs` ends with for each of these words, one after the other in another process."""
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(commands)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return [Ended(*facts) for facts in json.loads(ran.stdout)]


def test_a_second_process_sees_waits_and_cancels(server: OpenAIServer) -> None:
    job = dspyc.LM("openai/gpt-4.1-mini-2025-04-14", api_base=server.url).finetune(ROWS, TrainDataFormat.CHAT, {})
    listed, table, asked, events, timed_out, cancelled, again, waited = elsewhere(
        ("list", "--json"),
        ("list",),
        ("status", job.id, "--json"),
        ("events", "ftjob-1"),
        ("wait", job.id, "--timeout", "0"),
        ("cancel", job.id),
        ("cancel", job.id),
        ("wait", job.id),
    )
    jobs = json.loads(listed.stdout)["jobs"]
    assert [(one["id"], one["remote_id"]) for one in jobs] == [(job.id, "ftjob-1")]
    assert job.id in table.stdout  # whole, on a screen of 80 columns
    assert json.loads(asked.stdout)["status"] == "running"
    assert "Step 1: training loss=1.5" in events.stdout
    assert timed_out.exit_code == 3
    assert (cancelled.exit_code, server.jobs["ftjob-1"]["status"]) == (0, "cancelled")
    assert again.exit_code == 1
    assert waited.exit_code == 1
    assert "cancelled" in waited.stdout
    assert job.wait(60) == "cancelled"  # this process sees it as well
    assert KEY not in "".join(one.stdout + one.stderr for one in (asked, events, timed_out, cancelled, again, waited))


def test_a_job_whose_model_is_gone_is_forgotten(server: OpenAIServer) -> None:
    server.polls = 0
    lm = dspyc.LM("openai/gpt-4.1-mini-2025-04-14", api_base=server.url)
    assert lm.finetune(ROWS, TrainDataFormat.CHAT, {}).wait(60) == "succeeded"
    forgotten, listed = elsewhere(("forget", "ftjob-1", "--json"), ("list", "--json"))
    assert json.loads(forgotten.stdout)["state"] == "forgotten"
    assert json.loads(listed.stdout)["jobs"] == []
    another = lm.finetune(ROWS, TrainDataFormat.CHAT, {})
    assert another.remote_id == "ftjob-2"
    assert another.wait(60) == "succeeded"
    assert "No job 'ftjob-1' is known" in run("jobs", "forget", "ftjob-1").stderr


def test_a_job_that_may_go_on_is_forgotten_only_with_yes(server: OpenAIServer) -> None:
    lm = dspyc.LM("openai/gpt-4.1-mini-2025-04-14", api_base=server.url)
    job = lm.finetune(ROWS, TrainDataFormat.CHAT, {})
    assert job.status() == "running"
    refused = run("jobs", "forget", job.id)
    assert refused.exit_code == 1
    assert f"Job {job.id} was running when last looked at." in refused.stderr
    assert "--yes" in refused.stderr
    forgotten = run("jobs", "forget", job.id, "--yes")
    assert forgotten.stdout == f"{job.id} (ftjob-1) is forgotten: the same order starts another job.\n"
    assert server.jobs["ftjob-1"]["status"] == "running"  # nothing changes at the provider
    another = lm.finetune(ROWS, TrainDataFormat.CHAT, {})
    assert another.remote_id == "ftjob-2"
    for one in (job, another):  # so that no thread of this process goes on looking at them
        assert one.cancel()


def test_an_unknown_job_is_said_to_be_unknown(server: OpenAIServer) -> None:
    done = run("jobs", "status", "nothing")
    assert done.exit_code == 1
    assert "No job 'nothing' is known" in done.stderr
