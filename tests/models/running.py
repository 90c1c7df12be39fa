"""The small chat-completions server, already running when a test begins."""

import subprocess
import sys
from typing import Any

import httpx

from tests.models import openai_server


class Running:
    """`openai_server.py` in a process of its own. `stop` it."""

    def __init__(self, *args: str) -> None:
        command = [sys.executable, "-S", openai_server.__file__, "--host", "127.0.0.1", "--port", "0", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.address = f"http://127.0.0.1:{self.process.stdout.readline().split()[-1]}"

    def seen(self) -> dict[str, Any]:
        return httpx.get(f"{self.address}/seen", trust_env=False).json()  # type: ignore[no-any-return]

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
