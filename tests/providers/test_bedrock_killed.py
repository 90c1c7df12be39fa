"""A process that is killed while it orders a Bedrock job: the next one finds what was begun, and there is one job."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dspyc.providers.job import attach

pytest.importorskip("moto.server")

from .bedrock_server import BedrockServer
from .test_bedrock import KWARGS, NOVA, ROWS, finetune, s3, server

__all__ = ["s3", "server"]  # fixtures

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
    ("moment", "when"),
    [
        ("CreateModelCustomizationJob", 0),  # the rows are uploaded, and the job was not asked for
        ("CreateModelCustomizationJob", 1),  # there is a job, and nobody knows its id
        ("GetModelCustomizationJob", 1),  # while waiting
        ("CreateCustomModelDeployment", 1),  # there is an endpoint, and nobody knows its id
    ],
)
def test_one_job_and_one_endpoint_whenever_the_process_dies(
    server: BedrockServer,
    moment: str,
    when: int,
    tmp_path: Path,
) -> None:
    server.stop_at = (moment, when)
    child = subprocess.Popen([sys.executable, "-c", ORDER], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        assert server.reached.wait(120)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        server.go_on.set()
    job = finetune()
    tuned = job.result(60)
    assert len(server.jobs) == len(server.endpoints) == 1
    assert tuned.model == f"bedrock/converse/{next(iter(server.endpoints))}"
    assert attach(job.id).result(60).model == tuned.model
