"""How often a request is sent through DSPy's own client, at a real server: the limiter's retries and no others."""

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import exceptions as dspy_errors

from dspyc.compiler import Budget, Ledger, bootstrap, observe
from dspyc.compiler.limiter import Limiter
from tests.compiler.awaiting import Awaiting
from tests.providers.openai_server import OpenAIServer

CHAT = "POST /v1/chat/completions"
NEVER = threading.Event().is_set


def asked(folder: Path, server: OpenAIServer, *, asynchronous: bool = False, examples: int = 1, **settings: Any) -> Any:
    """The ledger, closed, and the traces of a bootstrap whose model the server is."""
    program = Awaiting() if asynchronous else dspy.Predict("question -> answer")
    lm = {"api_base": server.url, "api_key": "none", "cache": False, "num_retries": 3}
    program.set_lm(dspy.LM("openai/gpt-4o-mini", timeout=settings.pop("timeout", 60), **lm))
    given = [dspy.Example(question=f"q{i}").with_inputs("question") for i in range(examples)]
    with Ledger(folder, budget=settings.pop("budget", None)) as ledger:
        subject = observe(program, "teacher", identity="x")
        return ledger, bootstrap(subject, given, metric=None, ledger=ledger, **settings)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("status", "headers", "requests"),
    [(500, {}, 1 + 3), (429, {"Retry_After": "0.01"}, 10), (503, {"Retry_After": "0.01"}, 10)],
)
def test_a_request_is_sent_as_often_as_the_limiter_says(
    tmp_path: Path, asynchronous: bool, status: int, headers: dict[str, str], requests: int
) -> None:
    with OpenAIServer(key=None) as server:
        server.fail(CHAT, status, times=100, **headers)
        _, (trace,) = asked(tmp_path, server, asynchronous=asynchronous)
        assert f"fault {status}" in trace.error
        assert server.seen == [CHAT] * requests


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_request_that_gets_no_answer_in_time_is_sent_again_once(tmp_path: Path, asynchronous: bool) -> None:
    over = threading.Event()

    class Silent(OpenAIServer):
        def _answer(self, request: Any) -> Any:
            self.seen.append("asked")
            over.wait(60)
            return super()._answer(request)

    with Silent(key=None) as server:
        _, (trace,) = asked(tmp_path, server, asynchronous=asynchronous, timeout=0.5)
        until(lambda: len(server.seen) >= 2)
        assert "timed out" in trace.error
        assert server.seen == ["asked"] * 2
        over.set()


def test_a_request_that_timed_out_is_sent_again_at_the_end_of_the_queue() -> None:
    limiter, order, turn = Limiter(), [], threading.Event()
    limiter.capacity = 1

    def ask(name: str) -> None:
        for attempt in limiter.attempts(retries=3 if name == "slow" else 0, stopped=NEVER):
            with contextlib.suppress(dspy_errors.LMRateLimitError), attempt:
                order.append(name)
                if order == ["slow"]:
                    until(lambda: len(limiter._queue) == 2)
                    raise dspy_errors.LMTimeoutError("slow")
                turn.wait(30)
                if name != "slow":
                    raise dspy_errors.LMRateLimitError("busy")  # which leaves it at one request at a time

    threads = []
    for name in ("slow", "second", "third"):
        threads.append(threading.Thread(target=ask, args=(name,)))
        threads[-1].start()
        until(lambda: limiter.under_way == 1 and (order[:1] == ["slow"]) and len(limiter._queue) == len(threads) - 1)
    until(lambda: order == ["slow", "second"] and len(limiter._queue) == 2)  # the third, and what is sent again
    turn.set()
    for thread in threads:
        thread.join(60)
    assert order == ["slow", "second", "third", "slow"]


def until(true: Any) -> None:
    """Wait for it."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_usd_are_exceeded_by_the_requests_under_way_and_no_more(tmp_path: Path) -> None:
    price = (1 * 0.15 + 1 * 0.60) / 1e6  # of an answer here, of a token each way
    all_sent = threading.Barrier(4, timeout=30)

    class Slow(OpenAIServer):
        def _answer(self, request: Any) -> Any:
            all_sent.wait()
            return super()._answer(request)

    with Slow(key=None) as server:
        ledger, traces = asked(
            tmp_path, server, examples=20, num_threads=4, budget=Budget(usd=price / 2), show_progress=False
        )
    assert ledger.meter.spent.usd == pytest.approx(4 * price)
    assert (len(traces), len(server.seen)) == (4, 4)
