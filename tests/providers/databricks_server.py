"""A Databricks workspace: files, the workspace's own folder, runs, Unity Catalog's aliases, serving and its chat."""

from typing import Any

from werkzeug.wrappers import Request, Response

from .http_server import HttpServer, RefusedError, answer

TOKEN = "dapi-canary-5f1d9c30"
_NAMES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    429: "REQUEST_LIMIT_EXCEEDED",
}


class DatabricksServer(HttpServer):
    """`files` and `endpoints`: what was made. `jobs`: runs, by their number. `ready`: looks at an endpoint after which it is
    up."""

    key = TOKEN
    routes = (
        ("PUT", "/api/2.0/fs/files/<path:path>", "put_file"),
        ("GET", "/api/2.0/fs/files/<path:path>", "get_file"),
        ("GET", "/api/2.0/preview/scim/v2/Me", "me"),
        ("POST", "/api/2.0/workspace/mkdirs", "nothing"),
        ("POST", "/api/2.0/workspace/import", "put_script"),
        ("POST", "/api/2.2/jobs/runs/submit", "create"),
        ("GET", "/api/2.2/jobs/runs/get", "look"),
        ("POST", "/api/2.2/jobs/runs/cancel", "cancel"),
        ("GET", "/api/2.1/unity-catalog/models/<name>/aliases/<alias>", "alias"),
        ("POST", "/api/2.0/serving-endpoints", "serve"),
        ("GET", "/api/2.0/serving-endpoints/<name>", "endpoint"),
        ("DELETE", "/api/2.0/serving-endpoints/<name>", "end"),
        ("POST", "/serving-endpoints/chat/completions", "chat"),
    )

    def __init__(self, polls: int | None = 2, failure: str = "", ready: int = 1) -> None:
        super().__init__(polls, failure)
        self.ready = ready
        self.files: dict[str, bytes] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}

    def refusal(self, request: Request, error: RefusedError) -> Response:
        code = error.code or _NAMES.get(error.status, "TEMPORARILY_UNAVAILABLE")
        return answer({"error_code": code, "message": error.message})

    def put_file(self, request: Request, path: str) -> Response:
        if path.startswith("Volumes/main/missing/"):
            raise RefusedError(404, "Volume 'main.missing.tuning' does not exist.")
        self.files[f"/{path}"] = request.get_data()
        return Response(status=204)

    def get_file(self, request: Request, path: str) -> Response:
        if f"/{path}" not in self.files:
            raise RefusedError(404, f"The file /{path} does not exist.")
        return Response(self.files[f"/{path}"], content_type="application/octet-stream")

    def me(self, request: Request) -> dict[str, Any]:
        return {"userName": "me@example.com"}

    def nothing(self, request: Request) -> dict[str, Any]:
        return {}

    def put_script(self, request: Request) -> dict[str, Any]:
        self.files[request.form["path"]] = request.files["content"].read()
        return {}

    def create(self, request: Request) -> dict[str, Any]:
        asked = request.get_json()
        for number, run in self.jobs.items():
            if run["idempotency_token"] == asked["idempotency_token"]:
                return {"run_id": number}
        number = len(self.jobs) + 101
        self.jobs[number] = {**asked, "life": "PENDING", "result": None}
        return {"run_id": number}

    def look(self, request: Request) -> dict[str, Any]:
        number = int(request.args["run_id"])
        run = self._run(number)
        if run["result"] is None:
            run["life"] = "RUNNING" if run.get("looks") else "PENDING"
            if self.ended(run):
                run.update(life="TERMINATED", result="FAILED" if self.failure else "SUCCESS")
        state = {"life_cycle_state": run["life"], "state_message": self.failure}
        times = {"start_time": 1_790_000_000_000} | ({"end_time": 1_790_000_060_000} if run["result"] else {})
        return {"run_id": number, "state": state | ({"result_state": run["result"]} if run["result"] else {}), **times}

    def cancel(self, request: Request) -> dict[str, Any]:
        self._run(int(request.get_json()["run_id"])).update(life="TERMINATED", result="CANCELED")
        return {}

    def alias(self, request: Request, name: str, alias: str) -> dict[str, Any]:
        """The training script registers the model under the run's token."""
        if not any(run["result"] == "SUCCESS" and run["idempotency_token"] == alias for run in self.jobs.values()):
            raise RefusedError(404, f"There is no alias {alias} of {name}")
        return {"version": 3}

    def serve(self, request: Request) -> dict[str, Any]:
        asked = request.get_json()
        if asked["name"] in self.endpoints:
            raise RefusedError(400, f"Endpoint {asked['name']} already exists.", "RESOURCE_ALREADY_EXISTS")
        self.endpoints[asked["name"]] = {**asked, "looks": 0}
        return {"name": asked["name"]}

    def endpoint(self, request: Request, name: str) -> dict[str, Any]:
        found = self._endpoint(name)
        found["looks"] += 1
        ready = found["looks"] > self.ready
        state = {
            "ready": "READY" if ready else "NOT_READY",
            "config_update": "NOT_UPDATING" if ready else "IN_PROGRESS",
        }
        return {"name": name, "state": state}

    def end(self, request: Request, name: str) -> dict[str, Any]:
        self._endpoint(name)
        del self.endpoints[name]
        return {}

    def _run(self, number: int) -> dict[str, Any]:
        if number not in self.jobs:
            raise RefusedError(404, "There is no such run")
        return self.jobs[number]

    def _endpoint(self, name: str) -> dict[str, Any]:
        if name not in self.endpoints:
            raise RefusedError(404, "There is no such endpoint")
        return self.endpoints[name]
