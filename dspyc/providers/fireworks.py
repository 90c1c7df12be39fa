"""Fireworks: a dataset, a supervised fine-tuning job and a deployment over HTTP.
https://docs.fireworks.ai/fine-tuning/fine-tuning-via-api and https://docs.fireworks.ai/api-reference

lm = LM("fireworks_ai/accounts/fireworks/models/qwen3-8b")
job = lm.finetune(rows, TrainDataFormat.CHAT, {"epochs": 3, "start_endpoint": True})
tuned = job.result()                                   # behind a deployment of its own, paid by the hour
job.stop_endpoint()
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, ProviderError
from .faults import MissingError, TakenError
from .remote import JobStatus, Look, Order, RemoteProvider
from .rest import Rest, given
from .rows import Formatter
from .rows.fireworks import FIREWORKS
from .store import JobRecord

logger = logging.getLogger(__name__)

_ADDRESS = "https://api.fireworks.ai"
_STATUS = {
    "JOB_STATE_CREATING": JobStatus.pending,
    "JOB_STATE_PENDING": JobStatus.pending,
    "JOB_STATE_VALIDATING": JobStatus.validating,
    "JOB_STATE_PAUSED": JobStatus.paused,
    "JOB_STATE_COMPLETED": JobStatus.succeeded,
    "JOB_STATE_CANCELLED": JobStatus.cancelled,
    "JOB_STATE_FAILED": JobStatus.failed,
    "JOB_STATE_EXPIRED": JobStatus.failed,
}
_NAMES = {
    "epochs": "epochs",
    "learning_rate": "learningRate",
    "lora_rank": "loraRank",
    "batch_size": "batchSize",
    "max_context_length": "maxContextLength",
    "early_stop": "earlyStop",
}


class FireworksProvider(RemoteProvider):
    """Supervised fine-tuning jobs. The job's, dataset's and model's ids are ours, so that nothing is made twice."""

    name = "fireworks"
    secret = ("api_key",)
    credentials = "Set FIREWORKS_API_KEY, or pass api_key to dspyc.LM: it stays in memory."
    allowed = (*_NAMES, "start_endpoint", "account_id")
    most_bytes = 150 * 2**20  # https://docs.fireworks.ai/api-reference/upload-dataset-files

    def check_settings(self, model: str, settings: Mapping[str, Any]) -> None:
        if not isinstance(settings.get("start_endpoint"), bool):
            raise ConfigError(
                "Fireworks serves tuned models by deployments, which cost by the GPU hour until `job.stop_endpoint()`.",
                hint="Pass start_endpoint=True to have one started after training, or False to train alone.",
            )

    def formatter(self, order: Order) -> Formatter:
        return FIREWORKS

    def epochs(self, settings: Mapping[str, Any]) -> float:
        return float(settings.get("epochs", 1))

    def upload(self, order: Order, record: JobRecord) -> None:
        rest, account, name = self._rest, self._account(record), record.token
        path = f"/v1/{account}/datasets/{name}"
        for fact, content in self.unsent(order, record):
            described = {"datasetId": name, "dataset": {"userUploaded": {}, "exampleCount": str(len(order.rows))}}
            try:
                rest.ask("making a dataset", "POST", f"/v1/{account}/datasets", json=described)
            except TakenError:
                logger.info("The dataset %s was made before.", name)
            rest.ask("uploading the rows", "POST", f"{path}:upload", files={"file": (f"{name}.jsonl", content)})
            self._until_ready(path, f"The dataset {name}")
            self.keep(record, **{fact: path.removeprefix("/v1/")})

    def find(self, order: Order, record: JobRecord) -> str | None:
        try:
            name = f"{self._account(record)}/supervisedFineTuningJobs/{record.token}"
            return str(self._rest.ask("looking for the job", "GET", f"/v1/{name}")["name"])
        except MissingError:
            return None

    def create(self, order: Order, record: JobRecord) -> str:
        account = self._account(record)
        wanted = {
            "displayName": record.id,
            "dataset": record.facts["train"],
            "baseModel": order.model.removeprefix("fireworks_ai/"),
            "outputModel": f"{account}/models/{record.token}",
        }
        path, name = f"/v1/{account}/supervisedFineTuningJobs", {"supervisedFineTuningJobId": record.token}
        made = self._rest.ask(
            "starting the job", "POST", path, params=name, json={**wanted, **given(order.settings, _NAMES)}
        )
        return str(made["name"])

    def look(self, record: JobRecord) -> Look:
        found = self._rest.ask("looking at the job", "GET", f"/v1/{record.remote_id}")
        status = _STATUS.get(found["state"], JobStatus.running)
        return Look(status, model=found.get("outputModel"), error=(found.get("status") or {}).get("message") or None)

    def stop(self, record: JobRecord) -> None:
        self._rest.ask("cancelling the job", "POST", f"/v1/{record.remote_id}:cancel", json={})

    def serve(self, record: JobRecord, model: str) -> str:
        self.keep(record, model=model)
        if record.settings["start_endpoint"]:
            return self.start_endpoint(record)
        logger.warning("%s can be called after `job.start_endpoint()` alone.", model)
        return f"fireworks_ai/{model}"

    def start_endpoint(self, record: JobRecord) -> str:
        """A deployment of the tuned model's own; returns when it is ready.

        Raises:
            ProviderError: There is no model yet, Fireworks refused, or the deployment failed.
        """
        if "model" not in record.facts:
            raise ProviderError(f"Job {record.id} has no model yet.", hint="Wait for its end: `job.result()`.")
        path, model = f"/v1/{self._account(record)}/deployments", record.facts["model"]
        try:
            asked = {"baseModel": model, "displayName": record.id}
            self._rest.ask("deploying the model", "POST", path, params={"deploymentId": record.token}, json=asked)
            logger.warning("Started a deployment of %s: paid by the GPU hour until `job.stop_endpoint()`.", model)
        except TakenError:
            logger.info("The deployment %s was made before.", record.token)
        self._until_ready(f"{path}/{record.token}", f"The deployment {record.token}")
        return f"fireworks_ai/{model}#{self._account(record)}/deployments/{record.token}"

    def stop_endpoint(self, record: JobRecord) -> None:
        """End the deployment, and its cost; none is no error."""
        try:
            self._rest.ask("ending it", "DELETE", f"/v1/{self._account(record)}/deployments/{record.token}")
        except MissingError:
            logger.info("The deployment %s was gone already.", record.token)

    def _until_ready(self, path: str, what: str) -> None:
        def ready() -> bool:
            found = self._rest.ask(f"looking at {what}", "GET", path)
            if found["state"] == "FAILED":
                reason = (found.get("status") or {}).get("message")
                raise ProviderError(f"{what} failed: {reason or 'Fireworks gives no reason'}")
            return bool(found["state"] == "READY")

        self.wait_until(ready, what)

    def _account(self, record: JobRecord) -> str:
        """`accounts/<id>`: the one that is named, or the only one that the key has."""
        named = record.settings.get("account_id") or os.environ.get("FIREWORKS_ACCOUNT_ID")
        if "account" not in record.facts:
            found = f"accounts/{named}" if named else self._only_account()
            self.keep(record, account=found)
        return str(record.facts["account"])

    def _only_account(self) -> str:
        accounts = self._rest.ask("looking for the account", "GET", "/v1/accounts").get("accounts") or []
        if len(accounts) != 1:
            raise ConfigError(
                f"The key has {len(accounts)} accounts.",
                hint="Say which one: pass account_id, or set FIREWORKS_ACCOUNT_ID.",
            )
        return str(accounts[0]["name"])

    @property
    def _rest(self) -> Rest:
        address = os.environ.get("FIREWORKS_API_URL") or _ADDRESS  # not api_base, which is where models are called
        key = self.secrets.get("api_key") or os.environ.get("FIREWORKS_API_KEY")
        return Rest("Fireworks", address, key, self.credentials)
