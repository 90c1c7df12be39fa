"""examples/training_server.py as a provider; a whole compile through it is tutorials/03_providers.ipynb."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from dspyc.errors import ProviderError
from dspyc.providers import RemoteJob
from dspyc.providers.store import job_store

SCRIPT = Path(__file__).parents[2] / "examples" / "training_server.py"
ROWS = [{"prompt": f"{i} plus {i}", "completion": str(2 * i)} for i in range(20)]


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The address of a server of its own."""
    command = [sys.executable, str(SCRIPT), "--with-parent", *options]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    yield running.stdout.readline().strip()
    running.communicate()  # it ends when its input is closed
    assert running.returncode == 0


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def environment(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    monkeypatch.setenv("OPENAI_API_KEY", "any")


def finetune(model: str = "openai/dspyc/tiny", times: int = 1, **kwargs: int | str) -> RemoteJob:
    job = dspyc.LM(model, max_tokens=4).finetune(ROWS * times, TrainDataFormat.COMPLETION, kwargs)
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
    with serving("--out", str(tmp_path / "out")) as first:
        monkeypatch.setenv("OPENAI_BASE_URL", first)
        old = finetune(n_epochs=1, suffix="sums")
        old.result(60)
        old_file = old.record.facts["train"]
    with serving("--out", str(tmp_path / "out"), "--port", first.rpartition(":")[2].removesuffix("/v1")) as second:
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
