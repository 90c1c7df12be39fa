"""A Databricks workspace on the loopback: files, the workspace's own folder, runs, Unity Catalog's aliases and serving.

with DatabricksServer() as server:
    server.url                                         # DATABRICKS_HOST
    server.files, server.runs, server.endpoints        # what was made
"""

import json
import threading
from collections.abc import Iterable
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

TOKEN = "dapi-canary-5f1d9c30"


class DatabricksServer:
    """`polls`: looks at a run until it is over; `failure`: why runs fail, if they do; `faults`: statuses to answer next."""

    def __init__(self, polls: int = 2, failure: str | None = None) -> None:
        self.polls, self.failure = polls, failure
        self.files: dict[str, bytes] = {}
        self.runs: dict[int, dict[str, Any]] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.finetunes: list[dict[str, Any]] = []
        self.has_retired = True  # whether Foundation Model Fine-tuning still answers
        self.faults: list[int] = []
        self.calls: list[str] = []
        self._map = Map(
            [
                Rule("/api/2.0/fs/files/<path:path>", methods=["PUT"], endpoint="put_file"),
                Rule("/api/2.0/preview/scim/v2/Me", methods=["GET"], endpoint="me"),
                Rule("/api/2.0/workspace/mkdirs", methods=["POST"], endpoint="nothing"),
                Rule("/api/2.0/workspace/import", methods=["POST"], endpoint="put_script"),
                Rule("/api/2.2/jobs/runs/submit", methods=["POST"], endpoint="submit"),
                Rule("/api/2.2/jobs/runs/get", methods=["GET"], endpoint="run"),
                Rule("/api/2.2/jobs/runs/cancel", methods=["POST"], endpoint="cancel"),
                Rule("/api/2.1/unity-catalog/models/<name>/aliases/<alias>", methods=["GET"], endpoint="alias"),
                Rule("/api/2.1/unity-catalog/models/<name>/versions", methods=["GET"], endpoint="versions"),
                Rule("/api/2.0/genai-mapi/graphql", methods=["POST"], endpoint="retired"),
                Rule("/api/2.0/serving-endpoints", methods=["POST"], endpoint="serve"),
                Rule("/api/2.0/serving-endpoints/<name>", methods=["GET"], endpoint="endpoint"),
                Rule("/api/2.0/serving-endpoints/<name>", methods=["DELETE"], endpoint="end"),
            ]
        )
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "DatabricksServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        request = Request(environ)
        try:
            name, found = self._map.bind_to_environ(environ).match()
            answer = self._answer(request, name, found)
        except HTTPException as error:
            answer = refused(error.code or 500, "NOT_FOUND", error.description or "")
        return answer(environ, start)

    def _answer(self, request: Request, name: str, found: dict[str, Any]) -> Response:
        self.calls.append(name)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return refused(401, "UNAUTHENTICATED", "Invalid access token")
        if self.faults:
            return refused(self.faults.pop(0), "TEMPORARILY_UNAVAILABLE", "a fault that the test ordered")
        made = getattr(self, name)(request, **found)
        return made if isinstance(made, Response) else Response(json.dumps(made), content_type="application/json")

    def put_file(self, request: Request, path: str) -> Response:
        self.files[f"/{path}"] = request.get_data()
        return Response(status=204)

    def me(self, request: Request) -> dict[str, Any]:
        return {"userName": "me@example.com"}

    def nothing(self, request: Request) -> dict[str, Any]:
        return {}

    def put_script(self, request: Request) -> dict[str, Any]:
        self.files[request.form["path"]] = request.files["content"].read()
        return {}

    def submit(self, request: Request) -> dict[str, Any]:
        asked = request.get_json()
        for number, run in self.runs.items():
            if run["idempotency_token"] == asked["idempotency_token"]:
                return {"run_id": number}
        number = len(self.runs) + 101
        self.runs[number] = {**asked, "looks": 0, "life": "PENDING", "result": None}
        return {"run_id": number}

    def run(self, request: Request) -> dict[str, Any] | Response:
        number = int(request.args["run_id"])
        if number not in self.runs:
            return refused(404, "RESOURCE_DOES_NOT_EXIST", "There is no such run")
        run = self.runs[number]
        run["looks"] += 1
        if run["looks"] > self.polls and run["result"] is None:
            run.update(life="TERMINATED", result="FAILED" if self.failure else "SUCCESS")
        elif run["result"] is None:
            run["life"] = "RUNNING" if run["looks"] > 1 else "PENDING"
        state = {"life_cycle_state": run["life"], "state_message": self.failure or ""}
        return {"run_id": number, "state": state | ({"result_state": run["result"]} if run["result"] else {})}

    def cancel(self, request: Request) -> dict[str, Any]:
        self.runs[int(request.get_json()["run_id"])].update(life="TERMINATED", result="CANCELED")
        return {}

    def alias(self, request: Request, name: str, alias: str) -> dict[str, Any] | Response:
        """The training script registers the model under the run's token."""
        if not any(run["result"] == "SUCCESS" and run["idempotency_token"] == alias for run in self.runs.values()):
            return refused(404, "RESOURCE_DOES_NOT_EXIST", f"There is no alias {alias} of {name}")
        return {"version": 3}

    def versions(self, request: Request, name: str) -> dict[str, Any]:
        return {"model_versions": [{"version": 1}, {"version": 2}]}

    def retired(self, request: Request) -> dict[str, Any]:
        """The GraphQL service of Foundation Model Fine-tuning, by its functions."""
        asked = request.get_json()
        if not self.has_retired:
            return {"errors": [{"message": "This feature has reached its end of life"}]}
        if "createFinetune(" in asked["query"]:
            details = asked["variables"]["createFinetuneData"]
            self.finetunes.append(
                {"name": f"ift-{len(self.finetunes)}", "status": "PENDING", "details": details, "looks": 0}
            )
            return {"data": {"createFinetune": self.finetunes[-1]}}
        if "stopFinetunes(" in asked["query"]:
            (name,) = asked["variables"]["getFinetunesData"]["filters"]["name"]["in"]
            stopped = [run for run in self.finetunes if run["name"] == name]
            for run in stopped:
                run["status"] = "STOPPED"
            return {"data": {"stopFinetunes": stopped}}
        for run in self.finetunes:
            run["looks"] += 1
            if run["status"] in ("PENDING", "RUNNING"):
                run["status"] = "COMPLETED" if run["looks"] > self.polls else "RUNNING"
        return {"data": {"getFinetunesPaginated": {"finetunes": self.finetunes}}}

    def serve(self, request: Request) -> dict[str, Any]:
        asked = request.get_json()
        self.endpoints[asked["name"]] = {**asked, "looks": 0}
        return {"name": asked["name"]}

    def endpoint(self, request: Request, name: str) -> dict[str, Any] | Response:
        if name not in self.endpoints:
            return refused(404, "RESOURCE_DOES_NOT_EXIST", "There is no such endpoint")
        self.endpoints[name]["looks"] += 1
        ready = self.endpoints[name]["looks"] > 1
        state = {
            "ready": "READY" if ready else "NOT_READY",
            "config_update": "NOT_UPDATING" if ready else "IN_PROGRESS",
        }
        return {"name": name, "state": state}

    def end(self, request: Request, name: str) -> dict[str, Any] | Response:
        if self.endpoints.pop(name, None) is None:
            return refused(404, "RESOURCE_DOES_NOT_EXIST", "There is no such endpoint")
        return {}


def refused(status: int, code: str, message: str) -> Response:
    body = json.dumps({"error_code": code, "message": message})
    return Response(body, status, content_type="application/json")
