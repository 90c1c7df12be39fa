"""Bedrock's control plane and Converse: routes, required members, patterns and enums from botocore's own service model; and S3,
which is moto's.

    with BedrockServer() as server:
        server.url                                         # AWS_ENDPOINT_URL, and AWS_BEDROCK_RUNTIME_ENDPOINT for calls
        server.jobs, server.endpoints                      # what was made, by ARN
        server.fail(CREATE, 429, code="ThrottlingException")

Jobs are stateful: each look brings one nearer to its end.
"""

import re
import time
from datetime import datetime, timezone
from functools import cache
from io import BytesIO
from itertools import count
from typing import Any

import botocore.session
from werkzeug.wrappers import Request, Response

from .http_server import HttpServer, RefusedError, answer

MODEL = botocore.session.get_session().get_service_model("bedrock")
ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012"
CREATE, LOOK, UPLOAD = "POST /model-customization-jobs", "GET /model-customization-jobs", "PUT /rows-bucket/"
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
_CODES = {401: "UnrecognizedClientException", 403: "AccessDeniedException", 429: "ThrottlingException"}


class BedrockServer(HttpServer):
    """`ready`: looks at an endpoint after which it is up. Whatever the requests are signed with is taken."""

    routes = (
        *(
            (http["method"], re.sub(r"\{(\w+)\+?\}", r"<path:\1>", http["requestUri"]), name)
            for name in OPERATIONS
            for http in (MODEL.operation_model(name).http,)
        ),
        ("POST", "/model/<path:arn>/converse", "converse"),
    )

    def __init__(self, polls: int | None = 2, failure: str = "", ready: int = 1) -> None:
        super().__init__(polls, failure)
        self.ready = ready
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.reply = lambda request: f"tuned: {request['messages'][-1]}"
        self._ids = count(1)

    def allows(self, request: Request, name: str) -> bool:
        return True

    def refusal(self, request: Request, error: RefusedError) -> Response:
        code = error.code or _CODES.get(error.status, "InternalServerException")
        if request.path.startswith(UPLOAD.partition(" ")[2]):
            said = f"<Error><Code>{code}</Code><Message>{error.message}</Message></Error>"
            return Response(said, content_type="application/xml")
        return Response(answer({"message": error.message}).data, headers={"x-amzn-ErrorType": code})

    def other(self, request: Request) -> Response:
        return Response.from_app(_s3(), {**request.environ, "wsgi.input": BytesIO(request.get_data())})

    def converse(self, request: Request, arn: str) -> dict[str, Any]:
        """The runtime: base models, and endpoints that are up. `reply` gets the model with Converse's members."""
        if arn.startswith("arn:") and arn not in self.endpoints:
            raise RefusedError(400, "The provided model identifier is invalid.", "ValidationException")
        text = self.reply({"model": arn, **request.get_json()})
        said = {"message": {"role": "assistant", "content": [{"text": text}]}}
        usage = {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}
        return {"output": said, "stopReason": "end_turn", "usage": usage, "metrics": {"latencyMs": 1}}

    def carry_out(self, name: str, request: Request, found: dict[str, Any]) -> Any:
        """Requests and answers are held to the service model."""
        if name not in OPERATIONS:
            return super().carry_out(name, request, found)
        operation = MODEL.operation_model(name)
        given = {**(request.get_json(silent=True) or {}), **found}
        if operation.input_shape:
            check(operation.input_shape, given)
        made = getattr(self, name)(given)
        if operation.output_shape:
            check(operation.output_shape, made)
        return answer(made, operation.http.get("responseCode", 200))

    def CreateModelCustomizationJob(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 (AWS's names)
        for arn, job in self.jobs.items():
            if job["clientRequestToken"] == given["clientRequestToken"]:
                return {"jobArn": arn}
        if any(job["jobName"] == given["jobName"] for job in self.jobs.values()):
            raise RefusedError(400, "The job name is in use", "ConflictException")
        base = given["baseModelIdentifier"].rpartition("/")[2]
        if "unknown" in base:
            raise RefusedError(400, "The provided model identifier is invalid", "ValidationException")
        arn = f"{ACCOUNT}:model-customization-job/{base}/{next(self._ids):012d}"
        made = {"jobArn": arn, "status": "InProgress", "outputModelName": given["customModelName"]}
        times = {"creationTime": _now(), "baseModelArn": f"arn:aws:bedrock:us-east-1::foundation-model/{base}"}
        self.jobs[arn] = {"validationDataConfig": {"validators": []}} | given | made | times
        return {"jobArn": arn}

    def GetModelCustomizationJob(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        job = self._job(given["jobIdentifier"])
        if job["status"] == "Stopping":
            job["status"] = "Stopped"
        elif job["status"] == "InProgress" and self.ended(job):
            job["endTime"] = _now()
            if self.failure:
                job.update(status="Failed", failureMessage=self.failure)
            else:
                model = job["jobArn"].replace("model-customization-job", "custom-model")
                job.update(status="Completed", outputModelArn=model, trainingMetrics={"trainingLoss": 0.5})
        begun = "NotStarted" if job.get("looks", 0) < 2 else "InProgress"
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
            raise RefusedError(400, "The job is not running", "ConflictException")
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
            raise RefusedError(404, "There is no such job", "ResourceNotFoundException")
        return found

    def _endpoint(self, kind: str, given: dict[str, Any]) -> str:
        for arn, endpoint in self.endpoints.items():
            if endpoint["clientRequestToken"] == given["clientRequestToken"]:
                return arn
        arn = f"{ACCOUNT}:{kind}/{next(self._ids):012d}"
        self.endpoints[arn] = {**given, "status": "Creating", "looks": 0}
        return arn

    def _endpoint_look(self, identifier: str, ready: str) -> dict[str, Any]:
        endpoint = self.endpoints[self._endpoint_arn(identifier)]
        endpoint["looks"] += 1
        endpoint["status"] = ready if endpoint["looks"] > self.ready else "Creating"
        hidden = ("looks", "clientRequestToken", "modelId")
        return {name: value for name, value in endpoint.items() if name not in hidden}

    def _end(self, identifier: str) -> dict[str, Any]:
        del self.endpoints[self._endpoint_arn(identifier)]
        return {}

    def _endpoint_arn(self, identifier: str) -> str:
        """Of an endpoint by its ARN or its name."""
        for arn, made in self.endpoints.items():
            if identifier in (arn, made.get("modelDeploymentName"), made.get("provisionedModelName")):
                return arn
        raise RefusedError(404, "There is no such endpoint", "ResourceNotFoundException")


def check(shape: Any, value: Any, path: str = "") -> None:
    """Raises where a value is not what the service model says."""
    limits = shape.metadata
    if shape.type_name == "structure":
        for name in shape.required_members:
            if name not in value:
                raise RefusedError(400, f"missing {path}.{name}", "ValidationException")
        for name, inner in value.items():
            if name not in shape.members:
                raise RefusedError(400, f"unknown {path}.{name}", "ValidationException")
            check(shape.members[name], inner, f"{path}.{name}")
    elif shape.type_name == "list":
        for inner in value:
            check(shape.member, inner, path)
    elif shape.type_name == "map":
        for inner in value.values():
            check(shape.value, inner, path)
    elif shape.type_name == "string":
        if not isinstance(value, str):
            raise RefusedError(400, f"{path} is no text: {value!r}", "SerializationException")
        if shape.enum and value not in shape.enum:
            raise RefusedError(400, f"{path}: {value!r} is none of {shape.enum}", "ValidationException")
        if limits.get("pattern") and not re.fullmatch(limits["pattern"], value):
            raise RefusedError(400, f"{path}: {value!r} does not match its pattern", "ValidationException")
        if not limits.get("min", 0) <= len(value) <= limits.get("max", len(value)):
            raise RefusedError(400, f"{path}: {value!r} is too long or too short", "ValidationException")


def _now() -> float:
    return time.time()


@cache
def _s3() -> Any:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    return DomainDispatcherApplication(create_backend_app)
