"""Vertex AI: rows to Cloud Storage, a supervised tuning job of Gemini, and the endpoint that comes with it.
Limits: https://cloud.google.com/vertex-ai/generative-ai/docs/models/gemini-tuning

lm = LM("vertex_ai/gemini-3.5-flash", vertex_project="my-project", vertex_location="us-central1")
job = lm.finetune(rows, TrainDataFormat.CHAT, {"gcs_path": "gs://bucket/folder/", "epochs": 3})
tuned = job.result()                                   # vertex_ai/gemini/<number of the endpoint>
"""

import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from ..errors import ConfigError, DataError, ProviderError, needing
from .faults import http_fault, transient
from .remote import JobStatus, Look, Order, RemoteProvider
from .rest import given
from .rows import Formatter
from .rows.vertex import VERTEX
from .settings import check_choice, check_rate, check_whole_setting, matched
from .store import JobRecord

_GCS_PATH = re.compile(r"gs://(?P<bucket>[a-z0-9][a-z0-9._-]+)(/(?P<prefix>[\w./-]*))?", re.ASCII)
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_JSONL = {"Content-Type": "application/jsonl"}
_STORAGE = "https://storage.googleapis.com"
_STATUS = {
    "JOB_STATE_QUEUED": JobStatus.pending,
    "JOB_STATE_PENDING": JobStatus.pending,
    "JOB_STATE_PAUSED": JobStatus.paused,
    "JOB_STATE_SUCCEEDED": JobStatus.succeeded,
    "JOB_STATE_PARTIALLY_SUCCEEDED": JobStatus.succeeded,
    "JOB_STATE_CANCELLED": JobStatus.cancelled,
    "JOB_STATE_FAILED": JobStatus.failed,
    "JOB_STATE_EXPIRED": JobStatus.failed,
}
_NAMES = {
    "epochs": "epoch_count",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "adapter_size": "adapter_size",
}
_ADAPTERS = ("ADAPTER_SIZE_ONE", "ADAPTER_SIZE_TWO", "ADAPTER_SIZE_FOUR", "ADAPTER_SIZE_EIGHT", "ADAPTER_SIZE_SIXTEEN")
_LABEL = "dspyc-job"
_VARIABLES = {"vertex_project": "GOOGLE_CLOUD_PROJECT", "vertex_location": "GOOGLE_CLOUD_LOCATION"}
_MOST_VALIDATION = 5000  # rows
_T = TypeVar("_T")


class VertexProvider(RemoteProvider):
    """Supervised tuning jobs. `train_kwargs`: `gcs_path` is required; `epochs`, `learning_rate_multiplier`, `adapter_size`."""

    name = "vertex"
    connects = ("vertex_project", "vertex_location")
    credentials = "Sign in by `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS."
    allowed = ("gcs_path", *_NAMES)
    validates = True
    timeout: ClassVar[float] = 60.0  # seconds without a byte from the server: the SDK itself waits for ever

    @classmethod
    def environment(cls) -> dict[str, Any]:
        return {name: os.environ[variable] for name, variable in _VARIABLES.items() if os.environ.get(variable)}

    def check_settings(self, model: str, settings: Mapping[str, Any]) -> None:
        _gcs(settings)
        check_whole_setting(settings, "epochs")
        check_rate(settings, "learning_rate_multiplier")
        check_choice(settings, "adapter_size", _ADAPTERS)
        self._where()

    def formatter(self, order: Order) -> Formatter:
        return VERTEX

    def check_rows(self, order: Order) -> None:
        super().check_rows(order)
        if len(order.validation) > _MOST_VALIDATION:
            raise DataError(
                f"There are {len(order.validation):,} validation rows; Vertex AI takes {_MOST_VALIDATION:,}.",
                hint="Pass fewer as `validation_data`, or a smaller `validation_fraction`.",
            )

    def epochs(self, settings: Mapping[str, Any]) -> float:
        return float(settings.get("epochs") or 3)

    def upload(self, order: Order, record: JobRecord) -> None:
        bucket, prefix = _gcs(order.settings)
        for fact, content in self.unsent(order, record):
            key = "/".join(part for part in (prefix, record.token, f"{fact}.jsonl") if part)
            self._put(bucket, key, content)
            self.keep(record, **{fact: f"gs://{bucket}/{key}"})

    def find(self, order: Order, record: JobRecord) -> str | None:
        """By our label, which no other job has."""
        jobs = self._ask("looking for the job that was begun", lambda: list(self._client.tunings.list()))
        return next((job.name for job in jobs if (job.labels or {}).get(_LABEL) == record.token), None)

    def create(self, order: Order, record: JobRecord) -> str:
        from google.genai import types

        told = given(order.settings, _NAMES)
        if "validation" in record.facts:
            told["validation_dataset"] = types.TuningValidationDataset(gcs_uri=record.facts["validation"])
        config = types.CreateTuningJobConfig(
            tuned_model_display_name=record.token, labels={_LABEL: record.token}, **told
        )
        made = self._ask(
            "starting the job",
            lambda: self._client.tunings.tune(
                base_model=order.model.removeprefix("vertex_ai/"),
                training_dataset=types.TuningDataset(gcs_uri=record.facts["train"]),
                config=config,
            ),
        )
        if not made.name:
            raise ProviderError("Vertex AI: starting the job: its answer has no name.")
        return str(made.name)

    def look(self, record: JobRecord) -> Look:
        found = self._ask("looking at the job", lambda: self._client.tunings.get(name=record.remote_id))
        status = _STATUS.get(found.state.value if found.state else "", JobStatus.running)
        endpoint = found.tuned_model.endpoint if found.tuned_model else None
        return Look(status, model=endpoint, error=found.error.message if found.error else None)

    def stop(self, record: JobRecord) -> None:
        self._ask("cancelling the job", lambda: self._client.tunings.cancel(name=record.remote_id))

    def serve(self, record: JobRecord, model: str) -> str:
        """LiteLLM calls tuned Gemini models by their endpoint's number; Google has deployed it, and it costs by the token."""
        return f"vertex_ai/gemini/{model.rpartition('/')[2]}"

    def served(self, record: JobRecord) -> dict[str, Any]:
        project, location = self._where()
        return {"vertex_project": project, "vertex_location": location}

    def _where(self) -> tuple[str, str]:
        project, location = self.connection.get("vertex_project"), self.connection.get("vertex_location")
        if not project or not location:
            missing = "project" if not project else "location"
            raise ConfigError(
                f"Vertex AI's {missing} is not known.",
                hint=f"Pass vertex_{missing} to dspyc.LM, or set GOOGLE_CLOUD_{missing.upper()}.",
            )
        return str(project), str(location)

    @cached_property
    def _client(self) -> Any:
        with needing("'dspyc[vertex]'", "Vertex AI needs google-genai."):
            from google import genai
        project, location = self._where()
        options = genai.types.HttpOptions(timeout=int(self.timeout * 1000))
        return genai.Client(vertexai=True, project=project, location=location, http_options=options)

    def _put(self, bucket: str, key: str, body: bytes) -> None:
        """One object, by Cloud Storage's JSON API; the emulator's variable counts, as in Google's own client."""
        import google.auth
        from google.auth.transport.requests import AuthorizedSession

        address = os.environ.get("STORAGE_EMULATOR_HOST") or _STORAGE
        url = f"{address}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(key, safe='')}"

        def send() -> Any:
            credentials, _ = google.auth.default(scopes=[_SCOPE])
            session: Any = AuthorizedSession
            return session(credentials).post(url, data=body, headers=_JSONL, timeout=self.timeout)

        answer = self._ask("uploading the rows", send)
        if answer.status_code >= 400:
            what = f"Cloud Storage: uploading the rows to gs://{bucket}/{key}"
            raise http_fault(what, answer.status_code, answer.text[:500], answer.headers, credentials=self.credentials)

    def _ask(self, what: str, call: Callable[[], _T]) -> _T:
        """An SDK call, its faults as ours, and never chained."""
        from google.auth import exceptions as auth
        from google.genai import errors

        try:
            return call()
        except errors.APIError as error:
            headers = getattr(error.response, "headers", None) or {}  # none where a stream broke off
            fault = http_fault(f"Vertex AI: {what}", error.code, str(error), headers, credentials=self.credentials)
        except auth.TransportError as error:
            fault = transient(f"Google did not answer: {what}: {error}")
        except auth.GoogleAuthError as error:
            fault = ProviderError(f"Vertex AI was not asked: {what}: {error}", hint=self.credentials)
        except _http_errors() as error:
            fault = transient(f"Vertex AI did not answer: {what}: {type(error).__name__}.")
        except ValueError as error:
            fault = ProviderError(f"Vertex AI: {what}: {error}")
        raise fault


def _http_errors() -> tuple[type[Exception], ...]:
    """What the clients of Cloud Storage and google-genai raise: newer ones of these use httpx2, a fork under a name of its own,
    where it is installed."""
    import requests

    names = [name for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return (requests.RequestException, *(importlib.import_module(name).HTTPError for name in names))


def _gcs(settings: Mapping[str, Any]) -> tuple[str, str]:
    found = matched(settings, "gcs_path", _GCS_PATH, "'gs://your-bucket/folder/'", "; rows go through Cloud Storage")
    return found["bucket"], (found["prefix"] or "").strip("/")
