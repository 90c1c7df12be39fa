"""Ctrl-C while a model on this machine writes a long reply."""

import os
import signal
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import dspyc
from tests.forks import FORKS
from tests.providers.compiling import Elsewhere


def call(model: str, writing: Event) -> int:
    """Ask until Ctrl-C, then once more: how many replies are being written after that."""
    lm = dspyc.LocalLM(model, cache=False, temperature=2.0, seed=2)
    lm("Hello", max_tokens=2)
    loaded = lm.engine._loaded

    def tell() -> None:
        while not loaded._scheduler.live:
            time.sleep(0.001)
        writing.set()

    threading.Thread(target=tell, daemon=True).start()
    try:
        while True:
            lm("Hello", max_tokens=1900)
    except KeyboardInterrupt:
        lm("Hello", max_tokens=2)
        return int(loaded._scheduler.live)


def test_an_interrupted_call_ends_its_work(llama: Path) -> None:
    writing = FORKS.Event()
    called = Elsewhere(call, str(llama), writing)
    assert writing.wait(300)
    os.kill(called.process.pid, signal.SIGINT)
    assert called.result() == 0
