"""A unit that is trained at a provider: its job started once, its model asked one question before anything relies on it."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.utils_finetune import TrainDataFormat

from ..compiler.ledger import Ledger
from ..errors import LedgerError, ModelError, TrainingError, UnfinishedError
from ..providers.job import RemoteJob
from ..providers.remote import RemoteProvider
from ..signatures import fingerprint
from ..signatures.fingerprints import stable
from ..signatures.render import Row

if TYPE_CHECKING:
    from .units import Unit

_QUESTIONS = 5  # a model may need some seconds from "succeeded" to its first answer


def train_elsewhere(unit: "Unit", train: Sequence[Row], validation: Sequence[Row], ledger: Ledger) -> tuple[Any, Any]:
    """The LM over the new weights, and the facts of its training: provider, model, job and data.

    A resume finds the job by its rows and settings, here and in dspyc's store of jobs, and goes where it is, whatever address
    or account this process would order at; it starts no second one.

    Raises:
        LedgerError: A job was started, and cannot be found again.
        TrainingError: The job failed or was cancelled, or goes on after its `timeout` (an UnfinishedError).
        ModelError: The model that came of it does not answer.
    """
    settings, provider = dict(unit.train_kwargs), unit.lm.provider
    rows, held_out = _plain(train), _plain(validation)
    if getattr(provider, "validates", False) and held_out and "validation_data" not in settings:
        settings["validation_data"] = held_out
    else:
        rows += held_out
    trained = provider.trained(settings) if isinstance(provider, RemoteProvider) else settings
    key = fingerprint([unit.lm.model, rows, stable(trained)])
    facts = {"predictors": unit.names, "rows": len(rows)}
    known = ledger.job(key) or {"state": "new"}
    if known["state"] == "done" and not _findable(unit.lm, known):
        return unit.lm.copy(model=known["model"]), {k: v for k, v in known.items() if k != "state"}
    if known["state"] == "started" and not _findable(unit.lm, known):
        raise LedgerError(
            f"A fine-tuning job for predictor(s) {unit.names} was started in this run and its end was not recorded.",
            hint="Look for it at the provider; to start another, pass a new `run_dir`.",
        )
    if known["state"] != "done":
        ledger.record_job(key, {**known, **facts, "state": "started"})
    job = _where_it_is(unit.lm, known).finetune(rows, TrainDataFormat.CHAT, settings)
    done = known["state"] == "done"
    if isinstance(job, RemoteJob):
        facts |= _facts(job)
        done = done and known.get("remote_id") == job.remote_id  # else that job was forgotten since
        if not done:
            ledger.record_job(key, {**facts, "state": "started"})
    tuned = _result(job, unit, lambda error: ledger.record_job(key, {**facts, "state": "failed", "error": error}))
    if not done or tuned.model != known["model"]:  # it may be served anew, and under another name
        ask_one_row(tuned, rows[0], job if isinstance(job, RemoteJob) else None)
    facts["model"] = tuned.model
    ledger.record_job(key, {**facts, "state": "done"})
    return tuned, facts


def ask_one_row(lm: dspy.LM, row: Mapping[str, Any], job: RemoteJob | None = None) -> None:
    """Ask a new model what one row asks.

    Raises:
        ModelError: It fails, or says nothing.
    """
    asked = lm.copy(cache=False)
    extra = {"tools": row["tools"]} if row.get("tools") else {}
    reason = ""
    for attempt in range(_QUESTIONS):
        if attempt:
            time.sleep(2.0**attempt / 8)
        try:
            replies = asked(messages=list(row["messages"][:-1]), **extra)
        except Exception as error:  # whatever the server, the SDK or DSPy makes of it
            reason = f"{type(error).__name__}: {error}"
            continue
        reply = replies[0] if replies else None
        if reply and (isinstance(reply, str) or reply.get("text") or reply.get("tool_calls")):
            return
        reason = "its reply is empty"
    gone = f" Should it be deleted: `dspyc jobs forget {job.id}`, and the same compile trains another." if job else ""
    raise ModelError(
        f"The trained model {lm.model!r} does not answer a row that it was trained on: {reason}",
        hint=f"Its job is kept: mend what is said here, and the same compile goes on with the same model.{gone}",
    )


def _result(job: Any, unit: "Unit", failed: Any) -> dspy.LM:
    try:
        result = job.result()
    except UnfinishedError:
        raise  # the job goes on, and the same compile finds it
    except TrainingError as error:
        failed(error.message[:2000])
        raise
    if isinstance(result, Exception):  # DSPy's own providers return a failure instead of raising it
        failed(str(result)[:2000])
        raise TrainingError(f"Fine-tuning {unit.lm.model!r} failed: {result}") from result
    return result


def _findable(lm: dspy.BaseLM, known: Mapping[str, Any]) -> bool:
    """Whether the provider's own store can tell what became of the job."""
    if not isinstance(lm.provider, RemoteProvider):
        return False
    return "job" not in known or lm.provider.store.get(known["job"]) is not None


def _where_it_is(lm: dspy.LM, known: Mapping[str, Any]) -> dspy.LM:
    """The LM at the address and account of the job that the ledger knows, so that the same order is attached to it; the LM as
    it is where there is no such job, or none that will have a model."""
    provider = lm.provider
    record = provider.store.get(known["job"]) if isinstance(provider, RemoteProvider) and "job" in known else None
    if record is None or record.state != "created" or record.ended_in_vain:
        return lm
    there = provider.at(record)
    if there.connection == provider.connection:
        return lm
    told = {name: there.connection.get(name) for name in there.connects}
    return lm.copy(provider=there, **{k: v for k, v in told.items() if v != provider.connection.get(k)})


def _facts(job: RemoteJob) -> dict[str, Any]:
    record = job.record
    return {
        "provider": record.provider,
        "base": record.model,
        "job": record.id,
        "remote_id": record.remote_id,
        "data": record.data,
        "estimate": record.estimate,
    }


def _plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{k: row[k] for k in ("messages", "tools") if k in row} for row in rows]
