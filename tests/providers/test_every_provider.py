"""What holds at every provider: a compile ends in a program that answers, any process can follow its job, and a process that is
killed at any moment leaves one job."""

from pathlib import Path
from typing import Any

import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from dspyc.errors import DataError
from dspyc.providers import JobStatus, RemoteJob, attach
from dspyc.providers.polling import Polling
from dspyc.providers.store import job_store

from .compiling import Elsewhere, cancel, compile_program, compiled_model, status
from .everyone import EVERYONE, ROWS, Case, every_provider
from .http_server import HttpServer


def finetune(case: Case, server: HttpServer, rows: list[Any], **kwargs: Any) -> RemoteJob:
    made = case.lm(server).finetune(rows, TrainDataFormat.CHAT, kwargs)
    assert isinstance(made, RemoteJob)
    return made


def order(case: Case, server: HttpServer, folder: Path) -> tuple[Any, ...]:
    return case.model, case.lm_settings(server), case.train_kwargs, str(folder / "run")


@every_provider
def test_a_compile_ends_in_a_program_that_answers(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with case.server(polls=0) as server:
        case.sign_in(server, tmp_path, monkeypatch)
        compiled = compile_program(*order(case, server, tmp_path))
        assert (compiled.report.before, compiled.report.after) == (0, 1)
        assert compiled(question="Is it tuned?").answer == "yes"
        (facts,) = compiled.report.training
        assert (facts["provider"], facts["base"], facts["model"]) == (case.name, case.model, compiled.lm.model)
        assert compiled.lm.model != case.model
        compiled.save(tmp_path / "artifact")
        assert dspyc.load(tmp_path / "artifact")(question="Is it loaded?").answer == "yes"
        assert Elsewhere(compiled_model, *order(case, server, tmp_path)).result() == compiled.lm.model
        assert len(server.jobs) == 1


@every_provider
def test_a_second_process_sees_the_job_and_cancels_it(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with case.server(polls=None) as server:
        case.sign_in(server, tmp_path, monkeypatch)
        job = case.lm(server).finetune(ROWS, TrainDataFormat.CHAT, case.train_kwargs)
        before = Elsewhere(status, job.remote_id).result()
        assert not JobStatus(before).over
        assert Elsewhere(cancel, job.id).result()
        assert job.wait(60) is JobStatus.cancelled
        assert not job.cancel()
        (made,) = server.jobs.values()
        assert made.items() >= case.cancelled.items()


PLACES = {
    "openai": "OPENAI_BASE_URL",
    "azure": "AZURE_API_BASE",
    "databricks": "DATABRICKS_HOST",
    "together": "TOGETHER_BASE_URL",
    "fireworks": "FIREWORKS_API_URL",
}


@pytest.mark.parametrize("case", [case for case in EVERYONE if case.name in PLACES], ids=str)
def test_an_order_at_another_address_is_another_job_and_each_is_asked_at_its_own(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def order_at(server: HttpServer) -> RemoteJob:
        address, version = server.url.removesuffix("/v1"), "/v1" if case.name in ("openai", "together") else ""
        monkeypatch.setenv(PLACES[case.name], address + version)
        lm = dspyc.LM(case.model)
        lm.provider.polling = Polling(first=0.02, most=0.02)
        job = lm.finetune(ROWS, TrainDataFormat.CHAT, case.train_kwargs)
        assert isinstance(job, RemoteJob)
        return job

    with case.server(polls=None) as staging, case.server(polls=None) as prod:
        case.sign_in(staging, tmp_path, monkeypatch)
        first, second = order_at(staging), order_at(prod)
        assert first.id != second.id
        assert attach(first.id).cancel()  # though this shell's variable names the other server
        states = [next(iter(server.jobs.values())).items() >= case.cancelled.items() for server in (staging, prod)]
        assert states == [True, False]
        again = order_at(prod)
        assert (again.id, len(staging.jobs), len(prod.jobs)) == (second.id, 1, 1)
        assert again.cancel()
        for job in (first, second, again):
            job.wait(30)


@every_provider
def test_what_is_not_sent_starts_no_other_job_and_costs_nothing(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields of rows that the formatter passes over, and settings that are None."""
    with case.server(polls=0) as server:
        case.sign_in(server, tmp_path, monkeypatch)
        first = finetune(case, server, ROWS, **case.train_kwargs)
        first.wait(60)
        unsaid = dict.fromkeys(case.lm(server).provider.allowed)
        noted = [{**row, "note": "never sent " * 100} for row in ROWS]
        again = finetune(case, server, noted, **{**unsaid, **case.train_kwargs})
        assert (again.id, again.record.estimate) == (first.id, first.record.estimate)
        again.wait(60)
        with pytest.raises(DataError, match=r"Row 13: it is a list, not an object"):
            finetune(case, server, [*ROWS, ["no object"]], **case.train_kwargs)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bedrock", ({"aws_region": "us-east-1"}, {"aws_region_name": "us-east-1"})),
        ("bedrock", ({"role_arn": None}, {})),
        ("fireworks", ({"account_id": "me"}, {})),
        ("databricks", ({"databricks_host": "{url}/"}, {})),
        ("databricks", ({"databricks_profile": "desk"}, {})),
    ],
)
def test_the_same_place_is_the_same_job_however_it_is_said(
    name: str, said: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a setting, by an argument of dspyc.LM, or by a variable."""
    case = next(case for case in EVERYONE if case.name == name)
    with case.server(polls=0) as server:
        case.sign_in(server, tmp_path, monkeypatch)
        monkeypatch.setenv("DSPYC_BEDROCK_ROLE_ARN", "arn:aws:iam::123456789012:role/tuner")
        (tmp_path / "databrickscfg").write_text(f"[desk]\nhost = {server.url}\ntoken = {server.key}\n")
        setting, argument = ({k: v and v.format(url=server.url) for k, v in one.items()} for one in said)
        first = finetune(case, server, ROWS, **{**case.train_kwargs, **setting})
        first.wait(60)
        second = case.lm(server, **argument).finetune(ROWS, TrainDataFormat.CHAT, case.train_kwargs)
        assert isinstance(second, RemoteJob)
        assert (second.id, len(server.jobs)) == (first.id, 1)
        assert second.wait(60) is JobStatus.succeeded


MOMENTS = {
    "between upload and create": ("create", False),
    "between create and its answer": ("create", True),
    "while waiting": ("look", False),
    "between an endpoint and its answer": ("serve", True),
}


# What is known of a job while it is waited for is kept in one way for all providers.
KILLED = [
    pytest.param(case, moment, id=f"{case.name}-{moment}")
    for case in EVERYONE
    for moment, (request, _) in MOMENTS.items()
    if getattr(case, request) is not None and (request != "look" or case.name in ("openai", "bedrock"))
]


@pytest.mark.parametrize(("case", "moment"), KILLED)
def test_killed_there_is_one_job(case: Case, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request, after = MOMENTS[moment]
    with case.server(polls=0) as server:
        case.sign_in(server, tmp_path, monkeypatch)
        reached, go = server.hold(getattr(case, request), after)
        first = Elsewhere(compiled_model, *order(case, server, tmp_path))
        assert reached.wait(300)  # a process starts, with all that it imports
        first.process.kill()
        first.process.join()
        go.set()
        assert first.process.exitcode == -9
        second = Elsewhere(compiled_model, *order(case, server, tmp_path))
        assert second.result() != case.model
        assert len(server.jobs) == 1
        assert len(getattr(server, "endpoints", ["none"])) == 1
        assert [record.attempt for record in job_store().all()] == [1]
