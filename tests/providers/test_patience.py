"""How long faults are borne: from the first of them, not from when a long call began, and once."""

import time

import pytest

from dspyc.errors import TransientError
from dspyc.providers.fireworks import FireworksProvider
from dspyc.providers.polling import Polling
from dspyc.providers.remote import patiently

PATIENCE = 0.15
PROVIDER = FireworksProvider(polling=Polling(first=0.01, most=0.02, patience=PATIENCE))


def test_a_call_that_fails_after_longer_than_patience_is_made_again() -> None:
    calls = []

    def upload() -> str:
        calls.append(time.sleep(PATIENCE * 1.5))
        if len(calls) == 1:
            raise TransientError("the connection was cut")
        return "file-1"

    assert patiently(PROVIDER, upload) == "file-1"


def test_an_endpoint_that_takes_longer_than_patience_may_have_faults_now_and_then() -> None:
    began, calls = time.monotonic(), []

    def ready() -> bool:
        calls.append(len(calls))
        if len(calls) % 3 == 0:
            raise TransientError("busy")
        return len(calls) > 6 and time.monotonic() - began > PATIENCE * 2

    PROVIDER.wait_until(ready, "The endpoint")
    assert len(calls) > 6


def test_a_fault_that_lasts_is_borne_once_wherever_it_came() -> None:
    served = []

    def ready() -> bool:
        raise TransientError("down")

    def serve() -> None:
        served.append("asked")
        PROVIDER.wait_until(ready, "The endpoint")

    began = time.monotonic()
    with pytest.raises(TransientError, match="down"):
        patiently(PROVIDER, serve)
    assert served == ["asked"]
    assert time.monotonic() - began > PATIENCE / 2


def test_what_the_caller_waits_for_is_asked_a_few_times() -> None:
    calls = []

    def stop() -> None:
        calls.append("asked")
        raise TransientError("busy")

    patient = FireworksProvider(polling=Polling(first=0.01, most=0.02))
    with pytest.raises(TransientError, match="busy"):
        patiently(patient, stop, retries=2)
    assert len(calls) == 3
