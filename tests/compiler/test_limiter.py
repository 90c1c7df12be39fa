"""The limiter: what is sent again and when, and how providers that fail are treated, over a real server's answers."""

import asyncio
import contextlib
import itertools
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import dspy
import httpx
import openai
import pytest
from dspy.utils import exceptions as dspy_errors

from dspyc.compiler import Budget, Ledger, bootstrap, observe
from dspyc.compiler.limiter import Limiter, failure_of, retry_after_of
from dspyc.errors import BudgetError
from tests.models.openai_server import ManyAtOnce

BUSY = dspy_errors.LMRateLimitError("busy")
NEVER = threading.Event().is_set
TIMED_OUT = 15  # the number of the one request that gets no answer: a question may not time out twice
FIELDS = "[[ ## answer ## ]]\nshort and good\n\n[[ ## completed ## ]]"


class Flaky(BaseHTTPRequestHandler):
    """Chat completions; every fifth request meets a fault, each kind in its turn."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    count = itertools.count()
    lock = threading.Lock()
    answered: Counter[str] = Counter()  # noqa: RUF012 (one server a test); by question
    faults: Counter[str] = Counter()  # noqa: RUF012
    by_fallback = 0  # answers to what DSPy's other adapter asked

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = next(self.count)
        again = "JSON object" in str(body["messages"])  # what could not be read is asked by DSPy's other adapter, once
        fault = ("429", "500", "garbage", "timeout")[number // 5 % 4] if number % 5 == 0 else ""
        if fault == "garbage" and again:
            fault = ""
        if fault == "timeout" and number != TIMED_OUT:
            fault = "500"
        with self.lock:  # before the answer, behind which a test may look
            self.faults[fault] += 1
            self.answered[str(body["messages"][-1]["content"])] += fault == ""
            Flaky.by_fallback += fault in ("", "garbage") and again
        if fault == "429":
            self.answer("busy", 429, {"Retry-After": "0.02"})
        elif fault == "500":
            self.answer("broken", 500)
        elif fault == "timeout":
            self.connection.settimeout(60)
            self.connection.recv(1)  # until the client goes
            self.close_connection = True
        else:
            asked = '{"answer": "as asked"}' if again else FIELDS
            text = "no fields at all" if fault == "garbage" else asked
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            self.answer(
                {
                    "id": "c",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "m",
                    "choices": [choice],
                    "usage": usage,
                }
            )

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body if status == 200 else {"error": {"message": body}}).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def address() -> Iterator[str]:
    Flaky.count, Flaky.answered, Flaky.faults, Flaky.by_fallback = itertools.count(), Counter(), Counter(), 0
    server = ManyAtOnce(("127.0.0.1", 0), Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_compile_survives_faults_in_a_fifth_of_its_calls(address: str, tmp_path: Path) -> None:
    """Through DSPy's own client: no example fails but for garbage, and none is answered twice."""
    lm = dspy.LM("openai/flaky", api_base=address, api_key="none", cache=False, timeout=5, num_retries=3)
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    examples = [dspy.Example(question=f"q{i}").with_inputs("question") for i in range(60)]
    with Ledger(tmp_path) as ledger:
        traces = bootstrap(
            observe(program, "teacher", identity="x"), examples, metric=None, ledger=ledger, num_threads=8
        )
        recorded = ledger.calls()["teacher"]
    assert len(traces) == 60
    assert [trace.error for trace in traces if trace.error] == []  # garbage was asked again by DSPy's other adapter
    assert set(Flaky.faults) == {"", "429", "500", "garbage", "timeout"}
    assert max(Flaky.answered.values()) == 1
    assert Flaky.by_fallback == Flaky.faults["garbage"]  # DSPy would ask so after any error that is not retried
    assert recorded == Flaky.faults[""] + Flaky.faults["garbage"]  # what was answered, and nothing else


@pytest.mark.parametrize("name", ["api_base", "base_url"])
def test_a_server_that_has_moved_is_not_asked_again(name: str, address: str, tmp_path: Path) -> None:
    examples = [dspy.Example(question=f"q{i}").with_inputs("question") for i in range(3)]
    for place in (address, "http://127.0.0.1:9/v1"):
        program = dspy.Predict("question -> answer")
        program.set_lm(dspy.LM("openai/flaky", **{name: place}, api_key="none", cache=False, num_retries=3))
        with Ledger(tmp_path) as ledger:
            traces = bootstrap(observe(program, "teacher", identity="x"), examples, metric=None, ledger=ledger)
        assert [trace.error for trace in traces] == [None] * 3
    assert set(Flaky.answered.values()) == {1}


def test_usd_stops_a_real_client(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of 7 + 3 tokens costs 2.85 millionths of a dollar at the list price of this model."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    lm = dspy.LM("openai/gpt-4o-mini", api_base=address, api_key="none", cache=False, num_retries=3)
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    examples = [dspy.Example(question=f"q{i}").with_inputs("question") for i in range(20)]
    with Ledger(tmp_path, budget=Budget(usd=5e-6)) as ledger:
        traces = bootstrap(
            observe(program, "teacher", identity="x"), examples, metric=None, ledger=ledger, num_threads=1
        )
        assert ledger.calls() == {"teacher": 2}
    assert len(traces) == 2
    assert ledger.meter.spent.usd == pytest.approx(5.7e-6)
    assert ledger.meter.exhausted == "5.7e-06 USD of 5e-06"


def test_capacity_halves_grows_and_recovers() -> None:
    limiter = Limiter()
    going = [next(limiter.attempts(retries=3, stopped=NEVER)) for _ in range(8)]
    assert limiter.under_way == 8
    assert math.isinf(limiter.capacity)
    assert going[0].__exit__(type(BUSY), BUSY, None)
    assert limiter.capacity == 4
    assert going[1].__exit__(type(BUSY), BUSY, None)  # it began before the last slowing, and says nothing new
    assert limiter.capacity == 4
    for attempt in going[2:]:
        attempt.__exit__(None, None, None)
    while not math.isinf(limiter.capacity):
        before = limiter.capacity
        with next(limiter.attempts(retries=3, stopped=NEVER)):
            pass
        assert limiter.capacity > before
    assert limiter.under_way == 0


def test_a_refusal_says_nothing_of_what_a_provider_can_take() -> None:
    limiter = slowed(8)
    error = dspy_errors.LMAuthError("no such key")
    for attempt in [next(limiter.attempts(retries=0, stopped=NEVER)) for _ in range(4)]:
        assert not attempt.__exit__(type(error), error, None)
    assert (limiter.capacity, limiter.under_way) == (4, 0)


def slowed(requests: int) -> Limiter:
    """A limiter whose provider complained when so many requests were under way: half as many may be from here on."""
    limiter = Limiter()
    for attempt in [next(limiter.attempts(retries=0, stopped=NEVER)) for _ in range(requests)]:
        attempt.__exit__(type(BUSY), BUSY, None)
    assert (limiter.capacity, limiter.under_way) == (requests / 2, 0)
    return limiter


def test_no_more_run_at_once_than_the_capacity_and_first_come_first_served() -> None:
    limiter = slowed(2)
    order: list[tuple[int, int]] = []
    first = next(limiter.attempts(retries=0, stopped=NEVER))

    def ask(number: int) -> None:
        for attempt in limiter.attempts(retries=0, stopped=NEVER):
            with contextlib.suppress(dspy_errors.LMRateLimitError), attempt:
                order.append((number, limiter.under_way))
                raise BUSY  # a provider that goes on complaining gets one request at a time

    threads = []
    for number in range(5):
        thread = threading.Thread(target=ask, args=(number,))
        thread.start()
        while len(limiter._queue) <= number:
            time.sleep(0.001)
        threads.append(thread)
    assert order == []
    first.__exit__(type(BUSY), BUSY, None)
    for thread in threads:
        thread.join(10)
    assert order == [(number, 1) for number in range(5)]


def failing(*errors: BaseException | None, retries: int = 3) -> tuple[int, float]:
    """How often a request is sent that fails in these ways, and the seconds that took; the last error is raised."""
    limiter, script = Limiter(), iter(errors)
    sent, started = 0, time.monotonic()
    for attempt in limiter.attempts(retries=retries, stopped=NEVER):
        with attempt:
            sent += 1
            error = next(script)
            if error is not None:
                raise error
    return sent, time.monotonic() - started


def test_a_timeout_is_retried_once() -> None:
    slow = dspy_errors.LMTimeoutError("slow")
    assert failing(slow, None)[0] == 2
    with pytest.raises(dspy_errors.LMTimeoutError):
        failing(slow, slow, None)


def test_a_servers_error_is_retried_as_often_as_the_lm_says() -> None:
    broken = dspy_errors.LMServerError("broken", status=500)
    assert failing(broken, None, retries=1)[0] == 2
    with pytest.raises(dspy_errors.LMServerError):
        failing(broken, broken, None, retries=1)
    with pytest.raises(dspy_errors.LMServerError):
        failing(broken, None, retries=0)


def test_retry_after_is_waited_for_by_all() -> None:
    sent, seconds = failing(dspy_errors.LMRateLimitError("busy", retry_after=0.3), None)
    assert sent == 2
    assert seconds >= 0.3
    limiter = Limiter()
    attempt = next(limiter.attempts(retries=3, stopped=NEVER))
    error = dspy_errors.LMRateLimitError("busy", retry_after=0.3)
    started = time.monotonic()
    attempt.__exit__(type(error), error, None)
    next(limiter.attempts(retries=3, stopped=NEVER))  # another request
    assert time.monotonic() - started >= 0.3


def test_waits_grow_and_differ() -> None:
    limiter = Limiter()
    waits = [[limiter.wait_for(n) for _ in range(50)] for n in (1, 2, 3, 20)]
    assert all(len(set(each)) > 40 for each in waits)
    assert [max(each) <= most for each, most in zip(waits, (0.25, 0.5, 1.0, 60.0), strict=True)] == [True] * 4
    assert [min(each) >= least for each, least in zip(waits, (0.125, 0.25, 0.5, 30.0), strict=True)] == [True] * 4


def test_a_stopped_run_does_not_go_on_waiting() -> None:
    limiter, stop = Limiter(), threading.Event()
    attempts = limiter.attempts(retries=3, stopped=stop.is_set)
    error = dspy_errors.LMRateLimitError("busy", retry_after=300)
    with next(attempts):
        raise error
    stop.set()
    with pytest.raises(BudgetError, match="stopped"):
        next(attempts)
    assert limiter.under_way == 0


def test_coroutines_share_the_limiter_and_wait_without_blocking() -> None:
    limiter = slowed(8)
    seen: list[tuple[int, float]] = []

    async def ask() -> None:
        async for attempt in limiter.aattempts(retries=0, stopped=NEVER):
            with attempt:
                seen.append((limiter.under_way, limiter.capacity))
                await asyncio.sleep(0.001)

    async def all_of_them() -> None:
        await asyncio.gather(*(ask() for _ in range(10)))

    asyncio.run(all_of_them())
    assert [under_way for under_way, _ in seen[:4]] == [1, 2, 3, 4]
    assert len(seen) == 10
    assert all(under_way <= capacity < 8 for under_way, capacity in seen)
    assert limiter.under_way == 0


class RateLimitError(Exception):
    """As LiteLLM's and others' are called."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (dspy_errors.LMRateLimitError("x"), "busy"),
        (dspy_errors.LMServerError("x", status=503), "busy"),
        (dspy_errors.LMServerError("x", status=500), "passing"),
        (dspy_errors.LMTimeoutError("x"), "timeout"),
        (dspy_errors.LMTransportError("x"), "passing"),
        (dspy_errors.LMLockTimeoutError("x"), None),
        (dspy_errors.LMBillingError("x", status=429), None),
        (dspy_errors.LMAuthError("x", status=401), None),
        (dspy.lm15.RateLimitError("x"), "busy"),
        (openai.APIConnectionError(request=None), "passing"),  # type: ignore[arg-type]
        (openai.APITimeoutError(request=None), "timeout"),  # type: ignore[arg-type]
        (RateLimitError("x"), "busy"),
        (TimeoutError("x"), "timeout"),
        (ConnectionResetError("x"), "passing"),
        (ValueError("x"), None),
        (KeyboardInterrupt(), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_errors_are_known_by_name_and_status(error: BaseException, said: str | None) -> None:
    assert failure_of(error) == said


def test_an_engines_own_error_is_seen_through_dspys() -> None:
    error = dspy_errors.LMUnexpectedError("x")
    error.__cause__ = RateLimitError("busy")
    assert failure_of(error) == "busy"
    assert retry_after_of(error) is None


def refused(retry_after: str) -> openai.RateLimitError:
    request = httpx.Request("POST", "http://localhost")
    response = httpx.Response(429, headers={"Retry-After": retry_after}, request=request)
    return openai.RateLimitError("busy", response=response, body=None)


def test_retry_after_is_a_number_or_a_date() -> None:
    """As clients of others raise it: HTTP allows both."""
    later, earlier = (formatdate(time.time() + seconds, usegmt=True) for seconds in (90, -90))
    assert retry_after_of(refused("7")) == 7
    assert retry_after_of(refused(later)) == pytest.approx(90, abs=5)
    assert retry_after_of(refused(earlier)) == 0
    assert retry_after_of(refused(formatdate(time.time() + 10**6, usegmt=True))) == 600
    for unread in ("soon", "", "-3", "nan"):
        assert retry_after_of(refused(unread)) is None
