"""Ctrl-C while a model on this machine writes a long reply."""

import json
import signal
import subprocess
import sys
from pathlib import Path

CALL = """
import json, sys, threading, time
import dspyc

lm = dspyc.LocalLM(sys.argv[1], cache=False, temperature=2.0, seed=2)
lm("Hello", max_tokens=2)
loaded = lm.engine._loaded

def tell():
    while not loaded._scheduler.live:
        time.sleep(0.001)
    print("writing", flush=True)

threading.Thread(target=tell, daemon=True).start()
try:
    while True:
        lm("Hello", max_tokens=1900)
except KeyboardInterrupt:
    lm("Hello", max_tokens=2)
    print(json.dumps({"live": loaded._scheduler.live}), flush=True)
"""


def test_an_interrupted_call_ends_its_work(llama: Path) -> None:
    command = [sys.executable, "-c", CALL, str(llama)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGINT)
        said, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert json.loads(said) == {"live": 0}
