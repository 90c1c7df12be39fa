"""OpenAI's fine-tuning protocol, at its own paths and at Azure's: files, jobs, events, checkpoints, chat. As strict as the
published REST description."""

import re
import time
from collections.abc import Callable
from typing import Any

from werkzeug.wrappers import Request, Response

from .http_server import CUT, LOST, HttpServer, RefusedError, answer

__all__ = ["CUT", "KEY", "LOST", "OpenAIServer"]

KEY = "sk-canary-0123456789abcdef"
_FILES = ("training_file", "validation_file")
_OVER = ("succeeded", "failed", "cancelled")
_METHODS = {"supervised": {"n_epochs", "batch_size", "learning_rate_multiplier"}}
_METHODS["dpo"] = _METHODS["supervised"] | {"beta"}
_PATHS = (
    ("POST", "/files", "upload"),
    ("GET", "/files/<id>", "file"),
    ("POST", "/fine_tuning/jobs", "create"),
    ("GET", "/fine_tuning/jobs", "all"),
    ("GET", "/fine_tuning/jobs/<id>", "look"),
    ("GET", "/fine_tuning/jobs/<id>/events", "events"),
    ("GET", "/fine_tuning/jobs/<id>/checkpoints", "checkpoints"),
    ("POST", "/fine_tuning/jobs/<id>/cancel", "cancel"),
    ("POST", "/fine_tuning/jobs/<id>/pause", "pause"),
    ("POST", "/fine_tuning/jobs/<id>/resume", "resume"),
    ("POST", "/chat/completions", "chat"),
)


class OpenAIServer(HttpServer):
    """`train` is called with a job's file and its model's name, when the job succeeds. At Azure's paths a file is pending until
    it is looked at, then it runs, and is processed at its second look; or cannot be, for the reason `unread`."""

    routes = (
        *((verb, f"{base}{path}", name) for base in ("/v1", "/openai/v1") for verb, path, name in _PATHS),
        ("POST", "/openai/deployments/<model>/chat/completions", "chat"),
    )

    def __init__(self, polls: int | None = 2, failure: str = "", key: str | None = KEY) -> None:
        super().__init__(polls, failure)
        self.key = key  # type: ignore[assignment]
        self.files: dict[str, dict[str, Any]] = {}
        self.bodies: list[dict[str, Any]] = []  # of orders for jobs
        self.unread = ""
        self.train: Callable[[bytes, str], None] = lambda content, model: None
        self.url += "/v1"

    def allows(self, request: Request, name: str) -> bool:
        keys = {request.headers.get("Authorization"), f"Bearer {request.headers.get('api-key')}"}
        return self.key is None or f"Bearer {self.key}" in keys

    def refusal(self, request: Request, error: RefusedError) -> Response:
        kind = {"type": "invalid_request_error", "param": None, "code": error.code or None}
        return answer({"error": {"message": error.message, **kind}})

    def upload(self, request: Request) -> dict[str, Any]:
        if request.form["purpose"] != "fine-tune":
            raise RefusedError(400, "Invalid purpose")
        id, file = f"file-{len(self.files) + 1}", request.files["file"]
        content = file.read()
        status = "pending" if request.path.startswith("/openai/") else "processed"
        self.files[id] = {"content": content, "name": file.filename, "status": status}
        return self._described(id)

    def file(self, request: Request, id: str) -> dict[str, Any]:
        if id not in self.files:
            raise RefusedError(404, f"No such File object: {id}")
        read = "error" if self.unread else "processed"
        before = self.files[id]["status"]
        self.files[id]["status"] = {"pending": "running", "running": read}.get(before, before)
        return self._described(id)

    def _described(self, id: str) -> dict[str, Any]:
        file = self.files[id]
        return {
            "id": id, "object": "file", "bytes": len(file["content"]), "created_at": int(time.time()),
            "filename": file["name"], "purpose": "fine-tune", "status": file["status"], "status_details": self.unread or None,
        }  # fmt: skip

    def create(self, request: Request) -> dict[str, Any]:
        order = request.get_json()
        self.bodies.append(order)
        if order.get("training_file") not in self.files:
            raise RefusedError(400, f"invalid training_file: {order.get('training_file')}", "invalid_training_file")
        if any(self.files[order[name]]["status"] != "processed" for name in _FILES if order.get(name)):
            raise RefusedError(
                400, "The specified file reference must point to a completed file import.", "invalidPayload"
            )
        if not re.match(r"gpt-4|ft:|dspyc", order["model"]):
            raise RefusedError(400, f"Model {order['model']} is not available for fine-tuning", "model_not_available")
        kind = order["method"]["type"]
        unknown = set(order["method"][kind]["hyperparameters"]) - _METHODS[kind]
        if unknown:
            raise RefusedError(400, f"Unrecognized request argument supplied: {unknown}")
        id = f"ftjob-{len(self.jobs) + 1}"
        self.jobs[id] = {
            "id": id, "object": "fine_tuning.job", "created_at": int(time.time()), "model": order["model"],
            "training_file": order["training_file"], "validation_file": order.get("validation_file"),
            "status": "validating_files", "fine_tuned_model": None, "finished_at": None, "error": None,
            "hyperparameters": {"n_epochs": 3}, "organization_id": "org-x", "result_files": [],
            "seed": order.get("seed") or 1, "trained_tokens": None, "estimated_finish": None,
            "method": order["method"], "metadata": order.get("metadata"), "integrations": order.get("integrations"),
            "suffix": order.get("suffix"),
        }  # fmt: skip
        return self.jobs[id]

    def all(self, request: Request) -> dict[str, Any]:
        return _list(list(self.jobs.values())[::-1])

    def look(self, request: Request, id: str) -> dict[str, Any]:
        job = self._job(id)
        if job["status"] not in (*_OVER, "paused"):
            job["status"] = "running"
            if self.ended(job):
                self._end(job)
        return job

    def cancel(self, request: Request, id: str) -> dict[str, Any]:
        return self._change(id, "cancelled")

    def pause(self, request: Request, id: str) -> dict[str, Any]:
        return self._change(id, "paused")

    def resume(self, request: Request, id: str) -> dict[str, Any]:
        return self._change(id, "running")

    def events(self, request: Request, id: str) -> dict[str, Any]:
        self._job(id)
        metrics = {"step": 1, "train_loss": 1.5}
        found = [(2, "Step 1: training loss=1.5", "metrics", metrics), (1, "Created", "message", {})]
        return _list(
            [
                {"id": f"e{at}", "object": "fine_tuning.job.event", "created_at": at, "level": "info"}
                | {"message": message, "type": kind, "data": data}
                for at, message, kind, data in found
            ]
        )

    def checkpoints(self, request: Request, id: str) -> dict[str, Any]:
        point = {"id": "c1", "object": "fine_tuning.job.checkpoint", "created_at": 1, "fine_tuning_job_id": id}
        point |= {"fine_tuned_model_checkpoint": "ft:x:ckpt-step-1", "step_number": 1}
        return _list([{**point, "metrics": {"step": 1, "train_loss": 1.5}}])

    def _job(self, id: str) -> dict[str, Any]:
        if id not in self.jobs:
            raise RefusedError(404, f"Could not find fine tune: {id}", "fine_tune_not_found")
        return self.jobs[id]

    def _end(self, job: dict[str, Any]) -> None:
        if self.failure:
            job.update(status="failed", error={"code": "invalid_file", "message": self.failure, "param": None})
            return
        job.update(status="succeeded", fine_tuned_model=f"ft:{job['model']}:org:{job['suffix'] or ''}:{job['id']}")
        self.train(self.files[job["training_file"]]["content"], job["fine_tuned_model"])

    def _change(self, id: str, status: str) -> dict[str, Any]:
        job = self._job(id)
        if job["status"] in _OVER:
            raise RefusedError(400, f"Job has already completed: {id}")
        job["status"] = status
        return job


def _list(data: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": False}
