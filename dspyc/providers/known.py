"""Jobs that were started before, found by their id in any process: attached to, or forgotten."""

from ..errors import ConfigError
from .catalog import provider_class
from .job import RemoteJob
from .remote import JobStatus
from .store import JobRecord, job_store


def attach(id: str) -> RemoteJob:
    """A job that was started here, in any process: `id` is its own or the provider's. Credentials come from the provider's
    own environment variables.

    Raises:
        ConfigError: No such job is known.
    """
    record = job_store().find(id)
    if record.remote_id is None:
        raise ConfigError(
            f"Job {record.id} was never answered by {record.provider}: its process ended while it was being started.",
            hint="Run the same compile again: it finds out whether the job exists, and starts it if not.",
        )
    provider = provider_class(record.provider)(record.connection)
    return RemoteJob(provider, model=record.model, record=record)


def forget(id: str, *, even_if_unfinished: bool = False) -> JobRecord:
    """Let the same order start another job, for example because this one's model was deleted. The provider is not told.

    Raises:
        ConfigError: No such job is known; or it may go on and cost, and nothing here would know of it any more: it was not over
            when last looked at, or it has an endpoint.
    """
    store = job_store()
    record = store.find(id)
    with store.alone(record.id):
        record = store.find(id)
        if not (JobStatus(record.status).over or even_if_unfinished):
            raise ConfigError(
                f"Job {record.id} was {record.status} when last looked at.",
                hint=f"See `dspyc jobs status {record.id}`, and cancel it first; --yes forgets it all the same.",
            )
        endpoint = record.facts.get("endpoint")
        if endpoint and not even_if_unfinished:
            raise ConfigError(
                f"Job {record.id} has an endpoint that may be up, and cost: {endpoint}.",
                hint=f"End it first: `dspyc jobs stop-endpoint {record.id}`; --yes forgets both all the same.",
            )
        store.update(record, state="forgotten")
    return record
