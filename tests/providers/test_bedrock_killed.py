"""A process that is killed while it orders a Bedrock job: the next one finds what was begun, and there is one job."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dspyc.providers.job import attach

pytest.importorskip("moto.server")

from .bedrock_server import CREATE, LOOK, BedrockServer
from .test_bedrock import KWARGS, NOVA, ROWS, finetune, server

__all__ = ["server"]  # fixtures

ORDER = f"""
import dspy
from dspy.clients.utils_finetune import TrainDataFormat
from dspyc.providers.bedrock import BedrockProvider
from dspyc.providers.polling import Polling

if __name__ == "__main__":
    provider = BedrockProvider(polling=Polling(first=0.01, most=0.02))
    with dspy.context(experimental=True):
        lm = dspy.LM({NOVA!r}, provider=provider)
        print(lm.finetune({ROWS!r}, TrainDataFormat.CHAT, {KWARGS!r}).result().model)
"""


@pytest.mark.parametrize(
    ("moment", "after"),
    [
        (CREATE, False),  # the rows are uploaded, and the job was not asked for
        (CREATE, True),  # there is a job, and nobody knows its id
        (LOOK, True),  # while waiting
        ("POST /model-customization/custom-model-deployments", True),  # there is an endpoint, and nobody knows its id
    ],
)
def test_one_job_and_one_endpoint_whenever_the_process_dies(
    server: BedrockServer,
    moment: str,
    after: bool,
    tmp_path: Path,
) -> None:
    reached, go = server.hold(moment, after)
    child = subprocess.Popen([sys.executable, "-c", ORDER], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        assert reached.wait(120)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        go.set()
    job = finetune()
    tuned = job.result(60)
    assert len(server.jobs) == len(server.endpoints) == 1
    assert tuned.model == f"bedrock/converse/{next(iter(server.endpoints))}"
    assert attach(job.id).result(60).model == tuned.model
