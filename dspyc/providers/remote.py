"""What a provider elsewhere implements, so that one job, one store and one command line serve them all.

To plug a provider in, subclass `RemoteProvider` in a file of its own and name the class in `catalog.py`:

    class AcmeProvider(RemoteProvider):
        name = "acme"                                  # in ids, records and messages
        connects = ("acme_region",)                    # arguments of dspyc.LM that say where; kept in the record
        usual = {"acme_region": "eu"}                  # where neither they nor `environment()` say another
        secret = ("api_key",)                          # arguments of dspyc.LM that are kept in memory only
        variables = ("ACME_API_KEY",)                  # where self.key() finds it, too
        credentials = "Set ACME_API_KEY, or pass api_key to dspyc.LM."
        allowed = ("epochs", "replicas")               # names in train_kwargs, beside `COMMON`
        serving = ("replicas",)                        # those of them that change nothing that is trained

        def check_settings(self, model, settings): ... # refuse at no cost; no network
        def formatter(self, order): ...                # one of `rows`: it refuses rows at no cost, and writes them
        def upload(self, order, record): ...           # self.unsent(…); self.keep(record, train=…) as soon as there is one
        def find(self, order, record): ...             # the id of a job that a crash made us forget, or None; may be left out
        def create(self, order, record): ...           # start the job, return its id
        def look(self, record): ...                    # Look(JobStatus.running)
        def stop(self, record): ...                    # cancel remotely

The calls come in this order, each step durable before the next: the checks → `upload` → (`find` when an earlier `create` had no
answer) → `create` → `look` again and again → `serve`. `upload` must pass over what `record.facts` says is done. `create` gets
the same `record.token` whenever it is called for one attempt: pass it as the provider's idempotency token where there is
one, and leave `find` out; where there is none, write it into the job's metadata or name, and let `find` look for it.

Faults: raise `TransientError` (with `retry_after`) for 429, 5xx, timeouts and lost connections: the caller waits and asks
again. Raise `ProviderError` for what will not pass, 401 and 403 above all; where files are `owned_files`, `create` says by a
`RefusalError` that there is no job. None may be chained to an SDK's exception, which may hold keys and rows: catch it, leave
the `except` block, and raise then.
"""

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, ClassVar, NoReturn, TypeVar

from dspy.clients.provider import Provider
from dspy.clients.utils_finetune import TrainDataFormat

from ..errors import ConfigError, TransientError, has_secret
from .addresses import base_address
from .costs import CostEstimate, estimate_cost
from .faults import transient
from .polling import Polling
from .rows import Formatter, json_lines
from .settings import LIMITS
from .store import JobRecord, JobStore, job_store

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Names in train_kwargs that the job itself reads, whatever the provider; none of them changes what is trained.
COMMON = (*LIMITS, "validation_data")
FILES = ("train", "validation")  # the facts that name an order's files

_READY_PATIENCE = 7200.0  # seconds until an endpoint has to be up, or a file imported


class JobStatus(str, Enum):
    """Where a job stands. Equal to DSPy's `TrainingStatus` of the same name."""

    pending = "pending"
    validating = "validating"
    running = "running"
    paused = "paused"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    def __str__(self) -> str:
        return self.value

    @property
    def over(self) -> bool:
        """Whether it is final."""
        return self in (JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled)


@dataclass(frozen=True)
class Order:
    """What is to be trained: rows as DSPy has them, and the provider's own settings, without those in `COMMON`."""

    model: str  # the base model's string, as given to dspyc.LM
    rows: Sequence[dict[str, Any]]
    format: TrainDataFormat
    settings: Mapping[str, Any]
    validation: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Look:
    """One look at a remote job. `error`: the provider's reason, of a job that failed. `model`: the provider's id of the tuned
    model, of one that succeeded. `retry_after`: seconds to the next look, where the provider says."""

    status: JobStatus
    model: str | None = None
    error: str | None = None
    retry_after: float | None = None


@dataclass(frozen=True)
class JobEvent:
    """Something that happened at the provider. `at`: seconds since 1970."""

    at: float
    message: str
    level: str = "info"
    data: dict[str, Any] = field(default_factory=dict)


class RemoteProvider(Provider, ABC):
    """DSPy's provider over a trainer elsewhere. The module's docstring says how to write one.

    Args:
        connection: Where the provider is, by the names of `connects` and others of its own; what is missing is as in `usual`.
            None: as `environment` says. A job's record holds all of it, so another shell's variables lead nowhere else.
        secrets: Values of those that `secret` names: never written, shown, copied to a file or pickled.
        polling: How often a job is looked at, and how long faults are borne.
    """

    name: ClassVar[str]
    connects: ClassVar[tuple[str, ...]] = ()
    addresses: ClassVar[tuple[str, ...]] = ("api_base",)  # names in the connection that hold a server's address
    calls: ClassVar[tuple[str, ...]] = ()  # names in the connection that calls need, and that start no other job
    usual: ClassVar[Mapping[str, Any]] = {}  # the connection where neither the caller nor the environment says another
    secret: ClassVar[tuple[str, ...]] = ()
    variables: ClassVar[tuple[str, ...]] = ()  # of the environment, that hold the key
    credentials: ClassVar[str] = "Use the provider's own environment variables."
    allowed: ClassVar[tuple[str, ...]] = ()
    placing: ClassVar[tuple[str, ...]] = ()  # of `allowed`: what says where, as `place` does
    serving: ClassVar[tuple[str, ...]] = ()  # of `allowed`: what serves, labels or signs in, and starts no other job
    validates: ClassVar[bool] = False  # whether `order.validation` is of use
    owned_files: ClassVar[bool] = False  # whether the server names files, which other accounts and projects do not have

    def __init__(
        self,
        connection: Mapping[str, Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        *,
        polling: Polling | None = None,
    ) -> None:
        """Raises ConfigError where an address is not valid, or holds a secret."""
        from .job import RemoteJob

        super().__init__()
        self.finetunable = True
        self.TrainingJob = partial(RemoteJob, self)
        given = {**(self.environment() if connection is None else connection)}
        for name, value in given.items():
            if has_secret(value):
                found = next((variable for variable, text in os.environ.items() if text == value), f"`{name}`")
                raise ConfigError(f"{found} holds a secret, and addresses are kept.", hint=self.credentials)
        self.connection = self.connected({**self.usual, **given})
        self.secrets = {k: v.strip() if isinstance(v, str) else v for k, v in (secrets or {}).items()}
        self.polling = polling or Polling()

    @classmethod
    def environment(cls) -> dict[str, Any]:
        """The connection, as far as this process's environment names it. No network."""
        return {}

    def connected(self, connection: Mapping[str, Any]) -> dict[str, Any]:
        """The connection in one form, whatever it was typed as.

        Raises:
            ConfigError: An address is not valid.
        """
        named = {name: connection[name] for name in self.addresses if connection.get(name)}
        return {**connection, **{name: base_address(text, name) for name, text in named.items()}}

    def at(self, record: JobRecord) -> "RemoteProvider":
        """This provider where a job is: the connection is its record's, but for what calls alone need."""
        calls = {name: value for name, value in self.connection.items() if name in self.calls}
        return type(self)({**record.connection, **calls}, self.secrets, polling=self.polling)

    def key(self) -> str | None:
        """The key of a server that takes one as `api_key`: the caller's, or that of the first of `variables` that is set."""
        found = (self.secrets.get("api_key"), *(os.environ.get(name, "").strip() for name in self.variables))
        return next(filter(None, found), None)

    def place(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Where an order with these settings goes, as far as that is not the usual place: a part of its job's identity. It
        includes what the settings named by `placing` say."""
        return {name: value for name, value in self.connection.items() if value != self.usual.get(name)}

    @property
    def store(self) -> JobStore:
        return job_store()

    def keep(self, record: JobRecord, **facts: Any) -> None:
        """Add to `record.facts`, for good, before this returns."""
        self.store.update(record, facts=facts)

    def reread(self, record: JobRecord) -> None:
        """Bring what other processes kept since into `record`."""
        self.store.update(record)

    @abstractmethod
    def check_settings(self, model: str, settings: Mapping[str, Any]) -> None:
        """Refuse, before a teacher is called, what cannot be ordered: an unsupported base model, a missing or wrong setting.
        Names have been checked against `allowed`. No network.

        Raises:
            ConfigError: It says what arrived, what is allowed, what to do.
        """

    def trained(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `train_kwargs` that change what is trained; orders that differ in the others alone are one job."""
        others = (*LIMITS, *self.serving, *self.placing)
        return {name: value for name, value in settings.items() if name not in others and value is not None}

    @abstractmethod
    def formatter(self, order: Order) -> Formatter:
        """How rows are written for the order's base model."""

    def check_rows(self, order: Order) -> None:
        """Refuse rows or a format that the provider would refuse. No network.

        Raises:
            ConfigError: The format.
            DataError: The rows, each with its number and reason.
        """
        formatter = self.formatter(order)
        formatter.format(order.rows).accepted()
        formatter.format(order.validation).accepted(counted=False)

    def sent(self, order: Order, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Some of the order's rows as the provider reads them."""
        return list(self.formatter(order).format(rows).accepted(counted=False))

    def unsent(self, order: Order, record: JobRecord) -> Iterator[tuple[str, bytes]]:
        """For `upload`: the files "train" and, where there are rows for it, "validation", that `record.facts` does not have."""
        for name, rows in zip(FILES, (order.rows, order.validation), strict=True):
            if rows and name not in record.facts:
                yield name, json_lines(self.sent(order, rows))

    def estimate(self, order: Order) -> CostEstimate:
        """What the training will cost."""
        return estimate_cost(self.sent(order, order.rows), self.name, order.model, self.epochs(order.settings))

    def epochs(self, settings: Mapping[str, Any]) -> float:
        """Passes over the rows, as far as is known before the start."""
        return 3

    @abstractmethod
    def upload(self, order: Order, record: JobRecord) -> None:
        """Send the rows, and `keep` what `create` needs of them; pass over what `record.facts` has already."""

    def find(self, order: Order, record: JobRecord) -> str | None:
        """The id of the job that an unanswered `create` of this attempt made; None where it made none, or where `create`
        is idempotent by its token."""
        return None

    @abstractmethod
    def create(self, order: Order, record: JobRecord) -> str:
        """Start the job once, without retries of its own, and return its id at the provider."""

    @abstractmethod
    def look(self, record: JobRecord) -> Look:
        """Where the job stands now."""

    @abstractmethod
    def stop(self, record: JobRecord) -> None:
        """Cancel the job remotely. It is no error if it is over."""

    def events(self, record: JobRecord) -> list[JobEvent]:
        """What happened so far, oldest first."""
        return []

    def metrics(self, record: JobRecord) -> dict[str, Any]:
        """What the provider measured so far, by its own names."""
        return {}

    def pause(self, record: JobRecord) -> None:
        self._cannot("pause jobs")

    def resume(self, record: JobRecord) -> None:
        self._cannot("resume jobs")

    def serve(self, record: JobRecord, model: str) -> str:
        """Bring the tuned model where DSPy can call it, and return its model string.

        This is called again after a crash, so it looks in `record.facts` for what was begun. `model` is what `look` gave.
        """
        return model

    def calling(self) -> dict[str, Any]:
        """Arguments of `dspyc.LM` that any call of this provider's models needs, and that LiteLLM, which makes the calls, does
        not find by itself. They stay in memory."""
        return {}

    def served(self, record: JobRecord) -> dict[str, Any]:
        """Arguments of `dspyc.LM` that the tuned model needs and the base did not."""
        return {}

    def start_endpoint(self, record: JobRecord) -> str:
        """Start what serves the tuned model, say what it costs, and return the model string.

        From before it is asked for until it is gone, its name is kept as the fact `endpoint`: without it a job could be
        forgotten while that costs.
        """
        self._cannot("start endpoints")

    def stop_endpoint(self, record: JobRecord) -> None:
        """Stop what serves the tuned model, which ends its cost."""
        self._cannot("stop endpoints")

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Poll until `ready`, as often as a job is polled, and in spite of faults that may pass.

        Raises:
            TransientError: `what` takes too long.
        """
        began, looks = time.monotonic(), 0
        while not patiently(self, ready):
            if time.monotonic() - began > _READY_PATIENCE:
                error = transient(f"{what} is not ready after {_READY_PATIENCE / 60:.0f} minutes.")
                error.borne = _READY_PATIENCE
                raise error
            time.sleep(self.polling.wait(looks))
            looks += 1

    def finetune(self, job: Any, **_: Any) -> str:
        """DSPy's own hook, in the job's thread: wait for the job that was started when it was made."""
        return str(job.follow())

    def _cannot(self, what: str) -> NoReturn:
        raise ConfigError(f"{self.name} does not {what}.")

    def __deepcopy__(self, memo: object) -> "RemoteProvider":
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection})"

    def __getstate__(self) -> dict[str, Any]:
        return {"connection": self.connection, "polling": self.polling, "secrets": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, state["connection"], polling=state["polling"])


def patiently(
    provider: RemoteProvider, ask: Callable[[], _T], retries: int | None = None, end: float | None = None
) -> _T:
    """Ask again after faults that may pass, at growing intervals, up to `retries`, to `end` by the monotonic clock, or until
    they have lasted for the provider's patience. It begins with the first fault, however long the asking took; what
    `ask` itself has borne counts.

    Raises:
        ProviderError: The last fault.
    """
    polling, began, faults = provider.polling, 0.0, 0
    while True:
        try:
            return ask()
        except TransientError as error:
            now = time.monotonic()
            if not faults:
                began = now - error.borne
            wait = polling.wait(faults, error.retry_after)
            if now + wait - began > polling.patience or faults == retries or (end is not None and now + wait > end):
                error.borne = now + wait - began  # with the wait that would be too long, so that no caller begins anew
                raise
            logger.warning("%s Asking again in %.0f s.", error.message, wait)
            faults += 1
            time.sleep(wait)
