"""Google on the loopback: sign-in, Cloud Storage, Vertex AI's tuning jobs of the project "p", and Gemini's answers."""

from typing import Any

from werkzeug.wrappers import Request

from .http_server import HttpServer, RefusedError

_PROJECT = "projects/p/locations/us-central1"
_JOBS = f"/v1beta1/{_PROJECT}/tuningJobs"


class VertexServer(HttpServer):
    """`objects`: what is in Cloud Storage, by its address. There is one bucket, "rows"."""

    routes = (
        ("POST", "/token", "sign_in"),
        ("POST", "/upload/storage/v1/b/<bucket>/o", "put"),
        ("POST", _JOBS, "create"),
        ("GET", _JOBS, "all"),
        ("GET", f"{_JOBS}/<id>", "look"),
        ("POST", f"{_JOBS}/<id>:cancel", "cancel"),
        ("POST", f"/v1/{_PROJECT}/publishers/google/models/<model>:generateContent", "generate"),
        ("POST", f"/v1/{_PROJECT}/endpoints/<model>:generateContent", "generate"),
    )

    def __init__(self, polls: int | None = 2, failure: str = "") -> None:
        super().__init__(polls, failure)
        self.objects: dict[str, str] = {}

    def account(self) -> dict[str, str]:
        """What the file of Google's application default credentials holds."""
        where = {"type": "external_account_authorized_user", "audience": "test", "token_url": f"{self.url}/token"}
        return {**where, "client_id": "me", "client_secret": f"{self.key}-secret", "refresh_token": f"{self.key}-token"}

    def allows(self, request: Request, name: str) -> bool:
        return name == "sign_in" or super().allows(request, name)

    def sign_in(self, request: Request) -> dict[str, Any]:
        return {"access_token": self.key, "expires_in": 3600, "token_type": "Bearer"}

    def put(self, request: Request, bucket: str) -> dict[str, Any]:
        if bucket != "rows":
            raise RefusedError(404, "The specified bucket does not exist.")
        self.objects[f"gs://{bucket}/{request.args['name']}"] = request.get_data().decode()
        return {}

    def create(self, request: Request) -> dict[str, Any]:
        asked, id = request.get_json(), str(700 + len(self.jobs))
        if asked["baseModel"] == "unknown":
            raise RefusedError(400, f"Base model {asked['baseModel']} is not supported")
        self.jobs[id] = {**asked, "name": f"{_JOBS}/{id}".removeprefix("/v1beta1/"), "state": "JOB_STATE_PENDING"}
        return self._shown(self.jobs[id])

    def all(self, request: Request) -> dict[str, Any]:
        return {"tuningJobs": [self._shown(job) for job in self.jobs.values()]}

    def look(self, request: Request, id: str) -> dict[str, Any]:
        job = self._job(id)
        if job["state"] in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
            if not self.ended(job):
                job["state"] = "JOB_STATE_RUNNING"
            elif self.failure:
                job.update(state="JOB_STATE_FAILED", error={"code": 3, "message": self.failure})
            else:
                job.update(state="JOB_STATE_SUCCEEDED", tunedModel={"endpoint": f"{_PROJECT}/endpoints/99"})
        return self._shown(job)

    def cancel(self, request: Request, id: str) -> dict[str, Any]:
        self._job(id)["state"] = "JOB_STATE_CANCELLED"
        return {}

    def generate(self, request: Request, model: str) -> dict[str, Any]:
        """`reply` gets the model with Gemini's own members of the request."""
        said = {"role": "model", "parts": [{"text": self.reply({"model": model, **request.get_json()})}]}
        usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
        return {"candidates": [{"content": said, "finishReason": "STOP", "index": 0}], "usageMetadata": usage}

    def _job(self, id: str) -> dict[str, Any]:
        if id not in self.jobs:
            raise RefusedError(404, f"There is no tuning job {id}", "NOT_FOUND")
        return self.jobs[id]

    @staticmethod
    def _shown(job: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in job.items() if name != "looks"}
