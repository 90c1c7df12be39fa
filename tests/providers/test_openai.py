"""OpenAI's protocol through the real SDK, over a real socket, with a server that keeps state and misbehaves on request."""

import copy
import json
import logging
import pickle
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any, ClassVar

import dspy
import pytest
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus

import dspyc
from dspyc.errors import ConfigError, DataError, ProviderError, TrainingError, TransientError
from dspyc.providers import JobStatus, RemoteJob, attach
from dspyc.providers.faults import retry_after
from dspyc.providers.job import make_order
from dspyc.providers.openai import OpenAIProvider
from dspyc.providers.polling import Polling
from dspyc.providers.store import job_store

from .openai_server import CUT, KEY, LOST, OpenAIServer

BASE = "openai/gpt-4.1-mini-2025-04-14"
JOBS = "/v1/fine_tuning/jobs"
QUICK = Polling(first=0.01, most=0.05, patience=5)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        yield running


def rows(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"row-canary {i}"}, {"role": "assistant", "content": "yes"}]}
        for i in range(count)
    ]


def make(server: OpenAIServer, polling: Polling = QUICK, model: str = BASE, **settings: Any) -> dspy.LM:
    provider = OpenAIProvider({"api_base": server.url}, {"api_key": KEY}, polling=polling)
    return dspyc.LM(model, api_base=server.url, api_key=KEY, provider=provider, cache=False, num_retries=0, **settings)


def start(server: OpenAIServer, *, polling: Polling = QUICK, model: str = BASE, **kwargs: Any) -> RemoteJob:
    return make(server, polling, model).finetune(rows(), TrainDataFormat.CHAT, kwargs)


def at_openai(server: OpenAIServer) -> dspy.LM:
    """An LM of OpenAI itself, which the server plays: nobody named an address."""

    class Here(OpenAIProvider):
        usual: ClassVar[Mapping[str, Any]] = {"api_base": server.url}

    return dspyc.LM(BASE, provider=Here(None, {"api_key": KEY}, polling=QUICK), cache=False)


def created(server: OpenAIServer) -> int:
    return len(server.jobs)


# -------------------------------------------------------------------------------------------------------- from rows to model


def test_a_job_ends_in_a_model_that_answers(server: OpenAIServer) -> None:
    lm = dspyc.LM(BASE, api_base=server.url, api_key=KEY, cache=False)
    assert isinstance(lm, dspy.LM)
    lm.provider.polling = QUICK
    data = rows()
    job = lm.finetune(train_data=data, train_data_format=TrainDataFormat.CHAT, train_kwargs={"n_epochs": 2})
    tuned = job.result(timeout=60)
    assert tuned.model == f"openai/{server.jobs['ftjob-1']['fine_tuned_model']}"
    assert "ok" in tuned("hello")[0]
    assert job.status() is JobStatus.succeeded
    assert job.status() == TrainingStatus.succeeded
    assert [event.message for event in job.events()] == ["Created", "Step 1: training loss=1.5"]
    assert job.metrics()["steps"] == [{"step": 1, "train_loss": 1.5}]
    assert job.metrics()["checkpoints"][0]["model"] == "ft:x:ckpt-step-1"
    assert not job.cancel()
    assert data == rows()


def test_the_order_has_the_current_form(server: OpenAIServer) -> None:
    start(
        server,
        n_epochs=2,
        hyperparameters={"batch_size": "auto"},
        suffix="desk",
        seed=7,
        metadata={"team": "a"},
        validation_data=rows(3),
    ).result(60)
    body = server.bodies[0]
    assert body["method"] == {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}},
    }
    assert "hyperparameters" not in body
    assert (body["suffix"], body["seed"], body["metadata"]["team"]) == ("desk", 7, "a")
    files = server.files
    assert files[body["training_file"]]["content"].count(b"\n") == 12
    assert files[body["validation_file"]]["content"].count(b"\n") == 3


def test_preferences_become_a_dpo_job(server: OpenAIServer) -> None:
    good, bad = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": f"{i}"}]},
            "preferred_output": [good],
            "non_preferred_output": [bad],
        }
        for i in range(10)
    ]
    kwargs = {"method": "dpo", "beta": 0.1}
    make(server).finetune(pairs, TrainDataFormat.CHAT, {**kwargs, "validation_data": pairs[:2]}).result(60)
    sent = server.files[server.bodies[0]["training_file"]]["content"].splitlines()
    assert [json.loads(line) for line in sent] == pairs
    assert server.bodies[0]["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}
    pairs[3] = {**pairs[3], "preferred_output": [bad]}
    with pytest.raises(DataError, match=r"refuse 1 of 10 rows\. Row 4: both outputs are the same"):
        make(server).finetune(pairs, TrainDataFormat.CHAT, kwargs)
    with pytest.raises(DataError, match="openai-preferences trains on 10 rows or more, and 9 can be used"):
        make(server).finetune([pairs[0]] * 9, TrainDataFormat.CHAT, kwargs)
    assert len(server.bodies) == 1


def test_completion_rows_become_turns(server: OpenAIServer) -> None:
    data = [{"prompt": f"capital {i}?", "completion": "Paris"} for i in range(10)]
    make(server).finetune(data, TrainDataFormat.COMPLETION, {}).result(60)
    assert b'"role": "assistant", "content": "Paris"' in server.files["file-1"]["content"]


def test_azure_speaks_it_at_its_own_address(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("AZURE_API_KEY", KEY)
    base = server.url.removesuffix("/v1")
    lm = dspyc.LM("azure/gpt-4.1-mini-2025-04-14", api_base=base, api_version="2024-10-21", cache=False)
    lm.provider.polling = QUICK
    with pytest.raises(ConfigError, match="deployment"):
        lm.finetune(rows(), TrainDataFormat.CHAT, {})
    job = lm.finetune(rows(), TrainDataFormat.CHAT, {"deployment": "desk"})
    tuned = job.result(60)
    assert tuned.model == "azure/desk"
    other = lm.finetune(rows(), TrainDataFormat.CHAT, {"deployment": "till"})
    assert (other.result(60).model, other.remote_id) == ("azure/till", job.remote_id)
    with pytest.raises(ConfigError, match=r"paid by the hour until it is deleted there.*--deployment-name desk"):
        job.stop_endpoint()
    assert server.bodies[0]["model"] == "gpt-4.1-mini-2025-04-14"
    assert "ok" in tuned("hello")[0]


def test_a_job_at_azure_waits_for_both_of_its_files(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_API_KEY", KEY)
    server.polls, asked = 0, {"deployment": "desk", "validation_data": rows(3)}
    lm = dspyc.LM("azure/gpt-4.1-mini-2025-04-14", api_base=server.url.removesuffix("/v1"))
    lm.provider.polling = QUICK
    server.unread = "Line 3 is no JSON"
    with pytest.raises(ProviderError, match="The file file-1 has status 'error': Line 3 is no JSON"):
        lm.finetune(rows(), TrainDataFormat.CHAT, asked)
    server.unread = ""
    server.fail("GET /openai/v1/files/file-2", 503, times=2)
    assert lm.finetune(rows(), TrainDataFormat.CHAT, asked).wait(60) is JobStatus.succeeded
    (order,) = server.bodies
    assert (order["training_file"], order["validation_file"]) == ("file-2", "file-3")


def test_the_callers_metadata_is_sent_to_azure(server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_API_KEY", KEY)
    server.polls = 0
    lm = dspyc.LM("azure/gpt-4.1-mini-2025-04-14", api_base=server.url.removesuffix("/v1"))
    lm.provider.polling = QUICK
    for seed, metadata in enumerate(({"team": "a"}, {})):
        given = {"deployment": "desk", "metadata": metadata, "seed": seed}
        lm.finetune(rows(), TrainDataFormat.CHAT, given).wait(60)
    assert [body.get("metadata") for body in server.bodies] == [{"team": "a"}, None]


def test_pause_and_resume(server: OpenAIServer) -> None:
    server.polls = None
    job = start(server)
    job.pause()
    assert job.status() is JobStatus.paused
    job.resume()
    assert job.status() is JobStatus.running
    assert job.cancel()


# -------------------------------------------------------------------------------------------- one order, one job, one payment


def test_the_same_order_finds_its_job(server: OpenAIServer) -> None:
    first = start(server)
    second = start(server)
    assert first.id == second.id
    assert first.result(60).model == second.result(60).model
    assert start(server).result(60).model == first.result().model
    start(server, n_epochs=5)
    assert created(server) == 2


def test_a_job_at_openai_itself_stays_there_whatever_a_later_shell_names(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = at_openai(server)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # which the SDK would ask, and send the key to
    job = lm.finetune(rows(), TrainDataFormat.CHAT, {})
    assert job.record.connection == {"api_base": server.url}
    stored = attach(job.id)
    assert type(stored.provider) is OpenAIProvider
    assert stored.wait(60) is JobStatus.succeeded
    assert created(server) == 1


@pytest.mark.parametrize("typed", ["https://api.openai.com/v1/", " https://API.openai.com/v1", ""])
def test_openai_itself_is_known_however_its_address_is_typed(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", typed)
    provider = dspyc.LM(BASE).provider
    assert (provider.address(), provider.place({})) == ("https://api.openai.com/v1", {})
    order = make_order(BASE, rows(), None, {})
    assert provider.estimate(order).usd is not None


def test_one_order_is_one_job_however_its_server_is_typed(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.polls = 0
    first = make(server).finetune(rows(), TrainDataFormat.CHAT, {})
    slash = dspyc.LM(BASE, api_base=f"{server.url}/", api_key=f"{KEY}\n").finetune(rows(), TrainDataFormat.CHAT, {})
    assert slash.remote_id == first.remote_id
    monkeypatch.setenv("AZURE_API_KEY", f"{KEY}\n")
    base = server.url.removesuffix("/v1")
    told = (
        {"api_base": base, "api_version": "2024-10-21"},
        {"api_base": f"{base}/"},
        {"api_base": f"{base}/openai/v1/", "api_version": "2025-04-01-preview"},
        {"api_base": f"{base}/openai"},
    )
    found = {
        dspyc.LM("azure/gpt-4.1", **one).finetune(rows(), TrainDataFormat.CHAT, {"deployment": "desk"}).id
        for one in told
    }
    assert (len(found), created(server)) == (1, 2)


def test_a_job_is_looked_for_in_the_project_that_was_named(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.polls, seen = 0, list[Any]()

    def told() -> dict[str, str | None]:
        """What the last request was told, by its headers."""
        return {name: seen[-1].get(f"OpenAI-{name}") for name in ("Organization", "Project")}

    carry_out = server.carry_out
    server.carry_out = lambda name, request, found: (  # type: ignore[method-assign]
        seen.append(request.headers) or carry_out(name, request, found)
    )
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj_a")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "openai-organization: org-z\nX-Gateway: eu")
    job = at_openai(server).finetune(rows(), TrainDataFormat.CHAT, {})
    assert job.record.connection == {"api_base": server.url, "project": "proj_a"}
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj_b")
    assert job.wait(60) is JobStatus.succeeded
    assert (told(), seen[-1]["X-Gateway"]) == ({"Organization": None, "Project": "proj_a"}, "eu")
    assert at_openai(server).finetune(rows(), TrainDataFormat.CHAT, {}).remote_id != job.remote_id
    dspyc.LM(BASE, api_base=server.url, api_key=KEY).finetune(rows(), TrainDataFormat.CHAT, {"seed": 1}).wait(60)
    assert told() == {"Organization": None, "Project": None}


@pytest.mark.parametrize("address", ["host/v1", "ftp://host/v1", "https://", "https://host:port/v1", "https://a b/v1"])
@pytest.mark.parametrize(
    ("model", "variable"),
    [(BASE, "OPENAI_BASE_URL"), ("together/x", "TOGETHER_BASE_URL"), ("fireworks/x", "FIREWORKS_API_URL")],
)
def test_an_address_that_is_none_is_refused(
    model: str, variable: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, address)
    with pytest.raises(ConfigError, match=r"address.*https://host/v1"):
        dspyc.LM(model)


@pytest.mark.parametrize("key", ["sk-canary-\n0123456789abcdef", "sk-canary-0123456789\N{BULLET}"])
@pytest.mark.parametrize("model", [BASE, "together_ai/Qwen/Qwen3-8B"])
def test_a_request_that_cannot_be_sent_is_said_at_once(server: OpenAIServer, model: str, key: str) -> None:
    lm = dspyc.LM(model, api_base=server.url, api_key=key)  # with the patience of a quarter of an hour
    with pytest.raises(ProviderError, match=r"was not asked: .*one line of plain characters") as caught:
        lm.finetune(rows(), TrainDataFormat.CHAT, {})
    assert not isinstance(caught.value, TransientError)
    assert "canary" not in str(caught.value)


def test_what_was_stored_without_an_address_is_at_openai_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_BASE", raising=False)
    unnamed = dspyc.LM(BASE).provider
    said = dspyc.LM(BASE, api_base="https://api.openai.com/v1").provider
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    for provider in (OpenAIProvider({}), pickle.loads(pickle.dumps(unnamed)), unnamed, said):
        assert provider.address() == "https://api.openai.com/v1"
        assert provider.place({}) == {}  # so a job's identity is that of an order before addresses were stored
    assert dspyc.LM(BASE).provider.address() == "http://127.0.0.1:9/v1"


def test_a_loaded_program_is_trained_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(dspyc.LM(BASE))
    dspyc.save(program, tmp_path / "artifact")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert dspyc.load(tmp_path / "artifact").lm.provider.address() == "https://api.openai.com/v1"


def test_threads_that_order_the_same_start_one_job_and_say_that_they_wait(
    server: OpenAIServer, caplog: pytest.LogCaptureFixture
) -> None:
    reached, go = server.hold(f"POST {JOBS}", after=True)
    threads = [threading.Thread(target=start, args=(server,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert reached.wait(30)
    until = time.monotonic() + 30
    while caplog.text.count("is being started by another process or thread") < 3 and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.25)  # in which each tries again, and says nothing
    go.set()
    for thread in threads:
        thread.join()
    assert caplog.text.count("is being started by another process or thread") == 3
    assert created(server) == 1


def test_threads_that_ask_for_the_store_first_get_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for turn in range(20):
        monkeypatch.setenv("DSPYC_HOME", str(tmp_path / str(turn)))
        together = threading.Barrier(8, timeout=60)
        with ThreadPoolExecutor(8) as pool:
            stores = list(pool.map(lambda _: (together.wait(), job_store())[1], range(8)))  # noqa: B023
        assert len(set(map(id, stores))) == 1
        assert stores[0].all() == []


def test_files_of_another_account_are_sent_anew_after_a_refusal(server: OpenAIServer) -> None:
    server.fail(f"POST {JOBS}", 403)
    with pytest.raises(ProviderError, match="403"):
        start(server)
    server.files.clear()  # of another account there are none
    server.fail(f"POST {JOBS}", LOST)  # one that is not answered is looked for by its file
    assert start(server).result(60)
    assert (len(server.files), created(server)) == (1, 1)


def test_a_job_that_failed_may_be_ordered_again(server: OpenAIServer) -> None:
    server.failure = "The file has 3 examples of one kind"
    with pytest.raises(TrainingError, match=r"3 examples of one kind \(invalid_file\)"):
        start(server).result(60)
    server.failure = ""
    assert start(server).result(60).model.endswith("ftjob-2")


def test_who_followed_a_job_that_failed_leaves_the_next_attempt_alone(server: OpenAIServer) -> None:
    server.polls, server.failure = 0, "The file has 3 examples of one kind"
    first, late = start(server), attach("ftjob-1")
    assert first.wait(60) is JobStatus.failed
    server.polls, server.failure = None, ""
    second = start(server)
    assert (late.wait(60), late.remote_id) == (JobStatus.failed, "ftjob-1")  # it has not looked until now
    assert not attach(second.id).status().over
    assert start(server).remote_id == second.remote_id == "ftjob-2"
    assert second.cancel()


def test_a_create_whose_answer_is_cut_short_makes_one_job(server: OpenAIServer) -> None:
    server.fail(f"POST {JOBS}", CUT)
    start(server).result(60)
    assert created(server) == 1


# -------------------------------------------------------------------------------------------------------------------- faults


def test_nobody_asks_again_sooner_than_the_server_said(server: OpenAIServer) -> None:
    start(server)  # so that everything is imported
    server.fail(f"POST {JOBS}", 429, times=2, Retry_After="0.3")
    began = time.monotonic()
    start(server, seed=2)
    assert time.monotonic() - began >= 0.6
    assert created(server) == 2


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),  # the finer one counts
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "-3"}, None),  # no wait that HTTP knows
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),  # it is over
        ({"retry-after": "soon"}, None),
    ],
)
def test_seconds_to_wait_are_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_to_wait_for_is_seconds_from_now() -> None:
    found = retry_after(
        {"retry-after": format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)}
    )
    assert found is not None
    assert 80 < found <= 90


def test_waits_grow_are_bounded_and_never_shorter_than_asked() -> None:
    usual = Polling()
    assert (usual.first, usual.most, usual.patience) == (0.5, 60, 15 * 60)  # seconds; docs/providers.md says so
    polling = Polling(first=1, growth=2, most=60, jitter=0.2)
    waits = [polling.wait(n) for n in range(200)]
    assert 0.8 <= waits[0] <= 1
    assert all(48 <= wait <= 60 for wait in waits[10:])
    assert len(set(waits[10:])) > 100
    assert polling.wait(0, retry_after=120) == 120
    assert polling.wait(0, retry_after=float("inf")) == polling.wait(0, retry_after=1e300) == 3600


def test_a_server_that_dies_is_said_to_be_gone(server: OpenAIServer) -> None:
    server.polls = None
    job = start(server, polling=Polling(first=0.01, most=0.02, patience=0.1))
    server.close()
    with pytest.raises(TransientError, match="connection to http"):
        job.result(60)
    with pytest.raises(TransientError, match="connection to http"):
        job.status()


def test_a_server_that_hangs_is_asked_again(server: OpenAIServer) -> None:
    class Impatient(OpenAIProvider):
        timeout = 1.0  # in which the server makes the job, at the least

    provider = Impatient({"api_base": server.url}, {"api_key": KEY}, polling=QUICK)
    creating, create = server.hold(f"POST {JOBS}", after=True)
    looking, look = server.hold(f"GET {JOBS}/")
    job = dspyc.LM(BASE, provider=provider).finetune(rows(), TrainDataFormat.CHAT, {})
    assert creating.is_set()
    assert job.wait(60) is JobStatus.succeeded
    assert looking.is_set()
    assert created(server) == 1
    create.set()
    look.set()


def test_expired_credentials_are_not_taken_for_a_missing_job(server: OpenAIServer) -> None:
    server.polls = None
    job = start(server)
    server.key = "sk-canary-another-key"
    for ask in (job.status, job.events, job.metrics, job.cancel, lambda: job.result(60)):
        with pytest.raises(ProviderError, match="401") as caught:
            ask()
        assert "OPENAI_API_KEY" in caught.value.hint
        assert KEY not in str(caught.value)


def test_a_job_that_never_ends(server: OpenAIServer) -> None:
    server.polls = None
    job = start(server)
    with pytest.raises(TimeoutError, match="after 0 s; it goes on"):
        job.result(timeout=0)
    limited = start(server, timeout=0.2)
    with pytest.raises(TrainingError, match="after its timeout"):
        limited.result(60)
    assert start(server).remote_id == limited.remote_id == job.remote_id
    assert job.cancel()


def test_a_job_is_waited_for_again_after_its_timeout_or_an_outage(server: OpenAIServer) -> None:
    server.polls = None
    job = start(server, polling=Polling(first=0.01, most=0.02, patience=0.1), timeout=0.2)
    for waiting, polling in ((job, job.provider.polling), (attach(job.id), Polling(first=0.01, patience=0.1))):
        waiting.provider.polling = polling
        server.fail(f"GET {JOBS}/", 503, times=1000)
        with pytest.raises(TransientError, match="503"):
            waiting.result(60)
        with pytest.raises(TransientError, match="503"):
            waiting.wait(60)
        server.heal()
    for ask in (job.result, job.wait):
        with pytest.raises(TrainingError, match="after its timeout"):
            ask(60)
    server.polls = 0
    assert job.result(60).cache is False  # the caller's own LM, with its settings
    assert waiting.wait(60) is JobStatus.succeeded
    assert created(server) == 1


def test_faults_are_not_borne_beyond_the_timeout(server: OpenAIServer) -> None:
    server.fail(f"GET {JOBS}/", 503, times=1000)
    with pytest.raises(TransientError, match="503"):  # not the TimeoutError of `result`
        start(server, polling=Polling(first=0.01, most=0.05, patience=60), timeout=0.2).result(30)


def test_a_job_cancelled_here_and_one_cancelled_elsewhere(server: OpenAIServer) -> None:
    server.polls = None
    job = start(server)
    assert job.cancel()
    assert server.jobs["ftjob-1"]["status"] == "cancelled"
    with pytest.raises(TrainingError, match="was cancelled"):
        job.result(60)
    other = start(server, seed=2)
    server.jobs["ftjob-2"]["status"] = "cancelled"
    assert other.wait(60) is JobStatus.cancelled
    assert not other.cancel()


def test_an_unknown_job_and_an_unsupported_model(server: OpenAIServer) -> None:
    server.polls = None
    with pytest.raises(ProviderError, match="not available for fine-tuning"):
        start(server, model="openai/unknown")
    job = start(server)
    del server.jobs["ftjob-1"]
    with pytest.raises(ProviderError, match=r"404.*ftjob-1"):
        job.status()
    with pytest.raises(ConfigError, match="No job 'nothing' is known"):
        attach("nothing")


def test_who_may_no_longer_create_jobs_is_told_the_alternatives(
    server: OpenAIServer,
) -> None:
    lm = at_openai(server)
    server.fail(f"POST {JOBS}", 403)
    with pytest.raises(ProviderError, match="403") as caught:
        lm.finetune(rows(), TrainDataFormat.CHAT, {})
    for alternative in ("2026-05-07", "Azure", "Bedrock", "LocalLM", "api_base"):
        assert alternative in caught.value.hint


def test_a_server_that_speaks_something_else(server: OpenAIServer) -> None:
    server.carry_out = lambda *_: {"hello": "world"}  # type: ignore[method-assign]
    with pytest.raises(ProviderError, match="without an id"):
        start(server)


# -------------------------------------------------------------------------------------------------- refused before it is sent


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"n_epoch": 3}, "Did you mean 'n_epochs'"),
        ({"n_epochs": 0}, "from 1 to 50"),
        ({"n_epochs": True}, "from 1 to 50"),
        ({"n_epochs": 2, "hyperparameters": {"n_epochs": 3}}, "both 2 and 3"),
        ({"hyperparameters": {"lr": 1}}, "no hyperparameter 'lr'"),
        ({"beta": 0.1}, "belongs to method 'dpo'"),
        ({"method": "reinforcement"}, "'supervised' or 'dpo'"),
        ({"suffix": ""}, "1 to 64"),
        ({"seed": "x"}, "whole number"),
        ({"metadata": {"a": 1}}, "names with texts"),
        ({"max_usd": 1}, "no price is known"),
        ({"max_usd": "1"}, "number from 0 up"),
        ({"timeout": -1}, "number from 0 up"),
    ],
)
def test_settings_that_would_be_refused(server: OpenAIServer, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        start(server, **kwargs)
    assert said in str(caught.value)
    assert not server.seen


def test_the_price_and_the_start_are_said(server: OpenAIServer, caplog: pytest.LogCaptureFixture) -> None:
    job = start(server)
    started = f"Job {job.id} was started: ftjob-1. It goes on when this process ends."
    assert 0 < caplog.text.index("no price is known here") < caplog.text.index(started)
    start(server)
    assert f"Job {job.id} was started before (ftjob-1): attached to it." in caplog.text


def test_a_price_above_the_limit_stops_the_order() -> None:
    lm = dspyc.LM(BASE, api_key=KEY)  # OpenAI itself, which is never reached
    with pytest.raises(ConfigError, match=r"less than 0.01 USD .* The limit is 1e-06 USD"):
        lm.finetune(rows(), TrainDataFormat.CHAT, {"max_usd": 1e-6})


@pytest.mark.parametrize(
    ("data", "kind"),
    [([], DataError), (rows(3), DataError), ([{"messages": []}] * 12, DataError)],
)
def test_rows_that_would_be_refused(server: OpenAIServer, data: list[dict[str, Any]], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        make(server).finetune(data, TrainDataFormat.CHAT, {})
    assert not server.seen


# ------------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "kwargs",
    [
        {"api_key": "anything"},
        {"hyperparameters": {"databricks_token": "anything"}},
        {"metadata": {"note": KEY}},
        {"integrations": [{"wandb": {"api_key": "x"}}]},
    ],
)
def test_a_secret_among_the_settings_is_refused(server: OpenAIServer, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is a secret") as caught:
        start(server, **kwargs)
    assert "OPENAI_API_KEY" in caught.value.hint
    assert KEY not in str(caught.value)


def test_the_key_and_the_rows_are_in_no_log_and_no_file(
    server: OpenAIServer, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.fail(f"GET {JOBS}/", 500)
    lm = make(server)
    job = lm.finetune(rows(), TrainDataFormat.CHAT, {})
    job.result(60)
    server.key = "sk-canary-another-key"
    with pytest.raises(ProviderError) as caught:
        start(server, seed=9)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert caplog.records
    assert KEY not in caplog.text
    assert "row-canary" not in caplog.text
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert b"ftjob-1" in kept
    assert KEY.encode() not in kept
    assert b"row-canary" not in kept
    assert KEY not in repr(lm.provider)
    assert KEY.encode() not in pickle.dumps(lm.provider)
    assert copy.deepcopy(lm.provider) is lm.provider


@pytest.mark.parametrize(
    ("model", "variable"),
    [("together/x", "TOGETHER_BASE_URL"), ("fireworks/x", "FIREWORKS_API_URL"), (BASE, "OPENAI_BASE_URL")],
)
def test_a_variable_with_a_password_is_refused(model: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "https://me:hidden@host/v1")
    with pytest.raises(ConfigError, match=f"{variable} holds a secret") as caught:
        dspyc.LM(model)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://me:hidden@host/v1", "holds a secret"),
        ("me:hidden@host/v1", "no address of http or https"),
        ("//[me:hidden@host/v1", "cannot be read as an address"),
    ],
)
def test_an_address_with_a_password_is_refused_and_not_shown(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        dspyc.LM(BASE, api_base=address)
    assert "hidden" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ names and store


@pytest.mark.parametrize(
    ("model", "name", "called"),
    [
        ("openai/gpt-4.1", "openai", "openai/gpt-4.1"),
        ("ft:gpt-4.1:x", "openai", "openai/ft:gpt-4.1:x"),
        ("azure/x", "azure", "azure/x"),
        ("bedrock/amazon.nova-lite-v1", "bedrock", "bedrock/amazon.nova-lite-v1:0"),
        ("databricks/x", "databricks", "databricks/x"),
        ("together/x/y", "together", "together_ai/x/y"),
        ("fireworks_ai/x", "fireworks", "fireworks_ai/x"),
        ("vertex/x", "vertex", "vertex_ai/x"),
    ],
)
def test_a_provider_is_found_from_the_name(model: str, name: str, called: str) -> None:
    lm = dspyc.LM(model)
    assert (lm.provider.name, lm.model) == (name, called)


def test_models_of_others_and_of_this_machine() -> None:
    assert not dspyc.LM("anthropic/claude").provider.finetunable
    assert dspyc.LM("dspyc/tiny").provider.finetunable
    with pytest.raises(ConfigError, match="LM's model is ''"):
        dspyc.LM("")


def test_two_stores_do_not_undo_each_others_facts(server: OpenAIServer) -> None:
    job = start(server)
    job_store().update(job_store().find(job.id), facts={"endpoint": "e-1"})
    job.result(60)
    kept = job_store().find("ftjob-1")
    assert kept.facts["endpoint"] == "e-1"
    assert kept.tuned == job.result().model
