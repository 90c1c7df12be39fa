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
from typing import Any, ClassVar

from ..errors import ConfigError, ProviderError, TransientError
from .faults import MissingError, TakenError
from .remote import JobStatus, Look, Order, RemoteProvider
from .rest import Rest, given
from .rows import Formatter
from .rows.fireworks import FIREWORKS
from .settings import check_rate, check_whole_setting
from .store import JobRecord

logger = logging.getLogger(__name__)

_VARIABLES = {"address": "FIREWORKS_API_URL", "account": "FIREWORKS_ACCOUNT_ID"}
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
_DELETED = ("DELETING", "DELETED")  # where it may stay for long
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
    # No api_base, which is where models are called.
    usual: ClassVar[Mapping[str, Any]] = {"address": "https://api.fireworks.ai"}
    addresses = ("address",)
    secret = ("api_key",)
    variables = ("FIREWORKS_API_KEY",)
    credentials = "Set FIREWORKS_API_KEY, or pass api_key to dspyc.LM: it stays in memory."
    allowed = (*_NAMES, "start_endpoint", "account_id")
    serving = ("start_endpoint",)
    placing = ("account_id",)

    @classmethod
    def environment(cls) -> dict[str, Any]:
        return {name: os.environ[variable] for name, variable in _VARIABLES.items() if os.environ.get(variable)}

    def place(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        named = {"account": settings["account_id"]} if settings.get("account_id") else {}
        return {**super().place(settings), **named}

    def check_settings(self, model: str, settings: Mapping[str, Any]) -> None:
        if not isinstance(settings.get("start_endpoint"), bool):
            raise ConfigError(
                "Fireworks serves tuned models by deployments, which cost by the GPU hour until `job.stop_endpoint()`.",
                hint="Pass start_endpoint=True to have one started after training, or False to train alone.",
            )
        for name in ("epochs", "batch_size", "max_context_length"):
            check_whole_setting(settings, name)
        check_whole_setting(settings, "lora_rank", least=0)  # whether 0 is of use is the server's to say
        check_rate(settings, "learning_rate")

    def formatter(self, order: Order) -> Formatter:
        return FIREWORKS

    def epochs(self, settings: Mapping[str, Any]) -> float:
        return float(settings.get("epochs") or 1)

    def upload(self, order: Order, record: JobRecord) -> None:
        rest, account, name = self._rest, self._account(record), record.token
        path = f"/v1/{account}/datasets/{name}"
        for fact, content in self.unsent(order, record):
            described = {"datasetId": name, "dataset": {"userUploaded": {}, "exampleCount": str(len(order.rows))}}
            empty = True
            try:
                rest.ask("making a dataset", "POST", f"/v1/{account}/datasets", json=described)
            except TakenError:
                logger.info("The dataset %s was made before.", name)
                empty = rest.ask("looking at the dataset", "GET", path)["state"] == "UPLOADING"
            if empty:
                rest.ask("uploading the rows", "POST", f"{path}:upload", files={"file": (f"{name}.jsonl", content)})
            self._until_ready(path, f"The dataset {name}")
            self.keep(record, **{fact: path.removeprefix("/v1/")})

    def find(self, order: Order, record: JobRecord) -> str | None:
        """By our id. `create` would say that it is taken, unless it looks at the account's quota or credits first."""
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
        asked = {**wanted, **given(order.settings, _NAMES)}
        try:
            return str(self._rest.ask("starting the job", "POST", path, params=name, json=asked)["name"])
        except TakenError:
            logger.info("The job %s was started by a request whose answer was lost.", record.token)
        return f"{path.removeprefix('/v1/')}/{record.token}"

    def look(self, record: JobRecord) -> Look:
        found = self._rest.ask("looking at the job", "GET", f"/v1/{record.remote_id}")
        status = _STATUS.get(str(found["state"]), JobStatus.running)
        return Look(status, model=found.get("outputModel"), error=found.one("status").get("message") or None)

    def stop(self, record: JobRecord) -> None:
        self._rest.ask("cancelling the job", "POST", f"/v1/{record.remote_id}:cancel", json={})

    def serve(self, record: JobRecord, model: str) -> str:
        self.keep(record, model=model)
        if record.settings["start_endpoint"]:
            return self.start_endpoint(record)
        if record.facts.get("endpoint"):
            return self._called(record)  # it was started since
        logger.warning("%s can be called after `job.start_endpoint()` alone.", model)
        return f"fireworks_ai/{model}"

    def start_endpoint(self, record: JobRecord) -> str:
        """A deployment of the tuned model's own; returns when it is ready.

        Raises:
            ProviderError: There is no model yet, Fireworks refused, or the deployment failed.
        """
        self.reread(record)
        if "model" not in record.facts:
            look = self.look(record)
            if look.model is None or look.status is not JobStatus.succeeded:
                raise ProviderError(f"Job {record.id} has no model yet.", hint="Wait for its end: `job.result()`.")
            self.keep(record, model=look.model)
        if record.facts.get("endpoint") and self._is_gone(record):
            logger.warning("The deployment %s is not there any more: another is started.", record.facts["endpoint"])
            self.keep(record, endpoint=None)
        if not record.facts.get("endpoint"):
            self._deploy(record)
        another = "Another deployment is started by `job.stop_endpoint()` and then `job.start_endpoint()`."
        self._until_ready(f"/v1/{self._deployment(record)}", f"The deployment {record.facts['endpoint']}", another)
        return self._called(record)

    def stop_endpoint(self, record: JobRecord) -> None:
        """End the deployment, and its cost, though it is in use; none is no error."""
        self.reread(record)
        if not record.facts.get("endpoint"):
            return
        forced = {"ignoreChecks": True, "hard": True}
        try:
            self._rest.ask("ending it", "DELETE", f"/v1/{self._deployment(record)}", params=forced)
        except MissingError:
            logger.info("The deployment %s was gone already.", record.facts["endpoint"])
        self.keep(record, endpoint=None)

    def _deploy(self, record: JobRecord) -> None:
        """Each has a number, for Fireworks still knows the id of one that was deleted, and is kept before it is asked for."""
        number, model = record.facts.get("endpoints", 0) + 1, record.facts["model"]
        name = f"{record.token}-e{number}"
        self.keep(record, endpoint=name, endpoints=number)
        path, asked = f"/v1/{self._account(record)}/deployments", {"baseModel": model, "displayName": record.id}
        try:
            self._rest.ask("deploying the model", "POST", path, params={"deploymentId": name}, json=asked)
        except TakenError:
            logger.info("The deployment %s was made by another process.", name)
        except ProviderError as error:
            if not isinstance(error, TransientError):
                self.keep(record, endpoint=None)  # Fireworks refused: there is none
            raise
        else:
            logger.warning("Started a deployment of %s: paid by the GPU hour until `job.stop_endpoint()`.", model)

    def _is_gone(self, record: JobRecord) -> bool:
        try:
            found = self._rest.ask("looking at the deployment", "GET", f"/v1/{self._deployment(record)}")
        except MissingError:
            return True
        return found["state"] in _DELETED

    def _deployment(self, record: JobRecord) -> str:
        return f"{self._account(record)}/deployments/{record.facts['endpoint']}"

    def _called(self, record: JobRecord) -> str:
        return f"fireworks_ai/{record.facts['model']}#{self._deployment(record)}"

    def _until_ready(self, path: str, what: str, hint: str = "") -> None:
        def ready() -> bool:
            found = self._rest.ask(f"looking at {what}", "GET", path)
            if found["state"] in ("FAILED", *_DELETED):
                reason = found.one("status").get("message")
                raise ProviderError(f"{what} is {found['state']}: {reason or 'Fireworks gives no reason'}", hint=hint)
            return bool(found["state"] == "READY")

        self.wait_until(ready, what)

    def _account(self, record: JobRecord) -> str:
        """`accounts/<id>`: the one that is named, or the only one that the key has."""
        named = record.settings.get("account_id") or self.connection.get("account")
        if "account" not in record.facts:
            found = f"accounts/{named}" if named else self._only_account()
            self.keep(record, account=found)
        return str(record.facts["account"])

    def _only_account(self) -> str:
        accounts = self._rest.ask("looking for the account", "GET", "/v1/accounts").all("accounts")
        if len(accounts) != 1:
            raise ConfigError(
                f"The key has {len(accounts)} accounts.",
                hint="Say which one: pass account_id, or set FIREWORKS_ACCOUNT_ID.",
            )
        return str(accounts[0]["name"])

    @property
    def _rest(self) -> Rest:
        return Rest("Fireworks", str(self.connection["address"]), self.key(), self.credentials)
