"""Fireworks' datasets, supervised fine-tuning jobs, endpoints and chat, at its published routes, of the account "me"."""

from typing import Any

from werkzeug.wrappers import Request

from .http_server import HttpServer, RefusedError

_ACCOUNT = "/v1/accounts/me"
_JOBS = f"{_ACCOUNT}/supervisedFineTuningJobs"


class FireworksServer(HttpServer):
    """`datasets` and `endpoints`: what was made, by its id. `ready`: looks at a deployment after which it is up."""

    routes = (
        ("GET", "/v1/accounts", "accounts"),
        ("POST", f"{_ACCOUNT}/datasets", "make_dataset"),
        ("POST", f"{_ACCOUNT}/datasets/<id>:upload", "upload"),
        ("GET", f"{_ACCOUNT}/datasets/<id>", "dataset"),
        ("POST", _JOBS, "create"),
        ("GET", f"{_JOBS}/<id>", "look"),
        ("POST", f"{_JOBS}/<id>:cancel", "cancel"),
        ("POST", f"{_ACCOUNT}/deployments", "deploy"),
        ("GET", f"{_ACCOUNT}/deployments/<id>", "deployment"),
        ("DELETE", f"{_ACCOUNT}/deployments/<id>", "end"),
        ("POST", "/inference/v1/chat/completions", "chat"),
    )

    def __init__(self, polls: int | None = 2, failure: str = "", ready: int = 1) -> None:
        super().__init__(polls, failure)
        self.ready = ready
        self.datasets: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}

    def accounts(self, request: Request) -> dict[str, Any]:
        return {"accounts": [{"name": "accounts/me"}]}

    def make_dataset(self, request: Request) -> dict[str, Any]:
        asked = request.get_json()
        if asked["datasetId"] in self.datasets:
            raise RefusedError(409, "it exists")
        self.datasets[asked["datasetId"]] = {**asked["dataset"], "state": "UPLOADING"}
        return {}

    def upload(self, request: Request, id: str) -> dict[str, Any]:
        if self.datasets[id]["state"] != "UPLOADING":
            raise RefusedError(400, f"dataset {id} has its rows already")
        rows = request.files["file"].read().decode().splitlines()
        assert len(rows) == int(self.datasets[id]["exampleCount"])
        self.datasets[id].update(state="READY", rows=rows)
        return {}

    def dataset(self, request: Request, id: str) -> dict[str, Any]:
        return {"state": self.datasets[id]["state"]}

    def create(self, request: Request) -> dict[str, Any]:
        asked, id = request.get_json(), request.args["supervisedFineTuningJobId"]
        if id in self.jobs:
            raise RefusedError(409, "it exists")
        if asked["baseModel"].rpartition("/")[2] == "unknown":
            raise RefusedError(400, f"model {asked['baseModel']} is not tunable")
        name = f"accounts/me/supervisedFineTuningJobs/{id}"
        self.jobs[id] = {**asked, "name": name, "state": "JOB_STATE_CREATING"}
        return self.jobs[id]

    def look(self, request: Request, id: str) -> dict[str, Any]:
        job = self._job(id)
        if job["state"] != "JOB_STATE_CANCELLED" and self.ended(job):
            job["state"] = "JOB_STATE_FAILED" if self.failure else "JOB_STATE_COMPLETED"
            job["status"] = {"code": "OK", "message": self.failure}
        return job

    def cancel(self, request: Request, id: str) -> dict[str, Any]:
        self._job(id)["state"] = "JOB_STATE_CANCELLED"
        return {}

    def deploy(self, request: Request) -> dict[str, Any]:
        id = request.args["deploymentId"]
        if id in self.endpoints:
            raise RefusedError(409, "it exists")
        self.endpoints[id] = {**request.get_json(), "looks": 0}
        return {}

    def deployment(self, request: Request, id: str) -> dict[str, Any]:
        found = self._endpoint(id)
        found["looks"] += 1
        return {"state": found.get("state") or ("READY" if found["looks"] > self.ready else "CREATING")}

    def end(self, request: Request, id: str) -> dict[str, Any]:
        found = self._endpoint(id)
        if request.args.get("ignoreChecks") != "true":
            raise RefusedError(400, "the deployment is in use")
        if request.args.get("hard") == "true":
            del self.endpoints[id]
        else:
            found["state"] = "DELETED"
        return {}

    def _endpoint(self, id: str) -> dict[str, Any]:
        if id not in self.endpoints:
            raise RefusedError(404, "there is none")
        return self.endpoints[id]

    def _job(self, id: str) -> dict[str, Any]:
        if id not in self.jobs:
            raise RefusedError(404, f"There is no job {id}")
        return self.jobs[id]
