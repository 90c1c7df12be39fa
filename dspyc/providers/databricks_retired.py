"""Foundation Model Fine-tuning, which Databricks retired in August 2026, for workspaces that still have it.

Its own package, databricks_genai, needs an SDK of 2025; so this asks the same GraphQL service by itself, as version 1.1.8 of
that package does.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import ProviderError
from .databricks_client import ask
from .remote import JobStatus, Look

NOTICE = (
    "Foundation Model Fine-tuning was retired by Databricks in August 2026: it answers in few workspaces, and takes its "
    "own list of models. Leave `service` out to train on AI Runtime."
)

_PATH = "/api/2.0/genai-mapi/graphql"
_FIELDS = "id name status reason details { trainDataPath }"
_CREATE = f"""mutation CreateFinetune($createFinetuneData: CreateFinetuneInput!) {{
  createFinetune(createFinetuneData: $createFinetuneData) {{ {_FIELDS} }}
}}"""
_LIST = f"""query GetFinetunesPaginated($getFinetunesPaginatedData: GetFinetunesPaginatedInput!) {{
  getFinetunesPaginated(getFinetunesPaginatedData: $getFinetunesPaginatedData) {{ finetunes {{ {_FIELDS} }} }}
}}"""
_STOP = """mutation StopFinetunes($getFinetunesData: GetFinetunesInput!, $stopFinetunesData: StopFinetunesInput) {
  stopFinetunes(getFinetunesData: $getFinetunesData, stopFinetunesData: $stopFinetunesData) { id name status }
}"""
_FOLDER = (
    "dbfs:/databricks/mlflow-tracking/{mlflow_experiment_id}/{mlflow_run_id}/artifacts"  # filled in by the service
)
_STATUS = {
    "PENDING": JobStatus.pending,
    "QUEUED": JobStatus.pending,
    "COMPLETED": JobStatus.succeeded,
    "FAILED": JobStatus.failed,
    "STOPPED": JobStatus.cancelled,
}
_MOST_LISTED = 100


def create(client: Any, model: str, data: str, settings: Mapping[str, Any]) -> str:
    """Start a run on the rows in the volume's file `data`; its name."""
    user = ask(lambda: client.current_user.me()).user_name
    tracker = {
        "experimentPath": f"/Users/{user}/{{}}",  # the service puts the run's name there
        "modelRegistryPath": settings["register_to"],
        "createExperimentAndRun": True,
    }
    wanted = {
        "model": model,
        "taskType": settings.get("task_type") or "CHAT_COMPLETION",
        "trainDataPath": f"dbfs:{data}",
        "saveFolder": _FOLDER,
        "trainingDuration": settings.get("training_duration"),
        "learningRate": settings.get("learning_rate"),
        "experimentTracker": {"mlflow": tracker},
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    return str(_query(client, _CREATE, "createFinetune", createFinetuneData=given)["name"])


def find(client: Any, data: str) -> str | None:
    """The run on a file that no other job has."""
    paths = ((run["name"], (run.get("details") or {}).get("trainDataPath")) for run in _runs(client, {}))
    return next((name for name, path in paths if path == f"dbfs:{data}"), None)


def look(client: Any, name: str, model: str) -> Look:
    """Where a run stands; `model` is its name in Unity Catalog."""
    found = next(iter(_runs(client, {"name": {"in": [name]}})), None)
    if found is None:
        raise ProviderError(f"Databricks has no fine-tuning run {name!r}.", hint=NOTICE)
    return Look(
        _STATUS.get(str(found["status"]).upper(), JobStatus.running), model=model, error=found.get("reason") or None
    )


def stop(client: Any, name: str) -> None:
    """Cancel a run."""
    which, why = {"filters": {"name": {"in": [name]}}}, {"reason": "Cancelled by its user."}
    _query(client, _STOP, "stopFinetunes", getFinetunesData=which, stopFinetunesData=why)


def _runs(client: Any, filters: dict[str, Any]) -> list[dict[str, Any]]:
    asked = {"filters": filters, "includeDeleted": False, "limit": _MOST_LISTED}
    found = _query(client, _LIST, "getFinetunesPaginated", getFinetunesPaginatedData=asked)
    return list(found.get("finetunes") or [])


def _query(client: Any, query: str, function: str, **variables: Any) -> Any:
    body = {"query": query, "variables": variables}
    answer = ask(lambda: client.api_client.do("POST", _PATH, body=body))
    if answer.get("errors"):
        said = "; ".join(str(error.get("message")) for error in answer["errors"])
        raise ProviderError(f"Databricks refused: {said}", hint=NOTICE)
    return answer["data"][function]
