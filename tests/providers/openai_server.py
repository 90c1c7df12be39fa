"""A server that speaks OpenAI's fine-tuning protocol over a real socket: files, jobs, events, checkpoints, chat.

It is stateful and as strict as the published REST description, and it can misbehave on request:

    server.fail("POST /v1/fine_tuning/jobs", 500, times=2)      # or 429 with headers, 401, …
    server.fail("GET /v1/fine_tuning/jobs/", LOST)              # does the work, and cuts the connection before its answer
    reached, go = server.hold("POST /v1/fine_tuning/jobs")      # the request waits for `go`, and `reached` says that it came
"""

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUT, LOST = "cut", "lost"  # the connection ends before the work, or after it and before the answer
KEY = "sk-canary-0123456789abcdef"
_VERBS = {"cancel": "cancelled", "pause": "paused", "resume": "running"}
_OVER = ("succeeded", "failed", "cancelled")
_METHODS = {"supervised": {"n_epochs", "batch_size", "learning_rate_multiplier"}}
_METHODS["dpo"] = _METHODS["supervised"] | {"beta"}


class OpenAIServer:
    """`polls`: looks at a job until it is over; None for a job that never ends."""

    def __init__(self, polls: int | None = 2, outcome: str = "succeeded", key: str | None = KEY) -> None:
        self.polls, self.outcome, self.key = polls, outcome, key
        self.files: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.seen: list[str] = []
        self.bodies: list[dict[str, Any]] = []  # of orders for jobs
        self.reply: Callable[[dict[str, Any]], str] = lambda request: "[[ ## answer ## ]]\nok\n\n[[ ## completed ## ]]"
        self.train: Callable[[bytes, str], None] = lambda content, model: None
        self.closed = False
        self.refuse_held = False  # whether a request that was held before its work is dropped then
        self._faults: list[dict[str, Any]] = []
        self._lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self.closed = True  # for connections that are kept alive
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> "OpenAIServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def fail(self, request: str, how: int | str, times: int = 1, **headers: str) -> None:
        """The next `times` requests that begin with `request` fail. Names of headers have _ for -."""
        self._faults.append({"request": request, "how": how, "times": times, "headers": headers})

    def hold(self, request: str, after: bool = False) -> tuple[threading.Event, threading.Event]:
        """The next such request waits, before its work or after it, until the second event is set; the first says it came."""
        reached, go = threading.Event(), threading.Event()
        self._faults.append(
            {"request": request, "how": "after" if after else "before", "times": 1, "events": (reached, go)}
        )
        return reached, go

    def fault(self, request: str) -> dict[str, Any] | None:
        with self._lock:
            self.seen.append(request)
            for fault in self._faults:
                if fault["times"] and request.startswith(fault["request"]):
                    fault["times"] -= 1
                    return fault
        return None

    def answer(self, method: str, path: str, body: bytes, content_type: str) -> tuple[int, dict[str, Any]]:
        for pattern, work in self._routes(method):
            match = re.fullmatch(pattern, path)
            if match:
                with self._lock:
                    return work(body, content_type, *match.groups())
        return _error(404, f"Invalid URL ({method} {path})")

    def _routes(self, method: str) -> list[tuple[str, Callable[..., tuple[int, dict[str, Any]]]]]:
        jobs = "/v1/fine_tuning/jobs"
        if method == "GET":
            return [
                (jobs, lambda b, c: (200, _list(list(self.jobs.values())[::-1]))),
                (f"{jobs}/([^/]+)", lambda b, c, id: self._look(id)),
                (f"{jobs}/([^/]+)/events", lambda b, c, id: self._events(id)),
                (f"{jobs}/([^/]+)/checkpoints", lambda b, c, id: self._checkpoints(id)),
            ]
        return [
            ("/v1/files", self._upload),
            (jobs, self._create),
            (f"{jobs}/([^/]+)/(cancel|pause|resume)", lambda b, c, id, verb: self._change(id, verb)),
            ("/v1/chat/completions", self._chat),
            ("/openai/v1/chat/completions", self._chat),
            ("/openai/deployments/[^/]+/chat/completions", self._chat),
        ]

    def _upload(self, body: bytes, content_type: str) -> tuple[int, dict[str, Any]]:
        message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        content = parts["file"].get_payload(decode=True)
        if parts["purpose"].get_payload(decode=True) != b"fine-tune":
            return _error(400, "Invalid purpose")
        id = f"file-{len(self.files) + 1}"
        name = parts["file"].get_filename()
        self.files[id] = {"content": content, "name": name}
        return 200, {
            "id": id, "object": "file", "bytes": len(content), "created_at": int(time.time()), "filename": name,
            "purpose": "fine-tune", "status": "processed",
        }  # fmt: skip

    def _create(self, body: bytes, content_type: str) -> tuple[int, dict[str, Any]]:
        order = json.loads(body)
        self.bodies.append(order)
        if order.get("training_file") not in self.files:
            return _error(400, f"invalid training_file: {order.get('training_file')}", "invalid_training_file")
        if not re.match(r"gpt-4|ft:|dspyc", order["model"]):
            return _error(400, f"Model {order['model']} is not available for fine-tuning", "model_not_available")
        kind = order["method"]["type"]
        unknown = set(order["method"][kind]["hyperparameters"]) - _METHODS[kind]
        if unknown:
            return _error(400, f"Unrecognized request argument supplied: {unknown}")
        id = f"ftjob-{len(self.jobs) + 1}"
        self.jobs[id] = {
            "id": id, "object": "fine_tuning.job", "created_at": int(time.time()), "model": order["model"],
            "training_file": order["training_file"], "validation_file": order.get("validation_file"),
            "status": "validating_files", "fine_tuned_model": None, "finished_at": None, "error": None,
            "hyperparameters": {"n_epochs": 3}, "organization_id": "org-x", "result_files": [],
            "seed": order.get("seed") or 1, "trained_tokens": None, "estimated_finish": None,
            "method": order["method"], "metadata": order.get("metadata"), "integrations": order.get("integrations"),
            "looks": 0, "suffix": order.get("suffix"),
        }  # fmt: skip
        return 200, self.jobs[id]

    def _look(self, id: str) -> tuple[int, dict[str, Any]]:
        job = self.jobs.get(id)
        if job is None:
            return _error(404, f"Could not find fine tune: {id}", "fine_tune_not_found")
        if job["status"] not in (*_OVER, "paused"):
            job["looks"] += 1
            job["status"] = "running"
            if self.polls is not None and job["looks"] >= self.polls:
                self._end(job)
        return 200, job

    def _end(self, job: dict[str, Any]) -> None:
        job["status"] = self.outcome
        if self.outcome == "succeeded":
            job["fine_tuned_model"] = f"ft:{job['model']}:org:{job['suffix'] or ''}:{job['id']}"
            self.train(self.files[job["training_file"]]["content"], job["fine_tuned_model"])
        if self.outcome == "failed":
            job["error"] = {"code": "invalid_file", "message": "The file has 3 examples of one kind", "param": None}

    def _change(self, id: str, verb: str) -> tuple[int, dict[str, Any]]:
        job = self.jobs.get(id)
        if job is None:
            return _error(404, f"Could not find fine tune: {id}")
        if job["status"] in _OVER:
            return _error(400, f"Job has already completed: {id}")
        job["status"] = _VERBS[verb]
        return 200, job

    def _events(self, id: str) -> tuple[int, dict[str, Any]]:
        if id not in self.jobs:
            return _error(404, f"Could not find fine tune: {id}")
        metrics = {"step": 1, "train_loss": 1.5}
        found = [(2, "Step 1: training loss=1.5", "metrics", metrics), (1, "Created", "message", {})]
        return 200, _list(
            [
                {"id": f"e{at}", "object": "fine_tuning.job.event", "created_at": at, "level": "info"}
                | {"message": message, "type": kind, "data": data}
                for at, message, kind, data in found
            ]
        )

    def _checkpoints(self, id: str) -> tuple[int, dict[str, Any]]:
        point = {"id": "c1", "object": "fine_tuning.job.checkpoint", "created_at": 1, "fine_tuning_job_id": id}
        point |= {"fine_tuned_model_checkpoint": "ft:x:ckpt-step-1", "step_number": 1}
        return 200, _list([{**point, "metrics": {"step": 1, "train_loss": 1.5}}])

    def _chat(self, body: bytes, content_type: str) -> tuple[int, dict[str, Any]]:
        request = json.loads(body)
        message = {"role": "assistant", "content": self.reply(request)}
        return 200, {
            "id": "c1", "object": "chat.completion", "created": 1, "model": request.get("model", ""),
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    owner: OpenAIServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        owner, path = self.owner, self.path.partition("?")[0]
        path = re.sub("^/openai/v1/(files|fine_tuning)", r"/v1/\1", path)
        fault = owner.fault(f"{self.command} {path}") or {"how": None}
        how = fault["how"]
        if how == CUT or owner.closed:
            return self._cut()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if how == "before":
            self._wait(fault)
            if owner.refuse_held:
                return self._cut()
        if isinstance(how, int):
            return self._send(*_error(how, f"fault {how}"), fault["headers"])
        keys = {self.headers.get("Authorization"), f"Bearer {self.headers.get('api-key')}"}
        if owner.key is not None and f"Bearer {owner.key}" not in keys:
            return self._send(*_error(401, f"Incorrect API key provided: {self.headers.get('Authorization')}"))
        status, answer = owner.answer(self.command, path, body, self.headers.get("Content-Type") or "")
        if how == "after":
            self._wait(fault)
        return self._cut() if how == LOST else self._send(status, answer)

    @staticmethod
    def _wait(fault: dict[str, Any]) -> None:
        reached, go = fault["events"]
        reached.set()
        go.wait(60)

    def _send(self, status: int, answer: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the client was killed
            self.close_connection = True

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass


def _list(data: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": False}


def _error(status: int, message: str, code: str | None = None) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
