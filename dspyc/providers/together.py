"""Together: files and fine-tunes over HTTP. https://docs.together.ai/reference/post-fine-tunes

Paid by the token of training and validation, at rates by the model's size and the method, without a least amount, and up to
the moment of a cancel: https://docs.together.ai/docs/fine-tuning-pricing

lm = LM("together_ai/Qwen/Qwen3-8B")
job = lm.finetune(rows, TrainDataFormat.CHAT, {"n_epochs": 3, "suffix": "triage"})
"""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import ConfigError
from .remote import JobEvent, JobStatus, Look, Order, RemoteProvider
from .rest import Rest, given, seconds
from .rows import Formatter
from .rows.together import TOGETHER
from .settings import check_rate, check_whole_setting
from .store import JobRecord

_STATUS = {
    "pending": JobStatus.pending,
    "queued": JobStatus.pending,
    "running": JobStatus.running,
    "compressing": JobStatus.running,
    "uploading": JobStatus.running,
    "cancel_requested": JobStatus.running,
    "completed": JobStatus.succeeded,
    "cancelled": JobStatus.cancelled,
    "user_error": JobStatus.failed,
    "error": JobStatus.failed,
}
_NAMES = (
    "n_epochs",
    "batch_size",
    "learning_rate",
    "suffix",
    "n_checkpoints",
    "n_evals",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "training_type",
)


class TogetherProvider(RemoteProvider):
    """Fine-tunes; what can be set is Together's own, by its own names."""

    name = "together"
    connects = ("api_base",)
    usual: ClassVar[Mapping[str, Any]] = {"api_base": "https://api.together.xyz/v1"}
    secret = ("api_key",)
    variables = ("TOGETHER_API_KEY",)
    credentials = "Set TOGETHER_API_KEY, or pass api_key to dspyc.LM: it stays in memory."
    allowed = _NAMES
    validates = True
    owned_files = True

    @classmethod
    def environment(cls) -> dict[str, Any]:
        found = os.environ.get("TOGETHER_BASE_URL")
        return {"api_base": found} if found else {}

    def check_settings(self, model: str, settings: Mapping[str, Any]) -> None:
        check_whole_setting(settings, "n_epochs")
        check_rate(settings, "learning_rate")

    def formatter(self, order: Order) -> Formatter:
        return TOGETHER

    def epochs(self, settings: Mapping[str, Any]) -> float:
        return float(settings.get("n_epochs") or 1)

    def upload(self, order: Order, record: JobRecord) -> None:
        for fact, content in self.unsent(order, record):
            name = f"{record.token}-{fact}.jsonl"
            told = {"purpose": "fine-tune", "file_name": name, "file_type": "jsonl"}
            made = self._rest.ask(
                "uploading the rows", "POST", "/files/upload", data=told, files={"file": (name, content)}
            )
            self.keep(record, **{fact: made["id"]})

    def find(self, order: Order, record: JobRecord) -> str | None:
        """By our file, which no other job has."""
        jobs = self._rest.ask("looking for the job that was begun", "GET", "/fine-tunes").all("data")
        return next((job["id"] for job in jobs if job.get("training_file") == record.facts["train"]), None)

    def create(self, order: Order, record: JobRecord) -> str:
        said = {name: value for name, value in order.settings.items() if value is not None}
        wanted = {"model": order.model.removeprefix("together_ai/"), **said}
        files = given(record.facts, {"train": "training_file", "validation": "validation_file"})
        if "validation_file" in files:
            wanted.setdefault("n_evals", int(self.epochs(order.settings)))  # else Together measures nothing
        return str(self._rest.ask("starting the job", "POST", "/fine-tunes", json={**wanted, **files})["id"])

    def look(self, record: JobRecord) -> Look:
        found = self._rest.ask("looking at the job", "GET", f"/fine-tunes/{record.remote_id}")
        status = _STATUS.get(str(found["status"]), JobStatus.running)
        events = found.all("events")
        error = events[-1].get("message") if events and status is JobStatus.failed else None
        return Look(status, model=found.get("x_model_output_name") or found.get("model_output_name"), error=error)

    def stop(self, record: JobRecord) -> None:
        self._rest.ask("cancelling the job", "POST", f"/fine-tunes/{record.remote_id}/cancel")

    def events(self, record: JobRecord) -> list[JobEvent]:
        found = self._rest.ask("reading its events", "GET", f"/fine-tunes/{record.remote_id}/events").all("data")
        return [JobEvent(seconds(one.get("created_at")), str(one.get("message"))) for one in found]

    def serve(self, record: JobRecord, model: str) -> str:
        return f"together_ai/{model}"

    def stop_endpoint(self, record: JobRecord) -> None:
        """Not from here, where none was started.

        Raises:
            ConfigError: Always; it says how.
        """
        raise ConfigError(
            "A tuned model's endpoint is started at Together, and paid by the minute until it is stopped there.",
            hint="https://api.together.ai/endpoints, or `tg endpoints stop`.",
        )

    @property
    def _rest(self) -> Rest:
        return Rest("Together", str(self.connection["api_base"]), self.key(), self.credentials)
