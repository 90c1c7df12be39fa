"""Together's files, fine-tunes and chat, at its published routes."""

from typing import Any

from werkzeug.wrappers import Request

from .http_server import HttpServer, RefusedError


class TogetherServer(HttpServer):
    """`files`: what was uploaded, by its id."""

    routes = (
        ("POST", "/v1/files/upload", "upload"),
        ("POST", "/v1/fine-tunes", "create"),
        ("GET", "/v1/fine-tunes", "all"),
        ("GET", "/v1/fine-tunes/<id>", "look"),
        ("GET", "/v1/fine-tunes/<id>/events", "events"),
        ("POST", "/v1/fine-tunes/<id>/cancel", "cancel"),
        ("POST", "/v1/chat/completions", "chat"),
    )

    def __init__(self, polls: int | None = 2, failure: str = "") -> None:
        super().__init__(polls, failure)
        self.files: dict[str, str] = {}

    def upload(self, request: Request) -> dict[str, Any]:
        assert (request.form["purpose"], request.form["file_type"]) == ("fine-tune", "jsonl")
        id = f"file-{len(self.files)}"
        self.files[id] = request.files["file"].read().decode()
        return {"id": id, "filename": request.form["file_name"]}

    def create(self, request: Request) -> dict[str, Any]:
        asked = request.get_json()
        if asked["training_file"] not in self.files:
            raise RefusedError(400, "no such file")
        if asked["model"].startswith("unknown/"):
            raise RefusedError(400, f"Model {asked['model']} is not available for fine-tuning")
        id = f"ft-{len(self.jobs)}"
        self.jobs[id] = {"id": id, "status": "pending", **asked}
        return self.jobs[id]

    def all(self, request: Request) -> dict[str, Any]:
        return {"data": list(self.jobs.values())}

    def look(self, request: Request, id: str) -> dict[str, Any]:
        job = self._job(id)
        if job["status"] in ("pending", "running"):
            ended = "error" if self.failure else "completed"
            job["status"] = ended if self.ended(job) else "running"
        if job["status"] == "completed":
            job["x_model_output_name"] = f"me/{job['model'].rpartition('/')[2]}-{job.get('suffix', 'tuned')}"
        return {**job, "events": self.events(request, id)["data"]}

    def events(self, request: Request, id: str) -> dict[str, Any]:
        self._job(id)
        last = [{"message": self.failure, "created_at": "2026-11-21T12:01:00Z"}] if self.failure else []
        return {"data": [{"message": "Fine tune request created", "created_at": "2026-11-21T12:00:00Z"}, *last]}

    def cancel(self, request: Request, id: str) -> dict[str, Any]:
        self._job(id)["status"] = "cancelled"
        return {"data": []}

    def _job(self, id: str) -> dict[str, Any]:
        if id not in self.jobs:
            raise RefusedError(404, f"There is no fine-tune {id}")
        return self.jobs[id]
