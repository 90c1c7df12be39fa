"""examples/training_server.py as a provider; a whole compile through it is tutorials/03_providers.ipynb."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from dspyc.errors import ProviderError
from dspyc.providers import RemoteJob

SCRIPT = Path(__file__).parents[2] / "examples" / "training_server.py"
ROWS = [{"prompt": f"{i} plus {i}", "completion": str(2 * i)} for i in range(20)]


@pytest.fixture(scope="module")
def server() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(SCRIPT), "--with-parent"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield running
    running.communicate()  # it ends when its input is closed
    assert running.returncode == 0


@pytest.fixture(scope="module")
def address(server: "subprocess.Popen[str]") -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()


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
