"""Databricks: rows to a Unity Catalog volume, dspyc's own trainer on AI Runtime, the model registered and served.

lm = LM("databricks/meta-llama/Llama-3.2-1B-Instruct")             # the base by its Hugging Face id
job = lm.finetune(rows, TrainDataFormat.CHAT, {
    "train_data_path": "/Volumes/main/default/tuning", "register_to": "main.default.triage",
})
tuned = job.result()                                   # databricks/<name of the serving endpoint>
job.stop_endpoint()
"""

import io
import logging
import os
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..errors import ProviderError
from ..training import TrainingConfig
from ..training.events import parse_events
from . import databricks_client as workspace
from .databricks_client import ask
from .databricks_script import script
from .faults import MissingError, TakenError
from .remote import JobEvent, JobStatus, Look, Order, RemoteProvider
from .rows import Formatter
from .rows.databricks import RUNTIME
from .settings import check_choice, check_mapping, matched
from .store import JobRecord

logger = logging.getLogger(__name__)

_VOLUME = re.compile(r"/Volumes(/[\w.-]+){3,}/?")
_REGISTERED = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")
_TASKS = ("CHAT_COMPLETION", "INSTRUCTION_FINETUNE")  # Databricks' names: both are trained as chats
_ACCELERATORS = ("GPU_1xA10", "GPU_1xH100", "GPU_8xH100", "GPU_8xB300")
_OVER = {"SUCCESS": JobStatus.succeeded, "CANCELED": JobStatus.cancelled, "UPSTREAM_CANCELED": JobStatus.cancelled}
_BEFORE = ("PENDING", "QUEUED", "BLOCKED", "WAITING_FOR_RETRY")


class DatabricksProvider(RemoteProvider):
    """Runs of AI Runtime.

    `train_kwargs`: `train_data_path` (a volume's folder) and `register_to` (catalog.schema.model) are required; `task_type`,
    `databricks_host`, `databricks_profile`, `skip_deploy`, `accelerator` (GPU_1xH100), `training` (settings of
    `dspyc.TrainingConfig`).
    """

    name = "databricks"
    secret = ("api_key",)
    credentials = workspace.CREDENTIALS
    allowed = (
        "train_data_path",
        "register_to",
        "task_type",
        "databricks_host",
        "databricks_profile",
        "skip_deploy",
        "accelerator",
        "training",
    )
    serving = ("skip_deploy",)
    placing = ("databricks_host", "databricks_profile")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._clients: dict[tuple[str | None, str | None], Any] = {}

    @classmethod
    def environment(cls) -> dict[str, Any]:
        found = workspace.own_host()
        return {"host": found} if found else {}

    def place(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        named, profile = settings.get("databricks_host"), settings.get("databricks_profile")
        own = workspace.own_host(profile) if profile else self.connection.get("host")
        host = workspace.address(named) if named else own
        return {"host": host} if host else {}

    def check_settings(self, model: str, settings: Mapping[str, Any]) -> None:
        matched(settings, "train_data_path", _VOLUME, "'/Volumes/catalog/schema/volume/folder'")
        matched(settings, "register_to", _REGISTERED, "'catalog.schema.model_name'")
        check_choice(settings, "task_type", _TASKS)
        check_choice(settings, "accelerator", _ACCELERATORS)
        check_mapping(settings, "training")
        TrainingConfig.from_kwargs(dict(settings.get("training") or {}))

    def formatter(self, order: Order) -> Formatter:
        return RUNTIME

    def epochs(self, settings: Mapping[str, Any]) -> float:
        return float(TrainingConfig.from_kwargs(dict(settings.get("training") or {})).epochs)

    def upload(self, order: Order, record: JobRecord) -> None:
        client, folder = self._client(record), _folder(record)
        self.keep(record, host=client.config.host)  # another process may have another workspace as its own
        for name, content in self.unsent(order, record):
            path = f"{folder}/{name}.jsonl"
            ask(partial(client.files.upload, path, io.BytesIO(content), overwrite=True))
            self.keep(record, **{name: path})
        if "script" not in record.facts:
            text = script(
                order.model.removeprefix("databricks/"),
                record.facts["train"],
                f"{folder}/run",
                order.settings["register_to"],
                record.token,
                order.settings.get("training") or {},
                _gpus(order.settings),
            )
            self.keep(record, script=ask(lambda: _put_script(client, text, record.token)))

    def create(self, order: Order, record: JobRecord) -> str:
        from databricks.sdk.service import jobs

        client = self._client(record)
        accelerator = jobs.ComputeSpecAcceleratorType(_accelerator(order.settings))
        compute = jobs.ComputeSpec(accelerator_type=accelerator, accelerator_count=_gpus(order.settings))
        deployment = jobs.DeploymentSpec(compute=compute, command_path=record.facts["script"])
        task = jobs.SubmitTask(
            task_key="train", ai_runtime_task=jobs.AiRuntimeTask(experiment="dspyc", deployments=[deployment])
        )
        made = ask(lambda: client.jobs.submit(run_name=record.id, tasks=[task], idempotency_token=record.token))
        return str(made.run_id)

    def look(self, record: JobRecord) -> Look:
        client = self._client(record)
        state = ask(lambda: client.jobs.get_run(int(str(record.remote_id)))).state
        life, result = (one.value if one else "" for one in (state.life_cycle_state, state.result_state))
        if life in ("TERMINATED", "SKIPPED", "INTERNAL_ERROR"):
            status = _OVER.get(result, JobStatus.failed)
            return Look(status, model=record.settings["register_to"], error=state.state_message or None)
        return Look(JobStatus.pending if life in _BEFORE else JobStatus.running)

    def stop(self, record: JobRecord) -> None:
        client = self._client(record)
        ask(lambda: client.jobs.cancel_run(int(str(record.remote_id))))

    def events(self, record: JobRecord) -> list[JobEvent]:
        """When the run began and ended."""
        client = self._client(record)
        run = ask(lambda: client.jobs.get_run(int(str(record.remote_id))))
        ended = run.state.result_state.value if run.state.result_state else ""
        told = [(run.start_time, "started"), (run.end_time, f"{ended} {run.state.state_message or ''}".strip())]
        return [JobEvent(at / 1000, message) for at, message in told if at]

    def metrics(self, record: JobRecord) -> dict[str, Any]:
        """`steps`: what our trainer measured, as far as the volume has it."""
        client, path = self._client(record), f"{_folder(record)}/run/events.jsonl"
        try:
            content = ask(lambda: client.files.download(path).contents.read())
        except MissingError:
            return {}
        told = parse_events(content.decode(errors="replace"))
        return {"steps": [step for step in told if "loss" in step or "validation_loss" in step]}

    def serve(self, record: JobRecord, model: str) -> str:
        if record.settings.get("skip_deploy"):
            logger.warning("%s is registered; it can be called after `job.start_endpoint()` alone.", model)
            return f"databricks/{_endpoint_name(record)}"
        return self.start_endpoint(record)

    def start_endpoint(self, record: JobRecord) -> str:
        """A serving endpoint over the registered version, which sleeps while nobody calls it; returns when it is up.

        Raises:
            ProviderError: The model is not registered, the workspace refused, or the endpoint failed.
        """
        from databricks.sdk.service import serving

        client, name, registered = self._client(record), _endpoint_name(record), record.settings["register_to"]
        entity = serving.ServedEntityInput(
            entity_name=registered,
            entity_version=str(ask(lambda: client.model_versions.get_by_alias(registered, record.token)).version),
            workload_size="Small",
            workload_type=serving.ServingModelWorkloadType.GPU_SMALL,
            scale_to_zero_enabled=True,
        )
        self.keep(record, endpoint=name)
        try:
            ask(lambda: client.serving_endpoints.get(name))
        except MissingError:
            config = serving.EndpointCoreConfigInput(name=name, served_entities=[entity])
            try:
                ask(lambda: client.serving_endpoints.create(name, config=config))
                logger.warning("Started %s: paid by the hour while it is awake, until `job.stop_endpoint()`.", name)
            except TakenError:
                logger.info("The endpoint %s was made by somebody else's look at the job.", name)
        self._wait_for_endpoint(client, name)
        return f"databricks/{name}"

    def stop_endpoint(self, record: JobRecord) -> None:
        """End the endpoint, and its cost; none is no error. The model stays registered."""
        client, name = self._client(record), _endpoint_name(record)
        try:
            ask(lambda: client.serving_endpoints.delete(name))
        except MissingError:
            logger.info("The endpoint %s was gone already.", name)
        self.keep(record, endpoint=None)

    def calling(self) -> dict[str, Any]:
        """The SDK's own token, where LiteLLM has none: it reads other variables, and asks the SDK only without headers, which
        DSPy always sends."""
        token = os.environ.get("DATABRICKS_TOKEN")
        return {"api_key": token} if token and not self._calls_by_itself() else {}

    def served(self, record: JobRecord) -> dict[str, Any]:
        return {
            "api_base": f"{record.facts['host'].rstrip('/')}/serving-endpoints",
            **({} if self._calls_by_itself() else workspace.bearer(self._client(record))),
        }

    def _calls_by_itself(self) -> bool:
        """Whether LiteLLM has a key: the caller's, or one in a variable that it reads."""
        known = (self.secrets.get("api_key"), *map(os.environ.get, ("DATABRICKS_API_KEY", "DATABRICKS_CLIENT_SECRET")))
        return any(known)

    def _wait_for_endpoint(self, client: Any, name: str) -> None:
        def ready() -> bool:
            state = ask(lambda: client.serving_endpoints.get(name)).state
            if state and state.config_update and state.config_update.value == "UPDATE_FAILED":
                raise ProviderError(
                    f"The serving endpoint {name} failed.",
                    hint="Its events are in the workspace. Another is started by `job.stop_endpoint()` and then "
                    "`job.start_endpoint()`.",
                )
            return bool(state and state.ready and state.ready.value == "READY")

        self.wait_until(ready, f"The serving endpoint {name}")

    def _client(self, record: JobRecord) -> Any:
        """Made once for a workspace, since the SDK asks it about itself first."""
        host = record.connection.get("host") or record.facts.get("host")  # the fact: where the SDK alone knew it
        profile = record.settings.get("databricks_profile")
        if (host, profile) not in self._clients:
            self._clients[host, profile] = workspace.client(host, profile, self.secrets.get("api_key"))
        return self._clients[host, profile]


def _put_script(client: Any, text: str, token: str) -> str:
    from databricks.sdk.service.workspace import ImportFormat

    folder = f"/Workspace/Users/{client.current_user.me().user_name}/dspyc/{token}"
    client.workspace.mkdirs(folder)
    client.workspace.upload(f"{folder}/train.sh", io.BytesIO(text.encode()), format=ImportFormat.RAW, overwrite=True)
    return f"{folder}/train.sh"


def _accelerator(settings: Mapping[str, Any]) -> str:
    return str(settings.get("accelerator") or "GPU_1xH100")


def _gpus(settings: Mapping[str, Any]) -> int:
    """As the accelerator's name says: GPU_8xH100 has 8."""
    return int(_accelerator(settings).removeprefix("GPU_").partition("x")[0])


def _folder(record: JobRecord) -> str:
    return f"{record.settings['train_data_path'].rstrip('/')}/{record.token}"


def _endpoint_name(record: JobRecord) -> str:
    """By the model's own name; the job's, so that a second version does not take the first one's place."""
    model = re.sub(r"[^a-zA-Z0-9]+", "-", record.settings["register_to"].rpartition(".")[2]).strip("-")
    return f"{model[: 62 - len(record.token)]}-{record.token}"
