"""OpenAI, and every server that speaks its fine-tuning protocol: `LM("openai/…", api_base=…)`."""

import logging
import os
from collections.abc import Mapping
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from dspy.clients.utils_finetune import TrainDataFormat

from ..errors import ConfigError, ProviderError
from . import openai_settings
from .costs import CostEstimate, estimate_cost
from .faults import retry_after
from .openai_client import Asker, make_client
from .remote import JobEvent, JobStatus, Look, Order, RemoteProvider
from .rows import Formatter, formatter
from .rows.preferences import PREFERENCES
from .store import JobRecord

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

_STATUSES = {
    "validating_files": JobStatus.validating,
    "queued": JobStatus.pending,
    "pending": JobStatus.pending,  # Azure's word
    "running": JobStatus.running,
    "paused": JobStatus.paused,
    "succeeded": JobStatus.succeeded,
    "failed": JobStatus.failed,
    "cancelled": JobStatus.cancelled,
    "canceled": JobStatus.cancelled,
}
_ACCOUNT = {"organization": "OPENAI_ORG_ID", "project": "OPENAI_PROJECT_ID"}  # which the SDK would read by itself
_METADATA_KEY = "dspyc"
_MOST_LISTED = 1000  # jobs that are looked through for one of ours
_MOST_EVENTS = 10_000
_IMPORTING = ("pending", "running")  # a file's status at Azure; elsewhere a job itself waits for its files
_UNUSABLE = ("error", "deleting", "deleted")
_CLOSED = (
    "OpenAI itself takes no new fine-tuning customers since 2026-05-07 and no new jobs from 2027-01-06; models that were tuned "
    "go on until their base retires. Elsewhere the same rows train at Azure OpenAI ('azure/…'), Bedrock, Databricks, Together, "
    "Fireworks and Vertex, at any server that speaks the protocol (`api_base`), or on this machine (dspyc.LocalLM)."
)


class OpenAIProvider(RemoteProvider):
    """Supervised fine-tuning and direct preference optimization through files and jobs."""

    name: ClassVar[str] = "openai"
    connects: ClassVar[tuple[str, ...]] = ("api_base",)
    usual: ClassVar[Mapping[str, Any]] = {"api_base": "https://api.openai.com/v1"}
    secret: ClassVar[tuple[str, ...]] = ("api_key",)
    variables: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)
    credentials: ClassVar[str] = "Set OPENAI_API_KEY, or pass api_key to dspyc.LM: it stays in memory."
    allowed: ClassVar[tuple[str, ...]] = openai_settings.SETTINGS
    validates: ClassVar[bool] = True
    timeout: ClassVar[float] = 60.0  # seconds without a byte from the server
    owned_files: ClassVar[bool] = True
    marks: ClassVar[bool] = True  # whether jobs get metadata of ours

    @classmethod
    def environment(cls) -> dict[str, Any]:
        found = os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_BASE")
        account = {name: os.environ[variable] for name, variable in _ACCOUNT.items() if os.environ.get(variable)}
        return {**({"api_base": found} if found else {}), **account}

    def connected(self, connection: Mapping[str, Any]) -> dict[str, Any]:
        """The organization and the project are OpenAI's own: no other server is told."""
        found = super().connected(connection)
        here = found.get("api_base") == self.usual.get("api_base")
        return {name: value for name, value in found.items() if here or name not in _ACCOUNT}

    def check_settings(self, model: str, settings: Mapping[str, Any]) -> None:
        openai_settings.check(settings)

    def formatter(self, order: Order) -> Formatter:
        if order.format not in (TrainDataFormat.CHAT, TrainDataFormat.COMPLETION):
            raise ConfigError(
                f"The training data's format is {order.format.value!r}; {self.name} trains on chat or completion rows."
            )
        return PREFERENCES if openai_settings.method_type(order.settings) == "dpo" else formatter(self.name)

    def epochs(self, settings: Mapping[str, Any]) -> float:
        given = openai_settings.hyperparameters(settings).get("n_epochs", "auto")
        return 3 if given == "auto" else float(given)

    def estimate(self, order: Order) -> CostEstimate:
        priced = self.name if self._is_openai() else ""  # other servers have other prices
        return estimate_cost(self.sent(order, order.rows), priced, order.model, self.epochs(order.settings))

    def upload(self, order: Order, record: JobRecord) -> None:
        for fact, content in self.unsent(order, record):
            self.keep(record, **{fact: self._send(f"{record.token}-{fact}.jsonl", content)})

    def find(self, order: Order, record: JobRecord) -> str | None:
        """By our file, which no other job has."""
        hint = (
            "A job may have been started before its answer was lost: look there, and cancel it or wait for its model."
        )
        ours, file = self._client.fine_tuning.jobs, record.facts.get("train")
        return self._ask.ask(
            "looking for the job that was begun",
            lambda: next(
                (job.id for job in islice(ours.list(limit=100), _MOST_LISTED) if job.training_file == file), None
            ),
            hint,
        )

    def create(self, order: Order, record: JobRecord) -> str:
        s = order.settings
        wanted: dict[str, Any] = {
            "model": base_name(order.model),
            "training_file": record.facts["train"],
            "validation_file": record.facts.get("validation"),
            "method": openai_settings.method(s),
            "suffix": s.get("suffix"),
            "seed": s.get("seed"),
            "integrations": s.get("integrations"),
        }
        mark = {_METADATA_KEY: record.token} if self.marks else {}
        wanted["metadata"] = {**(s.get("metadata") or {}), **mark} or None
        given = {name: value for name, value in wanted.items() if value is not None}
        job = self._ask.ask(
            f"starting a job for {base_name(order.model)}",
            lambda: self._client.fine_tuning.jobs.create(**given, extra_headers={"Idempotency-Key": record.token}),
            _CLOSED if self._is_openai() else "",
        )
        return _id(job, self.name)

    def look(self, record: JobRecord) -> Look:
        answer = self._ask.ask(
            f"looking at job {record.remote_id}",
            lambda: self._client.fine_tuning.jobs.with_raw_response.retrieve(str(record.remote_id)),
        )
        job = self._ask.ask("reading the job", answer.parse)
        _id(job, self.name)
        told = getattr(job, "status", None)
        status = _STATUSES.get(str(told))
        if status is None:
            logger.warning("%s has status %r, which is not known here: it counts as running.", job.id, told)
            status = JobStatus.running
        failure = getattr(job, "error", None)
        reason, code = getattr(failure, "message", None), getattr(failure, "code", None)
        error = f"{reason} ({code})" if reason and code else reason
        return Look(status, getattr(job, "fine_tuned_model", None), error, retry_after(answer.headers))

    def stop(self, record: JobRecord) -> None:
        self._ask.ask(
            f"cancelling job {record.remote_id}", lambda: self._client.fine_tuning.jobs.cancel(str(record.remote_id))
        )

    def pause(self, record: JobRecord) -> None:
        self._ask.ask(
            f"pausing job {record.remote_id}", lambda: self._client.fine_tuning.jobs.pause(str(record.remote_id))
        )

    def resume(self, record: JobRecord) -> None:
        self._ask.ask(
            f"resuming job {record.remote_id}", lambda: self._client.fine_tuning.jobs.resume(str(record.remote_id))
        )

    def events(self, record: JobRecord) -> list[JobEvent]:
        found = self._ask.ask(
            f"reading the events of job {record.remote_id}",
            lambda: [
                JobEvent(e.created_at, e.message, e.level, _object(e.data))
                for e in islice(
                    self._client.fine_tuning.jobs.list_events(str(record.remote_id), limit=100), _MOST_EVENTS
                )
            ],
        )
        found.reverse()
        return sorted(found, key=lambda event: event.at)  # stable: what has one second keeps its order

    def metrics(self, record: JobRecord) -> dict[str, Any]:
        """`steps`: what was measured at each; `checkpoints`: with the model that each one is."""
        found = self._ask.ask(
            f"reading the checkpoints of job {record.remote_id}",
            lambda: [
                {
                    "step": c.step_number,
                    "model": c.fine_tuned_model_checkpoint,
                    **c.metrics.model_dump(exclude_none=True),
                }
                for c in islice(
                    self._client.fine_tuning.jobs.checkpoints.list(str(record.remote_id), limit=100), _MOST_LISTED
                )
            ],
        )
        steps = [event.data for event in self.events(record) if "train_loss" in event.data]
        return {"steps": steps, "checkpoints": sorted(found, key=lambda c: c["step"])}

    def serve(self, record: JobRecord, model: str) -> str:
        return f"openai/{model}"

    def address(self) -> str:
        """The server's base address. The SDK is always told: it reads variables of its own."""
        return str(self.connection["api_base"])

    @cached_property
    def _client(self) -> "openai.OpenAI":
        account = {name: self.connection.get(name) for name in _ACCOUNT}
        return make_client(self.address(), self.key(), self.timeout, self.credentials, **account)

    @cached_property
    def _ask(self) -> Asker:
        return Asker(
            "OpenAI" if self._is_openai() else self.address(), self.credentials, tuple(filter(None, (self.key(),)))
        )

    def _is_openai(self) -> bool:
        return self.address() == self.usual.get("api_base")

    def _send(self, name: str, content: bytes) -> str:
        """The id of the uploaded file, once it is imported: Azure refuses a job on one that is not."""
        file = self._ask.ask(
            "uploading the rows", lambda: self._client.files.create(file=(name, content), purpose="fine-tune")
        )
        id = _id(file, self.name)
        if not _is_imported(file):
            self.wait_until(lambda: _is_imported(self._file(id)), f"The file {id}")
        return id

    def _file(self, id: str) -> Any:
        return self._ask.ask(f"looking at file {id}", lambda: self._client.files.retrieve(id))


def base_name(model: str) -> str:
    """The model as the server knows it: without DSPy's prefix."""
    return model.partition("/")[2] if model.startswith(("openai/", "azure/")) else model


def _id(job: Any, server: str) -> str:
    found = getattr(job, "id", None)
    if not isinstance(found, str) or not found:
        raise ProviderError(
            f"{server} answered without an id.", hint="Is the address that of OpenAI's protocol (…/v1)?"
        )
    return found


def _is_imported(file: Any) -> bool:
    """Raises ProviderError where the server could not read it."""
    status = getattr(file, "status", None)
    if status in _UNUSABLE:
        reason = getattr(file, "status_details", None) or "the server gives no reason"
        raise ProviderError(
            f"The file {file.id} has status {status!r}: {reason}.", hint="Order again: the rows are sent anew."
        )
    return status not in _IMPORTING


def _object(data: Any) -> dict[str, Any]:
    return dict(data) if isinstance(data, Mapping) else {}
