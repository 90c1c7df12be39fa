"""A provider on the loopback: a small stateful HTTP server, which misbehaves on order. Each provider's own API is a subclass:

class Acme(HttpServer):
    routes = (("POST", "/v1/jobs", "create"), ("GET", "/v1/jobs/<id>", "look"))     # verb, path, method's name

    def create(self, request):                         # JSON, or a Response, or raise RefusedError
        ...

with Acme(polls=3) as server:
    server.fail("POST /v1/jobs", 500, times=2)         # or 429 with its header: Retry_After="1"
    server.fail("GET /v1/jobs/", LOST)                 # does the work, and cuts the connection before its answer
    reached, go = server.hold("POST /v1/jobs")         # the request waits for `go`; `reached` says that it came
    server.jobs, server.seen                           # what was made, by its id; the requests so far: "POST /v1/jobs"
"""

import json
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

CUT, LOST = "cut", "lost"  # the connection ends within the request's body, or after the work and before its answer
_CUT_AFTER = 65_536  # bytes of a body
_Server = TypeVar("_Server", bound="HttpServer")


class RefusedError(Exception):
    """An answer that is an error. `code`: the provider's own word for it, where it has one."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class _Fault:
    request: str  # how the requests begin that it happens to
    how: str  # CUT, LOST, or "before" or "after" the work, where the request waits
    times: int = 1
    error: RefusedError | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


class HttpServer:
    """Args:
    polls: Looks at a job after which the next one finds it over; None for jobs that never end.
    failure: Why jobs fail, if they do.
    """

    routes: tuple[tuple[str, str, str], ...] = ()
    key = "canary-5f1d9c30"  # what requests have to bear

    def __init__(self, polls: int | None = 2, failure: str = "") -> None:
        self.polls, self.failure = polls, failure
        self.jobs: dict[Any, dict[str, Any]] = {}
        self.seen: list[str] = []
        self.reply: Callable[[dict[str, Any]], str] = lambda request: "[[ ## answer ## ]]\nok\n\n[[ ## completed ## ]]"
        self._faults: list[_Fault] = []
        self._lock = threading.RLock()  # of all state: one request works at a time
        self._map = Map([Rule(path, methods=[verb], endpoint=name) for verb, path, name in self.routes])
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self: _Server) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, request: str, how: int | str, times: int = 1, *, code: str = "", **headers: str) -> None:
        """The next `times` requests that begin with `request` ("POST /v1/jobs") fail: with a status, CUT or LOST. Names of
        headers have _ for -."""
        error = RefusedError(how, f"fault {how}", code, **headers) if isinstance(how, int) else None
        self._faults.append(_Fault(request, str(how), times, error))

    def heal(self) -> None:
        """What was to fail does not any more."""
        self._faults.clear()

    def hold(self, request: str, after: bool = False) -> tuple[threading.Event, threading.Event]:
        """The next such request waits until the second event is set; the first says that it came. Held before its work it is
        dropped then, as if it had never arrived; held `after` it, its answer goes out."""
        fault = _Fault(request, "after" if after else "before")
        self._faults.append(fault)
        return fault.reached, fault.go

    def allows(self, request: Request, name: str) -> bool:
        """Whether the request bears the key; `name` is its method's."""
        return bool(request.headers.get("Authorization") == f"Bearer {self.key}")

    def refusal(self, request: Request, error: RefusedError) -> Response:
        """The error as the provider words it."""
        return answer({"error": {"message": error.message, "code": error.status, "status": error.code or "REFUSED"}})

    def other(self, request: Request) -> Response:
        """What is asked at no route."""
        raise RefusedError(404, f"There is no {request.method} {request.path}")

    def carry_out(self, name: str, request: Request, found: dict[str, Any]) -> Any:
        """A route's method; `found` is what its path held."""
        return getattr(self, name)(request, **found)

    def chat(self, request: Request, **found: str) -> dict[str, Any]:
        """A chat completion, as most providers took it over from OpenAI. `reply` gets the request's JSON, and the model where
        the path names it."""
        asked = {**request.get_json(), **found}
        return {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": asked.get("model", ""),
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": self.reply(asked)},
                }
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }

    def ended(self, job: dict[str, Any]) -> bool:
        """Whether a job is over at this look, the number of which it counts in `looks`."""
        job["looks"] = job.get("looks", 0) + 1
        return self.polls is not None and job["looks"] > self.polls

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        request = Request(environ)
        try:
            made = self._answer(request)
        except RefusedError as error:
            made = self.refusal(request, error)
            made.status_code = error.status
            made.headers.extend(error.headers)
        return made(environ, start)

    def _answer(self, request: Request) -> Response:
        fault = self._fault(f"{request.method} {request.path}")
        if fault and fault.how == CUT:
            request.stream.read(_CUT_AFTER)
            _drop(request)
        request.get_data(parse_form_data=False)  # all of it, so that a lost answer is no lost request
        if fault and fault.error:
            raise fault.error
        if fault and fault.how == "before":
            _wait(fault)
            _drop(request)
        with self._lock:
            made = self._work(request)
        if fault and fault.how == "after":
            _wait(fault)
        if fault and fault.how == LOST:
            _drop(request)
        return made

    def _work(self, request: Request) -> Response:
        try:
            name, found = self._map.bind_to_environ(request.environ).match()
        except HTTPException:
            return self.other(request)
        if not self.allows(request, name):
            raise RefusedError(401, f"Incorrect API key provided: {request.headers.get('Authorization')}")
        made = self.carry_out(name, request, found)
        return made if isinstance(made, Response) else answer(made)

    def _fault(self, request: str) -> _Fault | None:
        with self._lock:
            self.seen.append(request)
            for fault in self._faults:
                if fault.times and request.startswith(fault.request):
                    fault.times -= 1
                    return fault
        return None


def answer(made: Any, status: int = 200) -> Response:
    return Response(json.dumps(made), status, content_type="application/json")


def _drop(request: Request) -> NoReturn:
    with suppress(OSError):  # the client may be gone
        request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def _wait(fault: _Fault) -> None:
    fault.reached.set()
    fault.go.wait(60)
