"""Bedrock's control plane on the loopback: routes, required members, patterns and enums from botocore's own service model.

    with BedrockServer() as server:
        server.url                                         # AWS_ENDPOINT_URL_BEDROCK; for calls, AWS_BEDROCK_RUNTIME_ENDPOINT
        server.jobs                                        # what was made, by ARN
        server.faults.append(Fault(429, "ThrottlingException"))   # the next request's answer
        server.stop_at = ("CreateModelCustomizationJob", 1)       # wait there, with `reached` set, for `go_on`

Jobs are stateful: each look brings one nearer to its end.
"""

import json
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from typing import Any

import botocore.session
from werkzeug.routing import Map, Rule
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

MODEL = botocore.session.get_session().get_service_model("bedrock")
ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012"
OPERATIONS = (
    "CreateModelCustomizationJob",
    "GetModelCustomizationJob",
    "StopModelCustomizationJob",
    "CreateCustomModelDeployment",
    "GetCustomModelDeployment",
    "DeleteCustomModelDeployment",
    "CreateProvisionedModelThroughput",
    "GetProvisionedModelThroughput",
    "DeleteProvisionedModelThroughput",
)


class RefusedError(Exception):
    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


@dataclass
class Fault:
    """One answer that is an error; `after`: the request is carried out all the same, and its answer is lost."""

    status: int
    code: str
    after: bool = False


class BedrockServer:
    """`polls`: looks at a job until it is over; `reason`: why jobs fail, if they do; `ready`: looks at an endpoint."""

    def __init__(self, polls: int = 2, reason: str | None = None, ready: int = 1) -> None:
        self.polls, self.reason, self.ready = polls, reason, ready
        self.jobs: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.faults: list[Fault] = []
        self.stop_at: tuple[str, int] | None = None  # an operation, and 0 before it or 1 after it: there requests wait
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._ids = count(1)
        self._lock = threading.Lock()
        routes = [(MODEL.operation_model(name).http, name) for name in OPERATIONS]
        self._map = Map(
            [
                Rule(re.sub(r"\{(\w+)\+?\}", r"<path:\1>", http["requestUri"]), methods=[http["method"]], endpoint=name)
                for http, name in routes
            ]
        )
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "BedrockServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        request = Request(environ)
        if request.path.endswith("/converse"):
            return self._converse(request)(environ, start)
        name = self._map.bind_to_environ(environ).match()[0]
        self._wait_here(name, 0)
        with self._lock:
            try:
                answer = self._answer(request, environ)
            except RefusedError as error:
                body = json.dumps({"message": error.message})
                answer = Response(body, error.status, {"x-amzn-ErrorType": error.code}, content_type="application/json")
        self._wait_here(name, 1)
        return answer(environ, start)

    def _converse(self, request: Request) -> Response:
        """The runtime, which answers where the model or endpoint is up."""
        arn = request.path.removeprefix("/model/").removesuffix("/converse")
        if arn not in self.endpoints:
            return Response('{"message": "The provided model identifier is invalid."}', 400)
        said = {"message": {"role": "assistant", "content": [{"text": f"tuned: {request.get_json()['messages'][-1]}"}]}}
        usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
        answer = {"output": said, "stopReason": "end_turn", "usage": usage, "metrics": {"latencyMs": 1}}
        return Response(json.dumps(answer), content_type="application/json")

    def _wait_here(self, name: str, when: int) -> None:
        if self.stop_at == (name, when):
            self.stop_at = None
            self.reached.set()
            self.go_on.wait(60)
            if when == 0:
                raise ConnectionAbortedError  # who asked is gone: the request never arrived

    def _answer(self, request: Request, environ: dict[str, Any]) -> Response:
        name, found = self._map.bind_to_environ(environ).match()
        self.calls.append(name)
        fault = self.faults.pop(0) if self.faults else None
        if fault and not fault.after:
            raise RefusedError(fault.code, "a fault that the test ordered", fault.status)
        operation = MODEL.operation_model(name)
        given = {**(request.get_json(silent=True) or {}), **found}
        if operation.input_shape:
            check(operation.input_shape, given)
        made = getattr(self, name)(given)
        if fault:
            raise RefusedError(fault.code, "the answer is lost", fault.status)
        if operation.output_shape:
            check(operation.output_shape, made)
        return Response(json.dumps(made), operation.http.get("responseCode", 200), content_type="application/json")

    def CreateModelCustomizationJob(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 (AWS's names)
        for arn, job in self.jobs.items():
            if job["clientRequestToken"] == given["clientRequestToken"]:
                return {"jobArn": arn}
        if any(job["jobName"] == given["jobName"] for job in self.jobs.values()):
            raise RefusedError("ConflictException", "The job name is in use")
        base = given["baseModelIdentifier"].rpartition("/")[2]
        if base.startswith("amazon.unknown"):
            raise RefusedError("ValidationException", "The provided model identifier is invalid")
        arn = f"{ACCOUNT}:model-customization-job/{base}/{next(self._ids):012d}"
        made = {"jobArn": arn, "status": "InProgress", "outputModelName": given["customModelName"], "looks": 0}
        times = {"creationTime": _now(), "baseModelArn": f"arn:aws:bedrock:us-east-1::foundation-model/{base}"}
        self.jobs[arn] = {"validationDataConfig": {"validators": []}} | given | made | times
        return {"jobArn": arn}

    def GetModelCustomizationJob(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        job = self._job(given["jobIdentifier"])
        job["looks"] += 1
        if job["status"] == "Stopping":
            job["status"] = "Stopped"
        elif job["status"] == "InProgress" and job["looks"] > self.polls:
            job["endTime"] = _now()
            if self.reason:
                job.update(status="Failed", failureMessage=self.reason)
            else:
                model = job["jobArn"].replace("model-customization-job", "custom-model")
                job.update(status="Completed", outputModelArn=model, trainingMetrics={"trainingLoss": 0.5})
        begun = "NotStarted" if job["looks"] < 2 else "InProgress"
        if "endTime" in job:
            begun = job["status"]
        job["statusDetails"] = {
            "validationDetails": {"status": "Completed", "lastModifiedTime": job["creationTime"]},
            "trainingDetails": {"status": begun, "lastModifiedTime": job.get("endTime", _now())},
        }
        hidden = ("looks", "jobTags", "customModelTags", "baseModelIdentifier", "customModelName")
        return {name: value for name, value in job.items() if name not in hidden}

    def StopModelCustomizationJob(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        job = self._job(given["jobIdentifier"])
        if job["status"] != "InProgress":
            raise RefusedError("ConflictException", "The job is not running")
        job["status"] = "Stopping"
        return {}

    def CreateCustomModelDeployment(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        arn = self._endpoint("custom-model-deployment", given)
        self.endpoints[arn] |= {"createdAt": datetime.now(timezone.utc).isoformat(), "customModelDeploymentArn": arn}
        return {"customModelDeploymentArn": arn}

    def GetCustomModelDeployment(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return self._endpoint_look(given["customModelDeploymentIdentifier"], "Active")

    def DeleteCustomModelDeployment(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return self._end(given["customModelDeploymentIdentifier"])

    def CreateProvisionedModelThroughput(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        arn, model = self._endpoint("provisioned-model", given), given["modelId"]
        base = f"arn:aws:bedrock:us-east-1::foundation-model/{model.split('/')[1]}"
        self.endpoints[arn] |= {
            "provisionedModelArn": arn,
            "desiredModelUnits": given["modelUnits"],
            "modelArn": model,
            "desiredModelArn": model,
            "foundationModelArn": base,
            "creationTime": _now(),
            "lastModifiedTime": _now(),
        }
        return {"provisionedModelArn": arn}

    def GetProvisionedModelThroughput(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return self._endpoint_look(given["provisionedModelId"], "InService")

    def DeleteProvisionedModelThroughput(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return self._end(given["provisionedModelId"])

    def _job(self, identifier: str) -> dict[str, Any]:
        found = next((job for job in self.jobs.values() if identifier in (job["jobArn"], job["jobName"])), None)
        if found is None:
            raise RefusedError("ResourceNotFoundException", "There is no such job", 404)
        return found

    def _endpoint(self, kind: str, given: dict[str, Any]) -> str:
        for arn, endpoint in self.endpoints.items():
            if endpoint["clientRequestToken"] == given["clientRequestToken"]:
                return arn
        arn = f"{ACCOUNT}:{kind}/{next(self._ids):012d}"
        self.endpoints[arn] = {**given, "status": "Creating", "looks": 0}
        return arn

    def _endpoint_look(self, arn: str, ready: str) -> dict[str, Any]:
        if arn not in self.endpoints:
            raise RefusedError("ResourceNotFoundException", "There is no such endpoint", 404)
        endpoint = self.endpoints[arn]
        endpoint["looks"] += 1
        endpoint["status"] = ready if endpoint["looks"] > self.ready else "Creating"
        hidden = ("looks", "clientRequestToken", "modelId")
        return {name: value for name, value in endpoint.items() if name not in hidden}

    def _end(self, arn: str) -> dict[str, Any]:
        if self.endpoints.pop(arn, None) is None:
            raise RefusedError("ResourceNotFoundException", "There is no such endpoint", 404)
        return {}


def check(shape: Any, value: Any, path: str = "") -> None:
    """Raises where a value is not what the service model says."""
    limits = shape.metadata
    if shape.type_name == "structure":
        for name in shape.required_members:
            if name not in value:
                raise RefusedError("ValidationException", f"missing {path}.{name}")
        for name, inner in value.items():
            if name not in shape.members:
                raise RefusedError("ValidationException", f"unknown {path}.{name}")
            check(shape.members[name], inner, f"{path}.{name}")
    elif shape.type_name == "list":
        for inner in value:
            check(shape.member, inner, path)
    elif shape.type_name == "map":
        for inner in value.values():
            check(shape.value, inner, path)
    elif shape.type_name == "string":
        if not isinstance(value, str):
            raise RefusedError("SerializationException", f"{path} is no text: {value!r}")
        if shape.enum and value not in shape.enum:
            raise RefusedError("ValidationException", f"{path}: {value!r} is none of {shape.enum}")
        if limits.get("pattern") and not re.fullmatch(limits["pattern"], value):
            raise RefusedError("ValidationException", f"{path}: {value!r} does not match its pattern")
        if not limits.get("min", 0) <= len(value) <= limits.get("max", len(value)):
            raise RefusedError("ValidationException", f"{path}: {value!r} is too long or too short")


def _now() -> float:
    return time.time()
