"""examples/training_server.py as a provider; a whole compile through it is tutorials/03_providers.ipynb."""

import os
import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from dspyc.errors import ProviderError
from dspyc.providers import RemoteJob
from dspyc.providers.polling import Polling
from dspyc.providers.store import job_store

from .compiling import Elsewhere

SCRIPT = Path(__file__).parents[2] / "examples" / "training_server.py"
ROWS = [{"prompt": f"{i} plus {i}", "completion": str(2 * i)} for i in range(20)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, str(SCRIPT), "--with-parent"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    yield running.stdout.readline().strip()
    running.communicate()  # it ends when its input is closed
    assert running.returncode == 0


def serve(said: Path, *options: str) -> None:
    with said.open("w") as sys.stdout:
        sys.argv = [str(SCRIPT), *options]
        runpy.run_path(str(SCRIPT), run_name="__main__")


@contextmanager
def serving(said: Path, *options: str) -> Iterator[str]:
    """The address of a server that is killed in the end; its process has imported everything when it begins."""
    running = Elsewhere(serve, said, *options)
    try:
        while not (said.exists() and said.read_text().endswith("\n")):
            assert running.process.is_alive()
            time.sleep(0.02)
        yield said.read_text().strip()
    finally:
        running.process.kill()
        running.process.join()


def free_port() -> int:
    """One that stays free between two servers: who asks for any port gets one above 32,768."""
    for port in range(20_000 + os.getpid() % 10_000, 32_768):
        with suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.fixture(autouse=True)
def environment(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    monkeypatch.setenv("OPENAI_API_KEY", "any")


def finetune(model: str = "openai/dspyc/tiny", times: int = 1, **kwargs: int | str) -> RemoteJob:
    lm = dspyc.LM(model, max_tokens=4)
    lm.provider.polling = Polling(first=0.02, most=0.1)
    job = lm.finetune(ROWS * times, TrainDataFormat.COMPLETION, kwargs)
    assert isinstance(job, RemoteJob)
    return job


def test_a_job_is_cancelled_and_the_next_one_trains() -> None:
    endless, next_one = finetune(times=50, n_epochs=50, batch_size=1), finetune(n_epochs=1, suffix="sums")
    assert endless.cancel()
    assert endless.wait(60) == "cancelled"
    tuned = next_one.result(60)
    assert tuned.model.startswith("openai/ft:tiny:sums:ftjob-")
    assert tuned("3 plus 3", cache=False)
    assert "training loss=" in " ".join(event.message for event in next_one.events())
    assert next_one.metrics()["steps"][-1]["train_loss"] > 0


def test_what_it_does_not_have_is_said() -> None:
    with pytest.raises(ProviderError, match=r"HTTP 400: .*no/such"):
        finetune("openai/no/such")
    with pytest.raises(Exception, match="does not exist here"):
        dspyc.LM("openai/ft:none", num_retries=0)("Hello")


def test_a_server_that_was_started_again_gives_no_id_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ("--out", str(tmp_path / "out"), "--port", str(free_port()))
    with serving(tmp_path / "first", *options) as first:
        monkeypatch.setenv("OPENAI_BASE_URL", first)
        old = finetune(n_epochs=1, suffix="sums")
        old.result(60)
        old_file = old.record.facts["train"]
    with serving(tmp_path / "second", *options) as second:
        assert second == first
        job = finetune(times=2, n_epochs=1, suffix="sums")
        tuned = job.result(60)
        assert (job.remote_id, job.record.facts["train"]) != (old.remote_id, old_file)
        assert job_store().find(job.remote_id).id == job.id
        assert tuned.model != old.result().model
        assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_request_that_breaks_it_is_refused_for_good(address: str) -> None:
    answer = httpx.post(f"{address}/chat/completions", json=["no object"])
    assert (answer.status_code, answer.json()["error"]["message"][:14]) == (400, "AttributeError")
