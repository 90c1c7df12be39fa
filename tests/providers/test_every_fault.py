"""What goes wrong, at every provider: what passes is waited out and costs no second job; what does not is said at once."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dspy.clients.utils_finetune import TrainDataFormat
from werkzeug.wrappers import Request, Response

from dspyc.errors import ConfigError, ProviderError, TrainingError, TransientError
from dspyc.providers import RemoteJob, forget
from dspyc.providers.faults import MissingError, TakenError
from dspyc.providers.job import make_order
from dspyc.providers.store import job_store

from .everyone import EVERYONE, ROWS, Case, every_provider
from .http_server import CUT, LOST, HttpServer

LONG = [{"messages": [{"role": "user", "content": f"{i} " * 100_000}, ROWS[0]["messages"][1]]} for i in range(12)]


@pytest.fixture
def server(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    with case.server(polls=1) as made:
        case.sign_in(made, tmp_path, monkeypatch)
        yield made


def finetune(case: Case, server: HttpServer, rows: Any = ROWS, model: str | None = None, **kwargs: Any) -> RemoteJob:
    made = case.lm(server, model).finetune(rows, TrainDataFormat.CHAT, {**case.train_kwargs, **kwargs})
    assert isinstance(made, RemoteJob)
    return made


@pytest.mark.parametrize(("moment", "status"), [("upload", 403), ("create", 401), ("look", 403)])
@every_provider
def test_credentials_that_do_not_serve_are_said_at_once(
    case: Case, server: HttpServer, moment: str, status: int
) -> None:
    """Expired, say; never taken for a job, a file or a bucket that does not exist."""
    asked = getattr(case, moment)
    server.fail(asked, status, times=100)
    with pytest.raises(ProviderError) as caught:
        finetune(case, server).result(60)
    error = caught.value
    assert not isinstance(error, (TransientError, MissingError, TakenError))
    assert re.search(rf"{status}|fault {status}", error.message)
    assert not re.search(r"not exist|not found|does not have|no such|unknown", error.message, re.I)
    assert error.hint
    most = 3 if case.name == "vertex" else 1  # Google's own client renews its token, and asks again
    assert sum(request.startswith(asked) for request in server.seen) <= most


@pytest.mark.parametrize("case", [c for c in EVERYONE if c.needs in ("openai", "httpx")], ids=str)
@pytest.mark.parametrize(
    "made",
    [
        {"hello": "world"},
        {"id": "x", "status": 5, "state": [], "data": 5, "events": "none", "accounts": "none"},
        {"id": "x", "status": "new", "state": "JOB_STATE_NEW", "data": [5, {"hello": "world"}], "events": [5]},
        [1],
        Response("<html>Sign in</html>", content_type="text/html"),
    ],
    ids=["other object", "other types", "other members", "list", "page"],
)
def test_answers_of_another_shape_are_faults_in_our_words(case: Case, server: HttpServer, made: Any) -> None:
    server.polls = None
    job = finetune(case, server)
    order = make_order(case.model, ROWS, None, case.train_kwargs)
    server.carry_out = lambda *_: made  # type: ignore[method-assign]
    ask = job.provider
    for call in (ask.look, ask.events, ask.metrics, ask.stop, lambda record: ask.find(order, record)):
        with suppress(ProviderError):  # an answer may do, and nothing else may be raised
            call(job.record)
    if made == {"hello": "world"}:
        with pytest.raises(ProviderError):
            finetune(case, server, ROWS * 2)


@pytest.mark.parametrize("case", [c for c in EVERYONE if c.needs in ("openai", "httpx")], ids=str)
@pytest.mark.parametrize(
    "said",
    [{"hello": "world"}, [1], Response("<html>Sign in</html>", content_type="text/html"), Response(status=204)],
    ids=["other object", "list", "page", "nothing"],
)
def test_a_job_that_was_made_and_answered_in_another_shape_is_found_by_the_next_order(
    case: Case, server: HttpServer, said: Any
) -> None:
    carry_out = server.carry_out

    def carry_out_and_say(name: str, request: Request, found: dict[str, Any]) -> Any:
        made = carry_out(name, request, found)
        return said if name == "create" else made

    server.carry_out = carry_out_and_say  # type: ignore[method-assign]
    with pytest.raises(ProviderError):
        finetune(case, server)
    server.carry_out = carry_out  # type: ignore[method-assign]
    assert finetune(case, server).wait(60) == "succeeded"
    assert len(server.jobs) == 1
    assert sum(request.startswith(case.upload) for request in server.seen) == 1


def test_a_job_that_fireworks_has_by_our_id_is_attached_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in EVERYONE if case.name == "fireworks")
    with case.server(polls=1) as server:
        case.sign_in(server, tmp_path, monkeypatch)
        server.fail(case.create, LOST)
        server.fail(case.look, 404)  # it is not listed yet
        job = finetune(case, server)
        assert job.wait(60) == "succeeded"
        assert (len(server.jobs), job.remote_id.rpartition("/")[2] in server.jobs) == (1, True)


@every_provider
def test_a_storm_is_waited_out(case: Case, server: HttpServer) -> None:
    for request in (case.upload, case.create, case.look):
        for how in (429, 500, LOST):
            server.fail(request, how)
    assert finetune(case, server).wait(60) == "succeeded"
    assert len(server.jobs) == 1
    assert [record.attempt for record in job_store().all()] == [1]


@pytest.mark.parametrize(
    "case", [case for case in EVERYONE if case.name != "databricks"], ids=str
)  # its SDK waits itself
def test_how_long_a_provider_asks_to_wait_is_heard(case: Case, server: HttpServer) -> None:
    job = finetune(case, server)
    job.wait(60)
    server.fail(case.look, 429, times=100, Retry_After="7")
    with pytest.raises(TransientError, match="429") as caught:
        job.provider.look(job.record)
    assert caught.value.retry_after == 7


@every_provider
def test_a_storm_that_does_not_pass_is_said_and_the_job_goes_on(case: Case, server: HttpServer) -> None:
    server.polls = 1000
    job = finetune(case, server)
    server.fail(case.look, 503, times=1000)
    with pytest.raises(TransientError, match="fault 503"):
        job.status()
    server.heal()
    server.polls = 0
    assert job.wait(60) == "succeeded"


@every_provider
def test_a_connection_that_is_cut_in_the_middle_of_an_upload(case: Case, server: HttpServer) -> None:
    server.fail(case.upload, CUT, times=2)
    job = finetune(case, server, LONG)
    assert job.wait(60) == "succeeded"
    assert len(server.jobs) == 1
    assert sum(request.startswith(case.upload) for request in server.seen) >= 3


@every_provider
def test_a_job_that_fails_says_why_and_may_be_ordered_again(case: Case, server: HttpServer) -> None:
    server.failure = "row 7 holds a word that is not allowed"
    with pytest.raises(TrainingError, match=server.failure):
        finetune(case, server).result(60)
    server.failure = ""
    assert finetune(case, server).wait(60) == "succeeded"
    assert len(server.jobs) == 2


@every_provider
def test_a_job_that_somebody_else_cancels(case: Case, server: HttpServer) -> None:
    server.polls = None
    job = finetune(case, server)
    for made in server.jobs.values():
        made.update(case.cancelled)
    with pytest.raises(TrainingError, match="was cancelled"):
        job.result(60)


@every_provider
def test_a_job_that_never_ends(case: Case, server: HttpServer) -> None:
    server.polls = None
    job = finetune(case, server, timeout=0.1)
    with pytest.raises(TrainingError, match=r"after its timeout of 0\.1 s") as caught:
        job.result(60)
    assert f"dspyc jobs cancel {job.id}" in caught.value.hint
    assert finetune(case, server).remote_id == job.remote_id


@every_provider
def test_a_job_that_the_provider_does_not_know(case: Case, server: HttpServer) -> None:
    server.polls = None
    job = finetune(case, server)
    server.jobs.clear()
    for ask in (job.status, job.cancel, lambda: job.result(60)):
        with pytest.raises(MissingError) as caught:
            ask()
        assert f"dspyc jobs forget {job.id}" in caught.value.hint


@every_provider
def test_a_job_that_was_forgotten_is_started_anew(case: Case, server: HttpServer) -> None:
    first = finetune(case, server)
    assert first.wait(60) == "succeeded"
    if case.serve:
        with pytest.raises(ConfigError, match="has an endpoint that may be up") as caught:
            forget(first.id)
        assert first.record.facts["endpoint"] in caught.value.message
        first.stop_endpoint()
    forget(first.id)
    second = finetune(case, server)
    assert second.wait(60) == "succeeded"
    assert len(server.jobs) == 2
    assert first.remote_id != second.remote_id


@pytest.mark.parametrize("case", [case for case in EVERYONE if case.unknown], ids=str)
def test_a_base_model_that_is_not_trained_there(case: Case, server: HttpServer) -> None:
    with pytest.raises(ProviderError, match=r"unknown|identifier is invalid"):
        finetune(case, server, model=case.unknown)
    assert server.jobs == {}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("bedrock", {"s3_path": "s3://no-such-bucket/x"}, "NoSuchBucket"),
        ("bedrock", {"role_arn": None}, "There is no `role_arn`"),
        ("vertex", {"gcs_path": "gs://none/x"}, "bucket does not exist"),
        ("databricks", {"train_data_path": "/Volumes/main/missing/tuning"}, "does not exist"),
    ],
)
def test_a_place_or_role_that_is_not_there(
    name: str, change: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in EVERYONE if case.name == name)
    monkeypatch.delenv("DSPYC_BEDROCK_ROLE_ARN", raising=False)
    with case.server() as server:
        case.sign_in(server, tmp_path, monkeypatch)
        with pytest.raises((ProviderError, ConfigError), match=said):
            finetune(case, server, **change)
        assert server.jobs == {}
