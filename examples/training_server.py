"""A machine of yours as a provider: OpenAI's fine-tuning protocol in one file, in front of `dspyc.training` and `LocalLM`.

    python examples/training_server.py --port 8321
    export OPENAI_BASE_URL=http://127.0.0.1:8321/v1 OPENAI_API_KEY=any        # where the programs run
    dspyc.LM("openai/dspyc/tiny")                                            # or any other model that LocalLM takes

Files, jobs, events, cancelling and chats, as https://platform.openai.com/docs/api-reference/fine-tuning has them. For one user:
it listens on the loopback, asks for no key, trains one job at a time, and forgets its jobs when it ends; weights stay in --out.
"""

import argparse
import json
import logging
import queue
import re
import secrets
import sys
import tempfile
import threading
import time
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dspyc
from dspyc.providers.local import trained_lm
from dspyc.training import Callback, Progress, TrainingConfig, train

LEARNING_RATE = 1e-3  # of "learning_rate_multiplier": 1
EPOCHS, BATCH_SIZE = 8, 16  # of "auto"


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Provider:
    """Files, jobs and models; a thread of its own trains the jobs in their order."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.files: dict[str, list[dict[str, Any]]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.models: dict[str, Any] = {}
        self.loading = threading.Lock()
        self.changing = threading.Lock()  # of jobs' status: a thread answers each request
        self.waiting: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def model(self, name: str) -> Any:
        """The LM of this name: a tuned one, or what LocalLM makes of it."""
        with self.loading:
            if name not in self.models:
                if name.startswith("ft:"):
                    raise RefusedError(404, f"The model {name} does not exist here.")
                self.models[name] = dspyc.LocalLM(name, cache=False, constrained=False)
            return self.models[name]

    def upload(self, content: bytes) -> dict[str, Any]:
        rows = [json.loads(line) for line in content.splitlines()]
        id = new_id("file")
        self.files[id] = rows
        facts = {"object": "file", "bytes": len(content), "filename": f"{id}.jsonl", "status": "processed"}
        return {"id": id, "purpose": "fine-tune", "created_at": int(time.time()), **facts}

    def create(self, order: dict[str, Any]) -> dict[str, Any]:
        if order.get("training_file") not in self.files:
            raise RefusedError(400, f"There is no file {order.get('training_file')}.")
        self.model(order["model"])
        empty = dict.fromkeys(("fine_tuned_model", "finished_at", "error", "trained_tokens", "validation_file"))
        facts = {"object": "fine_tuning.job", "created_at": int(time.time()), "status": "queued"}
        rest = {"organization_id": "here", "result_files": [], "seed": 0, "hyperparameters": {}}
        id = new_id("ftjob")
        self.jobs[id] = {**empty, **rest, **order, **facts, "id": id}
        self.say(id, "Created")
        self.waiting.put(id)
        return self.jobs[id]

    def cancel(self, id: str) -> dict[str, Any]:
        job = self.job(id)
        if not self.turn(job, ("queued", "running"), "cancelled"):
            raise RefusedError(400, f"{id} is {job['status']} already.")
        self.say(id, "Cancelled")
        return job

    def turn(self, job: dict[str, Any], before: tuple[str, ...], status: str) -> bool:
        """Give a job another status, unless it has one meanwhile that is none of `before`; whether it has been given."""
        with self.changing:
            fits = job["status"] in before
            if fits:
                job["status"] = status
        return fits

    def job(self, id: str) -> dict[str, Any]:
        if id not in self.jobs:
            raise RefusedError(404, f"There is no job {id}.")
        return self.jobs[id]

    def say(self, id: str, message: str, **data: Any) -> None:
        told = self.events.setdefault(id, [])
        event = {"id": f"{id}-{len(told)}", "object": "fine_tuning.job.event", "created_at": int(time.time())}
        told.insert(0, {**event, "level": "info", "message": message, "data": data})  # the newest first

    def work(self) -> None:
        """Train the jobs that wait, one after another, for good."""
        while True:
            job = self.jobs[self.waiting.get()]
            if not self.turn(job, ("queued",), "running"):
                continue
            ended = "succeeded"
            try:
                job["fine_tuned_model"] = self.train(job)
            except CancelledError:
                continue
            except Exception as error:  # whatever it is, it is this job's, and the next one's turn comes
                job["error"] = {"code": "training_failed", "message": f"{type(error).__name__}: {error}", "param": None}
                ended = "failed"
            self.say(job["id"], f"The job has {ended}")
            job["finished_at"] = int(time.time())
            self.turn(job, ("running",), ended)

    def train(self, job: dict[str, Any]) -> str:
        base = self.model(job["model"])
        result = train(
            job["model"],
            self.files[job["training_file"]],
            config=settings(job),
            output_dir=self.out / job["id"],
            validation=self.files.get(job["validation_file"], ()),
            callbacks=[Watch(self, job)],
            show_progress=False,
        )
        name = f"ft:{job['model'].rpartition('/')[2]}:{job.get('suffix') or 'here'}:{job['id']}"
        self.models[name] = trained_lm(base, result)
        return name

    def chat(self, request: dict[str, Any]) -> dict[str, Any]:
        length = request.get("max_completion_tokens") or request.get("max_tokens") or 256
        heat = request.get("temperature") or 0
        reply = self.model(request["model"])(messages=request["messages"], max_tokens=length, temperature=heat)[0]
        message = {"role": "assistant", "content": reply if isinstance(reply, str) else reply["text"]}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        facts = {"id": "chat", "object": "chat.completion", "created": int(time.time()), "model": request["model"]}
        return {**facts, "choices": [choice], "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}


class CancelledError(Exception):
    """Ends the training of a job that was cancelled."""


class Watch(Callback):
    """Tells a job's events, and stops its training when it is cancelled."""

    def __init__(self, provider: Provider, job: dict[str, Any]) -> None:
        self.provider, self.job = provider, job

    def on_log(self, progress: Progress) -> None:
        if self.job["status"] == "cancelled":
            raise CancelledError
        message = f"Step {progress.step}/{progress.total_steps}: training loss={progress.loss:.3f}"
        self.provider.say(self.job["id"], message, step=progress.step, train_loss=progress.loss)

    def on_evaluate(self, progress: Progress) -> None:
        message = f"Step {progress.step}: validation loss={progress.validation_loss:.3f}"
        self.provider.say(self.job["id"], message, step=progress.step, valid_loss=progress.validation_loss)


def new_id(kind: str) -> str:
    """An id that no other run of this server gives: whoever orders keeps it, and caches replies under a model's name."""
    return f"{kind}-{secrets.token_hex(6)}"


def settings(job: dict[str, Any]) -> TrainingConfig:
    """The protocol's hyperparameters as dspyc's."""
    given = job.get("method", {}).get("supervised", {}).get("hyperparameters", {})
    chosen = {name: value for name, value in given.items() if value != "auto"}
    return TrainingConfig(
        method="full",
        epochs=chosen.get("n_epochs", EPOCHS),
        batch_size=chosen.get("batch_size", BATCH_SIZE),
        learning_rate=LEARNING_RATE * chosen.get("learning_rate_multiplier", 1),
        seed=job["seed"] or 0,
    )


class Handler(BaseHTTPRequestHandler):
    provider: Provider
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, made = 200, self.route(f"{self.command} {self.path.partition('?')[0]}", body)
        except RefusedError as error:
            status, made = error.status, {"error": {"message": str(error), "code": None}}
        except (
            Exception
        ) as error:  # a status of 500, or a connection that is dropped, would look like a fault that passes
            status, made = 400, failure(error)
        content = json.dumps(made).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def route(self, asked: str, body: bytes) -> dict[str, Any]:
        here, jobs = self.provider, "/v1/fine_tuning/jobs"
        if asked == "POST /v1/files":
            return here.upload(self.file(body))
        if asked == "POST /v1/chat/completions":
            return here.chat(json.loads(body))
        if asked == f"POST {jobs}":
            return here.create(json.loads(body))
        if asked == f"GET {jobs}":
            return listed(list(here.jobs.values())[::-1])
        found = re.fullmatch(rf"(GET|POST) {jobs}/([\w-]+)(/\w+)?", asked)
        verb, id, what = found.groups() if found else ("", "", "")
        if (verb, what) == ("GET", None):
            return here.job(id)
        if (verb, what) == ("GET", "/events"):
            return listed(list(here.events[here.job(id)["id"]]))
        if (verb, what) == ("GET", "/checkpoints"):
            return listed([])
        if (verb, what) == ("POST", "/cancel"):
            return here.cancel(id)
        raise RefusedError(404, f"There is no {asked} here.")

    def file(self, body: bytes) -> bytes:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = BytesParser(policy=HTTP).parsebytes(head + body).iter_parts()
        named = {part.get_param("name", header="content-disposition"): part for part in parts}
        return bytes(named["file"].get_payload(decode=True))

    def log_message(self, *_: Any) -> None:
        """Nothing: a request a line says little."""


class ManyAtOnce(ThreadingHTTPServer):
    """A server that many threads may call at the same moment: the standard library lets five connections wait."""

    request_queue_size = 128


def failure(error: Exception) -> dict[str, Any]:
    return {"error": {"message": f"{type(error).__name__}: {error}", "code": None}}


def listed(data: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": False}


def main() -> None:
    parser = argparse.ArgumentParser(description="OpenAI's fine-tuning protocol in front of this machine.")
    parser.add_argument("--port", type=int, default=0, help="Default: one that is free.")
    parser.add_argument("--out", type=Path, help="Where weights go. Default: a folder of its own.")
    parser.add_argument("--with-parent", action="store_true", help="End when the program that started this one ends.")
    given = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)  # whoever calls is told how a reply ended
    Handler.provider = Provider(given.out or Path(tempfile.mkdtemp(prefix="training-server-")))
    server = ManyAtOnce(("127.0.0.1", given.port), Handler)
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    if given.with_parent:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()  # until the parent's end of the pipe is closed
    else:
        server.serve_forever()


if __name__ == "__main__":
    main()
