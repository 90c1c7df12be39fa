"""AWS Bedrock: rows to S3, a model customization job, and an endpoint that calls its model.

lm = LM("bedrock/amazon.nova-lite-v1")
job = lm.finetune(rows, TrainDataFormat.CHAT, {"s3_path": "s3://bucket/folder/", "role_arn": "arn:aws:iam::…:role/…"})
tuned = job.result()                                   # bedrock/converse/<ARN of a deployment>
job.stop_endpoint()                                    # ends what costs money
"""

import io
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import ProviderError, TransientError
from . import aws
from .bedrock_settings import BedrockSettings, job_name, model_name, read_settings
from .faults import MissingError, TakenError
from .remote import JobEvent, JobStatus, Look, Order, RemoteProvider
from .rows import Formatter
from .store import JobRecord

logger = logging.getLogger(__name__)

_STATUS = {
    "InProgress": JobStatus.running,
    "Stopping": JobStatus.running,
    "Completed": JobStatus.succeeded,
    "Failed": JobStatus.failed,
    "Stopped": JobStatus.cancelled,
}
_STEPS = ("validationDetails", "dataProcessingDetails", "trainingDetails")
_READY = ("Active", "InService")


class BedrockProvider(RemoteProvider):
    """Model customization jobs. `train_kwargs` are those of `bedrock_settings.read_settings`."""

    name = "bedrock"
    connects = ("aws_profile_name", "aws_region_name")
    secret = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    credentials = aws.CREDENTIALS
    allowed = (
        "s3_path",
        "role_arn",
        "hyperparameters",
        "job_name",
        "aws_profile",
        "aws_region",
        "start_endpoint",
        "model_units",
        "commitment",
        "tags",
    )
    serving = ("start_endpoint", "model_units", "commitment", "tags", "aws_profile", "role_arn")
    placing = ("aws_region",)
    validates = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        aws.quieten()
        self._clients: dict[tuple[str, str | None, str | None], Any] = {}

    def place(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        named = {"aws_region_name": settings["aws_region"]} if settings.get("aws_region") else {}
        return {**super().place(settings), **named}

    def check_settings(self, model: str, settings: Mapping[str, Any]) -> None:
        read_settings(model, settings)

    def formatter(self, order: Order) -> Formatter:
        return read_settings(order.model, order.settings).family.formatter

    def epochs(self, settings: Mapping[str, Any]) -> float:
        return float((settings.get("hyperparameters") or {}).get("epochCount") or 3)

    def upload(self, order: Order, record: JobRecord) -> None:
        told = read_settings(order.model, order.settings)
        self.keep(record, role_arn=told.role_arn)  # another process may not have the variable that named it
        for name, content in self.unsent(order, record):
            key = f"{_folder(told, record)}/{name}.jsonl"
            s3 = self._client("s3", told)
            aws.ask(s3.upload_fileobj, Fileobj=io.BytesIO(content), Bucket=told.bucket, Key=key)
            self.keep(record, **{name: f"s3://{told.bucket}/{key}"})

    def find(self, order: Order, record: JobRecord) -> str | None:
        told = read_settings(order.model, order.settings)
        try:
            found = self._job(record, job_name(told.job_name or told.base, record.token))
        except MissingError:
            return None
        return str(found["jobArn"]) if found.get("clientRequestToken") in (None, record.token) else None

    def create(self, order: Order, record: JobRecord) -> str:
        told = read_settings(order.model, order.settings)
        tags = [{"key": key, "value": value} for key, value in {**told.tags, "dspyc-job": record.id}.items()]
        validation = record.facts.get("validation")
        called = told.job_name or told.base
        made = aws.ask(
            self._client("bedrock", told).create_model_customization_job,
            jobName=job_name(called, record.token),
            customModelName=model_name(called, record.token),
            roleArn=told.role_arn,
            clientRequestToken=record.token,
            baseModelIdentifier=told.base,
            customizationType="FINE_TUNING",
            trainingDataConfig={"s3Uri": record.facts["train"]},
            outputDataConfig={"s3Uri": f"s3://{told.bucket}/{_folder(told, record)}/output/"},
            hyperParameters=told.hyperparameters,
            jobTags=tags,
            customModelTags=tags,
            **({"validationDataConfig": {"validators": [{"s3Uri": validation}]}} if validation else {}),
        )
        return str(made["jobArn"])

    def look(self, record: JobRecord) -> Look:
        found = self._job(record)
        status = _STATUS.get(found["status"], JobStatus.running)
        begun = (found.get("statusDetails") or {}).get("trainingDetails", {}).get("status", "InProgress")
        if status is JobStatus.running and begun == "NotStarted":
            status = JobStatus.validating
        return Look(status, model=found.get("outputModelArn"), error=found.get("failureMessage"))

    def stop(self, record: JobRecord) -> None:
        try:
            aws.ask(self._bedrock(record).stop_model_customization_job, jobIdentifier=record.remote_id)
        except TakenError:
            logger.info("Job %s was over before it could be stopped.", record.id)

    def events(self, record: JobRecord) -> list[JobEvent]:
        found = self._job(record)
        made = [JobEvent(found["creationTime"].timestamp(), "created")]
        for step in _STEPS:
            details = (found.get("statusDetails") or {}).get(step) or {}
            if details.get("lastModifiedTime"):
                text = f"{step.removesuffix('Details')}: {details.get('status')}"
                made.append(JobEvent(details["lastModifiedTime"].timestamp(), text))
        if found.get("endTime"):
            level = "error" if found["status"] == "Failed" else "info"
            text = f"{found['status']} {found.get('failureMessage') or ''}".strip()
            made.append(JobEvent(found["endTime"].timestamp(), text, level))
        return sorted(made, key=lambda event: event.at)

    def metrics(self, record: JobRecord) -> dict[str, Any]:
        found = self._job(record)
        validation = found.get("validationMetrics") or []
        return dict(found.get("trainingMetrics") or {}) | ({"validation": validation} if validation else {})

    def serve(self, record: JobRecord, model: str) -> str:
        self.keep(record, model_arn=model)
        if _of(record).start_endpoint:
            return self.start_endpoint(record)
        if _is_arn(record.facts.get("endpoint")):
            return f"bedrock/converse/{record.facts['endpoint']}"  # it was started since
        logger.warning("%s can be called after `job.start_endpoint()` alone.", model)
        return f"bedrock/converse/{model}"

    def served(self, record: JobRecord) -> dict[str, Any]:
        told = _of(record)
        profile = {"aws_profile_name": told.aws_profile} if told.aws_profile else {}
        return {"aws_region_name": told.aws_region} | profile

    def start_endpoint(self, record: JobRecord) -> str:
        """A deployment on demand where the model can have one, else provisioned throughput; returns when it can be called.

        Raises:
            ProviderError: There is no model yet, AWS refused, or the endpoint failed or did not come up.
        """
        self.reread(record)
        told = _of(record)
        if "model_arn" not in record.facts:
            found = self._job(record).get("outputModelArn")
            if not found:
                raise ProviderError(f"Job {record.id} has no model yet.", hint="Wait for its end: `job.wait()`.")
            self.keep(record, model_arn=found)
        if _is_arn(record.facts.get("endpoint")):
            try:
                self._endpoint(told, record)
            except MissingError:
                logger.warning("%s was deleted at AWS: another is started.", record.facts["endpoint"])
                self.keep(record, endpoint=None)
        if not _is_arn(record.facts.get("endpoint")):
            self._create_endpoint(told, record)
        self._wait_for_endpoint(told, record)
        return f"bedrock/converse/{record.facts['endpoint']}"

    def stop_endpoint(self, record: JobRecord) -> None:
        """End the endpoint, and its cost; none is no error. The model itself stays, and can be served again."""
        self.reread(record)
        endpoint, client = record.facts.get("endpoint"), self._bedrock(record)
        if not endpoint:
            return
        try:
            if _of(record).family.on_demand:
                aws.ask(client.delete_custom_model_deployment, customModelDeploymentIdentifier=endpoint)
            else:
                aws.ask(client.delete_provisioned_model_throughput, provisionedModelId=endpoint)
        except MissingError:
            logger.info("The endpoint %s was gone already.", endpoint)
        self.keep(record, endpoint=None)

    def _create_endpoint(self, told: BedrockSettings, record: JobRecord) -> None:
        """Each start has a token and a name of its own, kept before AWS is asked: one that is asked twice makes one endpoint,
        and one whose answer never came is ended by its name."""
        client, model = self._client("bedrock", told), record.facts["model_arn"]
        unanswered = record.facts.get("endpoint") is not None
        number = record.facts.get("endpoints", 0) + (not unanswered)
        token = f"{record.token}-e{number}"
        name = model_name(told.job_name or told.base, token)
        self.keep(record, endpoint=name, endpoints=number)
        try:
            if told.family.on_demand:
                made = aws.ask(
                    client.create_custom_model_deployment,
                    modelDeploymentName=name,
                    modelArn=model,
                    clientRequestToken=token,
                )
                endpoint = made["customModelDeploymentArn"]
                cost = "Calls are paid by the token; idle, it costs nothing."
            else:
                made = aws.ask(
                    client.create_provisioned_model_throughput,
                    provisionedModelName=name,
                    modelId=model,
                    modelUnits=told.model_units,
                    clientRequestToken=token,
                    **({"commitmentDuration": told.commitment} if told.commitment else {}),
                )
                bound = f", for {told.commitment} at least" if told.commitment else ""
                paid = f"{told.model_units} model unit(s) are paid by the hour{bound}"
                endpoint = made["provisionedModelArn"]
                cost = f"{paid}, used or not, until `job.stop_endpoint()`."
        except ProviderError as error:
            if not (unanswered or isinstance(error, TransientError)):
                self.keep(record, endpoint=None)  # AWS refused: there is none
            raise
        self.keep(record, endpoint=endpoint)
        logger.warning("Started %s. %s Storing the custom model costs by the month.", endpoint, cost)

    def _wait_for_endpoint(self, told: BedrockSettings, record: JobRecord) -> None:
        endpoint = record.facts["endpoint"]

        def ready() -> bool:
            found = self._endpoint(told, record)
            if found["status"] == "Failed":
                self.keep(record, endpoint=None)
                raise ProviderError(f"{endpoint} failed: {found.get('failureMessage') or 'AWS gives no reason'}")
            return found["status"] in _READY

        self.wait_until(ready, endpoint)

    def _endpoint(self, told: BedrockSettings, record: JobRecord) -> Any:
        endpoint, client = record.facts["endpoint"], self._client("bedrock", told)
        if told.family.on_demand:
            return aws.ask(client.get_custom_model_deployment, customModelDeploymentIdentifier=endpoint)
        return aws.ask(client.get_provisioned_model_throughput, provisionedModelId=endpoint)

    def _job(self, record: JobRecord, identifier: str | None = None) -> Any:
        return aws.ask(self._bedrock(record).get_model_customization_job, jobIdentifier=identifier or record.remote_id)

    def _bedrock(self, record: JobRecord) -> Any:
        return self._client("bedrock", _of(record))

    def _client(self, service: str, told: BedrockSettings) -> Any:
        """Made once for a service and place: boto3 reads its descriptions anew for each."""
        profile = told.aws_profile or self.connection.get("aws_profile_name")
        place = (service, profile, told.aws_region or self.connection.get("aws_region_name"))
        if place not in self._clients:
            self._clients[place] = aws.client(*place, self.secrets)
        return self._clients[place]


def _of(record: JobRecord) -> BedrockSettings:
    """What the job was told; where it is, its ARN says, whatever region this process is in."""
    told = read_settings(record.model, {"role_arn": record.facts.get("role_arn"), **record.settings})
    return replace(told, aws_region=record.remote_id.split(":")[3]) if record.remote_id else told


def _folder(told: BedrockSettings, record: JobRecord) -> str:
    return "/".join(part for part in (told.prefix, record.token) if part)


def _is_arn(endpoint: str | None) -> bool:
    """Whether AWS answered when the endpoint was asked for; until then it has a name alone."""
    return endpoint is not None and endpoint.startswith("arn:")
