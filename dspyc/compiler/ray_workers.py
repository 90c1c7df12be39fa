"""Requests to language models that are made by the workers of a Ray cluster.

    with workers_of("ray", num_threads=32, ledger=ledger) as workers:     # None of "threads"
        replies, facts = workers.ask(lm, None, messages, {})

Only requests travel: they are what takes the time. Programs, metrics and tools run in the driver's threads, so what they hold
need not be sent, and the ledger, the budget and the limiters see every call there, as without Ray. A worker is an actor that
takes no CPU of the cluster's for itself. It gets a language model once, in memory; nothing of it is written anywhere.
"""

import logging
import pickle
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import dspy

from ..errors import ConfigError, TransientError, needing, redact
from .call import was_cached
from .calls import Workers, durable, plain, replies_and_entry
from .ledger import Ledger
from .limiter import retry_after_of
from .replies import replies_of, replies_text

Executor = Literal["threads", "ray"]
_MOST_CAUSES = 4  # of an error, the nearest first
_MOST_PACKED = 64  # language models


@contextmanager
def workers_of(executor: Executor, *, num_threads: int, ledger: Ledger) -> Iterator[Workers | None]:
    """The workers of an executor while they are needed; None where the driver's threads do the asking themselves.

    A Ray that this process has begun or joined is used; else one is joined or begun as `ray.init()` does, and left running.

    Raises:
        ConfigError: Ray is not installed.
    """
    if executor == "threads":
        yield None
        return
    workers = RayWorkers(num_threads, ledger)
    try:
        yield workers
    finally:
        workers.close()


class RayWorkers:
    """Actors on a Ray cluster, one for each of its CPUs and at most `num_threads`, spread over its nodes.

    A worker that dies is noted in the ledger and replaced; its requests fail as with a lost connection, and so are made again.
    """

    def __init__(self, num_threads: int, ledger: Ledger) -> None:
        self._ray, self._ledger, self._concurrency = _started_ray(), ledger, num_threads
        number = min(num_threads, max(1, int(self._ray.cluster_resources().get("CPU", 1))))
        self._workers = [self._start() for _ in range(number)]
        self._packed: dict[int, tuple[dspy.BaseLM, str, bytes]] = {}  # by the LM's `id`
        self._lock = threading.Lock()

    def ask(self, lm: dspy.BaseLM, prompt: Any, messages: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The replies of a call of `lm`, its `usage` and `cost`, and whether the worker's cache answered (`cached`).

        Raises:
            ConfigError: The language model or its request cannot be sent, or not be read there.
            TransientError: The worker died.
            Exception: What the language model raised.
        """
        name, packed = self._pack(lm)
        request = _dumps((prompt, messages, kwargs), f"A request to {lm.model!r}")
        worker = self._take()
        try:
            if name not in worker.known:
                self._ray.get(worker.actor.hold.remote(name, packed))
                worker.known.add(name)
            told = self._ray.get(worker.actor.ask.remote(name, request))
        except self._ray.exceptions.RayTaskError as error:
            raise ConfigError(
                f"Ray's workers cannot read {lm.model!r}: {type(error.cause).__name__}: {error.cause}.",
                hint="The nodes of the cluster need the packages and modules that it is made of: see Ray's `runtime_env`.",
            ) from error
        except self._ray.exceptions.RayError as error:
            raise self._lost(worker, error) from error
        finally:
            with self._lock:
                worker.busy -= 1
        if isinstance(told, list):
            raise _rebuilt(told)
        replies, facts = told
        return replies_of(replies), facts

    def close(self) -> None:
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            self._ray.kill(worker.actor)

    def _start(self) -> "_Handle":
        remote = self._ray.remote(num_cpus=0, max_concurrency=self._concurrency, scheduling_strategy="SPREAD")(_Worker)
        return _Handle(remote.remote())

    def _take(self) -> "_Handle":
        """The worker with the fewest requests."""
        with self._lock:
            if not self._workers:
                raise TransientError("Ray's workers were let go.")
            worker = min(self._workers, key=lambda worker: worker.busy)
            worker.busy += 1
            return worker

    def _lost(self, worker: "_Handle", error: Exception) -> TransientError:
        told = redact(str(error)).splitlines()[0]
        with self._lock:
            if worker in self._workers:
                self._workers[self._workers.index(worker)] = self._start()
                self._ledger.event("worker lost", error=told)
        return TransientError(f"A Ray worker was lost with this request: {told}", hint="Ray's own log may say why.")

    def _pack(self, lm: dspy.BaseLM) -> tuple[str, bytes]:
        with self._lock:
            if id(lm) not in self._packed:
                packed = _dumps(plain(lm), f"The language model {lm.model!r}")
                self._packed[id(lm)] = (lm, sha256(packed).hexdigest(), packed)
                while len(self._packed) > _MOST_PACKED:  # a program may make an LM for each of its calls
                    del self._packed[next(iter(self._packed))]
            return self._packed[id(lm)][1:]


@dataclass(eq=False)
class _Handle:
    """A worker from here: its actor, the language models that it holds, and the requests that it has."""

    actor: Any
    known: set[str] = field(default_factory=set)
    busy: int = 0


class _Worker:
    """What runs on the cluster."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore", DeprecationWarning)  # DSPy's, of what its own adapters send
        logging.disable(logging.WARNING)  # a client's log may hold what it was given
        self._lms: dict[str, dspy.BaseLM] = {}

    def hold(self, name: str, packed: bytes) -> None:
        self._lms[name] = durable(pickle.loads(packed))

    def ask(self, name: str, request: bytes) -> "tuple[str, dict[str, Any]] | list[_Fault]":
        prompt, messages, kwargs = pickle.loads(request)
        try:
            replies, entry = replies_and_entry(self._lms[name], prompt, messages, kwargs)
        except Exception as error:
            return _faults(error)
        facts = {"usage": entry.get("usage"), "cost": entry.get("cost"), "cached": was_cached(entry)}
        return replies_text(replies), facts


@dataclass(frozen=True)
class _Fault:
    """An exception on its way: itself where it survives that, and what the limiter and a reader need of it in any case."""

    pickled: bytes | None
    names: tuple[str, ...]  # of its classes, the nearest first
    text: str
    facts: dict[str, Any]


def _faults(error: BaseException) -> list[_Fault]:
    """An error and its causes."""
    found: list[_Fault] = []
    cause: BaseException | None = error
    while cause is not None and len(found) < _MOST_CAUSES:
        status = getattr(cause, "status_code", None) or getattr(cause, "status", None)
        facts = {"status_code": status, "retry_after": retry_after_of(cause)}
        known = {name: value for name, value in facts.items() if isinstance(value, (int, float))}
        names = tuple(kind.__name__ for kind in type(cause).__mro__)
        found.append(_Fault(_survivor(cause), names, redact(str(cause)), known))
        cause = cause.__cause__
    return found


def _survivor(error: BaseException) -> bytes | None:
    try:
        pickled = pickle.dumps(error)
        again = pickle.loads(pickled)
    except Exception:  # exceptions with arguments of their own often cannot be made again
        return None
    return pickled if type(again) is type(error) and str(again) == str(error) else None


def _rebuilt(faults: list[_Fault]) -> BaseException:
    rebuilt: BaseException | None = None
    for fault in reversed(faults):
        error = pickle.loads(fault.pickled) if fault.pickled is not None else _stand_in(fault)
        for name, value in fault.facts.items():
            if getattr(error, name, None) is None:
                setattr(error, name, value)
        error.__cause__, rebuilt = rebuilt, error
    assert rebuilt is not None
    return rebuilt


def _stand_in(fault: _Fault) -> BaseException:
    """An exception with the names of another's classes, by which the limiter knows what it is."""
    kind: type[Exception] = Exception
    for name in reversed(fault.names):
        if name not in ("object", "BaseException", "Exception"):
            kind = type(name, (kind,), {})
    return kind(fault.text)


def _dumps(value: Any, what: str) -> bytes:
    """The value as a worker reads it.

    Raises:
        ConfigError: It cannot be sent; the message says which part.
    """
    from ray import cloudpickle

    def refused(part: Any) -> bool:
        try:
            cloudpickle.dumps(part)
        except Exception:  # any object may refuse, in any way
            return True
        return False

    try:
        return cloudpickle.dumps(value)  # type: ignore[no-any-return]
    except Exception as error:
        parts = vars(value).items() if hasattr(value, "__dict__") else ()
        part = next((f" its `{name}`, a {type(part).__name__}:" for name, part in parts if refused(part)), "")
        raise ConfigError(
            f"{what} cannot be sent to Ray's workers:{part} {error}.",
            hint="Name the model and its settings in a dspy.LM(…), or leave `executor` out to ask from this process.",
        ) from error


def _started_ray() -> Any:
    with needing("'dspyc[ray]'", "executor='ray' needs Ray, which is not installed."):
        import ray
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="warning")
    return ray
