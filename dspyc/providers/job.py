"""A training job elsewhere: started once, kept by its id, followed to its end from any process.

    job = lm.finetune(rows, TrainDataFormat.CHAT, {"n_epochs": 3})   # returns when the remote id is on the disk
    job.status(), job.events(), job.metrics()
    tuned = job.result()                                             # a dspy.LM, or the reason why there is none
    attach(job.id).cancel()                                          # here, or in another process

What a provider has to implement for this is in `remote.py`; what is kept on the disk, in `store.py`.
"""

import concurrent.futures
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import dspy
from dspy.clients.provider import TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat

from ..errors import ConfigError, DataError, ProviderError, TrainingError, UnfinishedError
from ..signatures import fingerprint
from ..signatures.fingerprints import stable
from .faults import MissingError, RefusalError
from .remote import COMMON, FILES, JobEvent, JobStatus, Look, Order, RemoteProvider, patiently
from .settings import check_job_limits, check_names, refuse_secrets
from .store import JobRecord

logger = logging.getLogger(__name__)

_RETRIES = 3  # of one question that a caller waits for
_FORGET = "Was it deleted there? `dspyc jobs forget {id} --yes`, and the same order starts another."
_T = TypeVar("_T")


class RemoteJob(TrainingJob):
    """DSPy's training job over a record and a provider. Making one starts the remote job, or finds the one that was started
    for the same rows and settings; `lm.finetune` makes it before it returns.

    Raises:
        ConfigError: A setting, a secret among the settings, or a price above `max_usd`.
        DataError: Rows that the provider would refuse.
        ProviderError: The provider refused, or could not be reached for long.
    """

    def __init__(
        self,
        provider: RemoteProvider,
        thread: threading.Thread | None = None,
        model: str | None = None,
        train_data: Sequence[dict[str, Any]] | None = None,
        train_data_format: TrainDataFormat | str | None = None,
        train_kwargs: Mapping[str, Any] | None = None,
        *,
        record: JobRecord | None = None,
    ) -> None:
        super().__init__(thread, model, list(train_data or []), train_data_format, dict(train_kwargs or {}))
        self.thread: threading.Thread | None = thread
        self.provider = provider
        self._look_now = threading.Event()
        self._starting = threading.Lock()
        self._told = False  # whether a caller had what came of following
        # DSPy's makes the result from the caller's own LM.
        self._target = getattr(thread, "_target", None) or self._finish
        self.record = record or submit(provider, model or "", self.train_data, train_data_format, self.train_kwargs)
        if thread is not None:
            thread.daemon = True  # a script may end while the job goes on: `attach` finds it again

    @property
    def id(self) -> str:
        """The job's id here, for `attach` and the command line."""
        return self.record.id

    @property
    def remote_id(self) -> str:
        """The job's id at the provider."""
        return str(self.record.remote_id)

    def status(self) -> JobStatus:
        """Where the job stands, asked of the provider unless it is over.

        Raises:
            ProviderError: The provider cannot say.
        """
        if not JobStatus(self.record.status).over:
            self._patiently(self._look, _RETRIES)
        return JobStatus(self.record.status)

    def result(self, timeout: float | None = None) -> dspy.LM:
        """The tuned model, once there is one. If the job goes on after an error, another call follows it again.

        Raises:
            TimeoutError: Not within `timeout` seconds; the job goes on.
            TrainingError: The job failed or was cancelled; the provider's reason is in the message. An UnfinishedError: it
                took longer than `timeout` in its settings, and goes on.
            ProviderError: The provider cannot say how it stands; the job goes on.
        """
        error = self._followed(timeout)
        if error is not None:
            raise error
        made, tuned = super().result(timeout), self.record.tuned
        return made if tuned in (None, made.model) else made.copy(model=tuned)  # an endpoint was started since

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Wait for the job's end, and return how it ended.

        The provider is not asked about a job that was attached to and is known to be over.

        Raises:
            TimeoutError: Not within `timeout` seconds; the job goes on.
            UnfinishedError: It took longer than `timeout` in its settings; the job goes on.
            ProviderError: The provider cannot say how it stands; the job goes on.
        """
        if self.thread is None and JobStatus(self.record.status).over:
            return JobStatus(self.record.status)  # `result` alone may start an endpoint again that was stopped
        error = self._followed(timeout)
        if error is not None and not _ends(error):
            raise error
        return JobStatus(self.record.status) if error else JobStatus.succeeded

    def cancel(self) -> bool:
        """Cancel the job, at the provider too. False if it was over already."""
        if self.status().over:
            return False
        try:
            self._patiently(lambda: self.provider.stop(self.record), _RETRIES)
        except ProviderError:
            if not self.status().over:  # else it ended meanwhile, which is why it could not be cancelled
                raise
        self._look_now.set()
        return self.status() not in (JobStatus.succeeded, JobStatus.failed)

    def pause(self) -> None:
        """Pause the job, where the provider can."""
        self._patiently(lambda: self.provider.pause(self.record), _RETRIES)
        self._look()

    def resume(self) -> None:
        """Go on with a paused job."""
        self._patiently(lambda: self.provider.resume(self.record), _RETRIES)
        self._look()

    def events(self) -> list[JobEvent]:
        """What happened at the provider so far, oldest first."""
        return self._patiently(lambda: self.provider.events(self.record), _RETRIES)

    def metrics(self) -> dict[str, Any]:
        """What the provider measured so far, by its own names."""
        return self._patiently(lambda: self.provider.metrics(self.record), _RETRIES)

    def start_endpoint(self) -> str:
        """Start what serves the tuned model, and return the model string, which is the result's from now on."""
        tuned = self._patiently(lambda: self.provider.start_endpoint(self.record))
        self.provider.store.update(self.record, tuned=tuned)
        return tuned

    def stop_endpoint(self) -> None:
        """Stop what serves the tuned model, which ends its cost.

        Whoever next orders the job, or attaches to it, for its result has the model served again, as the settings say.
        """
        self._patiently(lambda: self.provider.stop_endpoint(self.record), _RETRIES)
        self.provider.store.update(self.record, tuned=None)

    def follow(self) -> str:
        """Poll the job until it is over, and return the tuned model's string once the model can be called.

        Raises:
            TrainingError: It failed or was cancelled.
            UnfinishedError: It took longer than `timeout` in its settings.
            ProviderError: The provider cannot say how it stands, for as long as the timeout and its patience allow.
        """
        if self.record.tuned is not None:
            return self.record.tuned
        limit = self.train_kwargs.get("timeout")
        end = None if limit is None else time.monotonic() + limit
        looks = 0
        look = self._patiently(self._look, end=end)
        while not look.status.over:
            if end is not None and time.monotonic() >= end:
                raise UnfinishedError(
                    f"Job {self.id} ({self.remote_id}) is {look.status.value} after its timeout of {limit:g} s.",
                    hint=f"It goes on at {self.provider.name}: wait again, or `dspyc jobs cancel {self.id}`.",
                )
            pause = self.provider.polling.wait(looks, look.retry_after)
            self._look_now.wait(pause if end is None else min(pause, max(0.0, end - time.monotonic())))
            self._look_now.clear()
            looks += 1
            look = self._patiently(self._look, end=end)
        return self._end(look)

    def set_result(self, result: Any) -> None:
        """Called by DSPy's thread; `result()` then raises a failure rather than returns it."""
        if isinstance(result, BaseException):
            self.set_exception(result)
        else:
            super().set_result(result.copy(**self.provider.served(self.record)))

    def _end(self, look: Look) -> str:
        if look.status is not JobStatus.succeeded:
            reason = look.error or "the provider gives no reason"
            how = "was cancelled" if look.status is JobStatus.cancelled else f"failed: {reason}"
            raise TrainingError(
                f"Job {self.id} ({self.remote_id}) for {self.record.model} {how}.",
                hint="Order it again to start another.",
            )
        if look.model is None:
            raise ProviderError(f"Job {self.id} ({self.remote_id}) succeeded, and {self.provider.name} names no model.")
        model = look.model
        tuned = self._patiently(lambda: self.provider.serve(self.record, model))
        # The status once more: somebody else's look, begun before this one and kept after it, may have taken it back.
        self.provider.store.update(self.record, tuned=tuned, status=look.status.value)
        return tuned

    def _look(self) -> Look:
        try:
            look = self.provider.look(self.record)
        except MissingError as error:
            gone = error.message
        else:
            return self._seen(look)
        raise MissingError(gone, hint=_FORGET.format(id=self.id))

    def _seen(self, look: Look) -> Look:
        if (look.status.value, look.error) != (self.record.status, self.record.error):
            self.provider.store.update(self.record, status=look.status.value, error=look.error)
        return look

    def _patiently(self, ask: Callable[[], _T], retries: int | None = None, end: float | None = None) -> _T:
        return patiently(self.provider, ask, retries, end)

    def _followed(self, timeout: float | None) -> BaseException | None:
        """What came of following the job, in a thread: anew where a caller was told that it goes on.

        Raises:
            TimeoutError: Nothing yet.
        """
        with self._starting:
            if self._told and not _ends(self.exception()):
                concurrent.futures.Future.__init__(self)
                self.thread, self._told = None, False
            if self.thread is None:
                self.thread = threading.Thread(target=self._target, daemon=True, name=self.id)
                self.thread.start()
        try:
            error: BaseException | None = self.exception(timeout)
            return error
        except concurrent.futures.TimeoutError:  # before Python 3.11 another class than the built-in one
            waited = f"Job {self.id} is {self.record.status} after {timeout:g} s; it goes on."
        finally:
            self._told = self.done()
        raise TimeoutError(waited)

    def _finish(self) -> None:
        from .lm import LM

        try:
            tuned = self.follow()
            provider = self.provider
            known = {**provider.place(self.record.settings), **provider.secrets}
            arguments = {*provider.connects, *provider.secret}
            self.set_result(LM(tuned, provider=provider, **{k: v for k, v in known.items() if k in arguments}))
        except Exception as error:
            self.set_exception(error)


def submit(
    provider: RemoteProvider,
    model: str,
    rows: Sequence[dict[str, Any]],
    data_format: TrainDataFormat | str | None,
    train_kwargs: Mapping[str, Any],
) -> JobRecord:
    """Start the job for these rows and settings, or find one that any process started and that goes on or succeeded.

    Its remote id is on the disk when this returns.
    """
    check_order(provider, model, train_kwargs)
    order = make_order(model, rows, data_format, train_kwargs)
    if order.validation and not provider.validates:
        raise ConfigError(f"{provider.name} takes no validation rows.", hint="Leave `validation_data` out.")
    provider.check_rows(order)
    record = _record_of(provider, order)
    store = provider.store
    with store.alone(record.id):
        known = store.get(record.id)
        if known is not None and known.state == "created" and not known.ended_in_vain:
            logger.warning("Job %s was started before (%s): attached to it.", known.id, known.remote_id)
            if known.settings != record.settings:
                store.update(known, settings=record.settings, tuned=None)  # it is to be served in another way
            return known
        if known is not None and known.state in ("new", "creating"):
            known.settings, record = record.settings, known  # a process died between its beginning and its id
        elif known is not None:
            record.attempt = known.attempt + 1
        estimate = provider.estimate(order)
        estimate.check(train_kwargs.get("max_usd"))
        record.estimate = estimate.describe()
        logger.warning("%s", record.estimate)
        store.put(record)
        _create(provider, order, record)
    logger.warning("Job %s was started: %s. It goes on when this process ends.", record.id, record.remote_id)
    return record


def _create(provider: RemoteProvider, order: Order, record: JobRecord) -> None:
    """Upload and create, each once; an answer that was lost or cannot be read is looked for before another job is made."""
    store = provider.store
    patiently(provider, lambda: provider.upload(order, record))

    def once() -> str:
        found = provider.find(order, record) if record.state == "creating" else None
        if found is None:
            store.update(record, state="creating")
            try:
                found = provider.create(order, record)
            except RefusalError:
                _send_anew(provider, record)
                raise
        return found

    remote_id = patiently(provider, once)
    store.update(record, state="created", remote_id=remote_id)


def _send_anew(provider: RemoteProvider, record: JobRecord) -> None:
    """After a refusal there is no job, and it may be the files that were refused: they belong to whoever was signed in."""
    if provider.owned_files:
        facts = {name: value for name, value in record.facts.items() if name not in FILES}
        record.state, record.facts = "new", facts
        provider.store.put(record)


def check_order(provider: RemoteProvider, model: str, train_kwargs: Mapping[str, Any]) -> None:
    """Everything that can be found wrong before there are rows.

    Raises:
        ConfigError: A secret among the settings, an unknown or wrong setting, a base model that cannot be trained.
    """
    refuse_secrets(train_kwargs, provider.credentials)
    check_names(train_kwargs, (*provider.allowed, *COMMON), provider.name)
    check_job_limits(train_kwargs)
    provider.check_settings(model, _settings(train_kwargs))


def make_order(
    model: str,
    rows: Sequence[dict[str, Any]],
    data_format: TrainDataFormat | str | None,
    train_kwargs: Mapping[str, Any],
) -> Order:
    """The order in DSPy's own types.

    Raises:
        ConfigError: A format that DSPy does not have.
        DataError: No rows.
    """
    try:
        kind = TrainDataFormat.CHAT if data_format is None else TrainDataFormat(data_format)
    except ValueError:
        kinds = ", ".join(one.value for one in TrainDataFormat)
        raise ConfigError(f"The training data's format is {data_format!r}.", hint=f"Use one of {kinds}.") from None
    if not rows:
        raise DataError("There are no rows to train on.", hint="Pass rows of the form {'messages': [...]}.")
    return Order(model, list(rows), kind, _settings(train_kwargs), list(train_kwargs.get("validation_data") or ()))


def _settings(train_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The provider's own; None stands for one that is left out."""
    return {k: v for k, v in train_kwargs.items() if k not in COMMON and v is not None}


def _ends(error: BaseException | None) -> bool:
    """Whether nothing else will come of a job: there is its model, or none will be."""
    return error is None or (isinstance(error, TrainingError) and not isinstance(error, UnfinishedError))


def _record_of(provider: RemoteProvider, order: Order) -> JobRecord:
    data = fingerprint([*(provider.sent(order, rows) for rows in (order.rows, order.validation)), order.format.value])
    settings = json.loads(json.dumps(dict(order.settings), default=str))  # as another process will read them
    place = provider.place(order.settings)
    where = {name: value for name, value in place.items() if name not in provider.calls}
    key = fingerprint([provider.name, stable(where), order.model, data, stable(provider.trained(settings))])
    return JobRecord(
        id=f"{provider.name}-{key}",
        provider=provider.name,
        connection={**provider.connection, **place},
        model=order.model,
        settings=settings,
        data=data,
        rows=len(order.rows),
    )
