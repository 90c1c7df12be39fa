"""Bedrock through the real boto3: rows in moto's S3, jobs and endpoints at a server built from botocore's service model."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import dspy
import pytest
from dspy.clients.utils_finetune import TrainDataFormat
from typer.testing import CliRunner

from dspyc.cli import app
from dspyc.errors import ConfigError, DataError, ProviderError, TrainingError, TransientError
from dspyc.providers.bedrock import BedrockProvider
from dspyc.providers.bedrock_settings import base_model, hyperparameters, job_name, model_name, read_settings
from dspyc.providers.job import RemoteJob
from dspyc.providers.known import attach, forget
from dspyc.providers.polling import Polling

pytest.importorskip("moto.server")

from .bedrock_server import CREATE, LOOK, MODEL, BedrockServer
from .http_server import LOST

ROLE = "arn:aws:iam::123456789012:role/tuner"
KWARGS: dict[str, Any] = {"s3_path": "s3://rows-bucket/fine-tuning-data/", "role_arn": ROLE}
ROWS = [
    {"messages": [{"role": "user", "content": f"{i}+{i}?"}, {"role": "assistant", "content": str(2 * i)}]}
    for i in range(8)
]
NOVA = "bedrock/amazon.nova-lite-v1"
TITAN = "bedrock/amazon.titan-text-express-v1"
CANARY = "canary-5f1d9c30"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BedrockServer]:
    with BedrockServer() as made:
        environment = {
            "AWS_ENDPOINT_URL": made.url,
            "AWS_ACCESS_KEY_ID": f"{CANARY}-id",
            "AWS_SECRET_ACCESS_KEY": f"{CANARY}-secret",
            "AWS_SESSION_TOKEN": f"{CANARY}-token",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "DSPYC_HOME": str(tmp_path / "home"),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        bucket().create()
        yield made


def bucket() -> Any:
    return boto3.resource("s3").Bucket("rows-bucket")


def provider(**polling: float) -> BedrockProvider:
    return BedrockProvider(polling=Polling(**{"first": 0.01, "most": 0.02, "patience": 5.0, **polling}))


def finetune(model: str = NOVA, rows: list[dict[str, Any]] = ROWS, **kwargs: Any) -> RemoteJob:
    with dspy.context(experimental=True):
        lm = dspy.LM(model, provider=provider())
        job = lm.finetune(rows, TrainDataFormat.CHAT, {**KWARGS, **kwargs})
    assert isinstance(job, RemoteJob)
    return job


def test_rows_become_a_model_that_is_called_on_demand(server: BedrockServer) -> None:
    tuned = finetune(hyperparameters={"epochCount": 2, "batchSize": 4, "learningRate": 1e-5}).result(30)
    (job,) = server.jobs.values()
    (endpoint,) = server.endpoints
    assert tuned.model == f"bedrock/converse/{endpoint}"
    assert tuned.kwargs["aws_region_name"] == "us-east-1"
    assert server.endpoints[endpoint]["modelArn"] == job["outputModelArn"]
    assert job["baseModelIdentifier"] == "amazon.nova-lite-v1:0:300k"
    assert job["hyperParameters"] == {"epochCount": "2", "learningRate": "0.00001"}  # Nova has no batch size
    assert (job["customizationType"], job["roleArn"]) == ("FINE_TUNING", ROLE)
    assert {"key": "dspyc-job", "value": next(iter(job["jobTags"]))["value"]} in job["customModelTags"]


def test_the_rows_are_in_s3_as_nova_takes_them(server: BedrockServer) -> None:
    job = finetune(validation_data=ROWS)
    (made,) = server.jobs.values()
    uri = made["trainingDataConfig"]["s3Uri"]
    assert uri == f"s3://rows-bucket/fine-tuning-data/{job.record.token}/train.jsonl"
    lines = bucket().Object(uri.removeprefix("s3://rows-bucket/")).get()["Body"].read().decode().splitlines()
    assert len(lines) == len(ROWS)
    assert json.loads(lines[3])["messages"][0] == {"role": "user", "content": [{"text": "3+3?"}]}
    assert made["validationDataConfig"]["validators"][0]["s3Uri"].endswith("/validation.jsonl")
    assert made["outputDataConfig"]["s3Uri"].endswith("/output/")
    job.wait(30)


def test_other_models_take_prompts_and_throughput_that_is_said_to_cost(
    server: BedrockServer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="provisioned throughput, which costs by the hour"):
        finetune(TITAN)
    job = finetune(TITAN, start_endpoint=True, model_units=2, commitment="OneMonth")
    tuned = job.result(30)
    (made,) = server.jobs.values()
    assert made["hyperParameters"] == {"epochCount": "3", "batchSize": "4", "learningRate": "0.00001"}
    key = made["trainingDataConfig"]["s3Uri"].removeprefix("s3://rows-bucket/")
    first = bucket().Object(key).get()["Body"].read().decode().splitlines()[0]
    assert json.loads(first) == {"prompt": "0+0?", "completion": "0"}
    (endpoint,) = server.endpoints.values()
    assert (endpoint["modelUnits"], endpoint["commitmentDuration"]) == (2, "OneMonth")
    assert tuned.model == f"bedrock/converse/{endpoint['provisionedModelArn']}"
    assert "2 model unit(s) are paid by the hour, for OneMonth at least" in caplog.text
    job.stop_endpoint()
    assert server.endpoints == {}
    job.stop_endpoint()  # none is no error
    assert job.start_endpoint() != tuned.model  # another endpoint, of the same model


def test_training_alone_starts_no_endpoint(server: BedrockServer) -> None:
    job = finetune(start_endpoint=False)
    assert ":custom-model/" in job.result(30).model
    assert server.endpoints == {}
    assert ":custom-model-deployment/" in job.start_endpoint()


def test_the_result_is_the_endpoint_that_was_started_last(server: BedrockServer) -> None:
    server.polls = server.ready = 0
    job = finetune(start_endpoint=False)
    job.wait(30)
    for _ in range(2):
        attach(job.id).start_endpoint()
        (endpoint,) = server.endpoints
        started = job.start_endpoint()
        assert started == f"bedrock/converse/{endpoint}"
        for found in (job, attach(job.id), finetune(start_endpoint=False)):
            assert found.result(30).model == started
        job.stop_endpoint()
    assert ":custom-model/" in finetune(start_endpoint=False).result(30).model  # not an endpoint that is gone


def test_an_order_that_serves_is_served_again_after_its_endpoint_was_stopped(server: BedrockServer) -> None:
    server.polls = server.ready = 0
    job = finetune()
    first = job.result(30).model
    job.stop_endpoint()
    assert attach(job.id).wait(30) == "succeeded"
    assert server.endpoints == {}
    assert finetune().result(30).model != first
    assert (len(server.jobs), len(server.endpoints)) == (1, 1)


@pytest.mark.parametrize(
    ("model", "start"),
    [(NOVA, "POST /model-customization/custom-model-deployments"), (TITAN, "POST /provisioned-model-throughput")],
)
def test_an_endpoint_whose_answer_was_lost_is_found_and_ended(server: BedrockServer, model: str, start: str) -> None:
    server.polls = server.ready = 0
    job = finetune(model, start_endpoint=False)
    job.wait(30)
    for again in (attach(job.id).start_endpoint, None):
        server.fail(start, LOST)
        with pytest.raises(TransientError):
            job.provider.start_endpoint(job.record)  # as a process that ends there
        (endpoint,) = server.endpoints
        if again:
            assert again() == f"bedrock/converse/{endpoint}"
        attach(job.id).stop_endpoint()
        assert server.endpoints == {}
    assert job.start_endpoint() != f"bedrock/converse/{endpoint}"


def test_an_endpoint_that_another_process_started_or_deleted(server: BedrockServer) -> None:
    server.polls = server.ready = 0
    job = finetune(start_endpoint=False)
    job.wait(30)
    attach(job.id).start_endpoint()
    job.stop_endpoint()
    assert server.endpoints == {}
    first = job.start_endpoint()
    server.endpoints.clear()  # in the console
    assert job.start_endpoint() != first
    assert len(server.endpoints) == 1


def test_an_endpoint_that_is_refused_is_no_endpoint(server: BedrockServer) -> None:
    server.polls = server.ready = 0
    job = finetune(start_endpoint=False)
    job.wait(30)
    server.fail("POST /model-customization/custom-model-deployments", 400, code="ServiceQuotaExceededException")
    with pytest.raises(ProviderError, match="ServiceQuotaExceededException"):
        job.start_endpoint()
    assert forget(job.id).state == "forgotten"


def test_an_endpoint_that_goes_on_is_named_when_its_job_is_forgotten(server: BedrockServer) -> None:
    server.polls = server.ready = 0
    job = finetune()
    job.wait(30)
    refused = CliRunner().invoke(app, ["jobs", "forget", job.id])
    assert refused.exit_code == 1
    assert f"dspyc jobs stop-endpoint {job.id}" in " ".join(refused.output.split())
    stopped = CliRunner().invoke(app, ["jobs", "stop-endpoint", job.id])
    assert (stopped.exit_code, server.endpoints) == (0, {})
    assert job.id in stopped.output
    endpoint = attach(job.id).start_endpoint().split("/", 2)[-1]
    assert endpoint in server.endpoints
    assert endpoint in CliRunner().invoke(app, ["jobs", "forget", job.id, "--yes"]).output
    with pytest.raises(ConfigError, match="No job"):
        attach(job.id)


def test_an_order_that_is_served_in_another_way_is_the_same_job(server: BedrockServer) -> None:
    server.polls = server.ready = 0
    assert ":custom-model/" in finetune(TITAN, start_endpoint=False).result(30).model
    changed = {"model_units": 2, "commitment": "OneMonth", "tags": {"team": "desk"}}
    job = finetune(TITAN, start_endpoint=True, **changed)
    tuned = job.result(30)
    ((arn, endpoint),) = server.endpoints.items()
    assert tuned.model == f"bedrock/converse/{arn}"
    assert (endpoint["modelUnits"], endpoint["commitmentDuration"]) == (2, "OneMonth")
    assert attach(job.id).record.settings.items() >= changed.items()
    assert finetune(TITAN, start_endpoint=False).result(30).model == f"bedrock/converse/{arn}"  # which is up
    assert len(server.jobs) == 1


def test_the_same_order_is_one_job(server: BedrockServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = finetune(), finetune()
    assert first.remote_id == second.remote_id
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")  # the job's ARN says where it is
    other = attach(first.remote_id)
    assert other.id == first.id
    assert other.wait(30) == "succeeded"
    assert len(server.jobs) == 1
    first.wait(30)
    second.wait(30)
    assert len(server.endpoints) == 1


def test_a_look_that_was_begun_before_the_end_does_not_take_it_back(server: BedrockServer) -> None:
    server.ready = 0
    looking, look = server.hold(LOOK, after=True)
    with dspy.context(experimental=True):
        slow = dspy.LM(NOVA, provider=provider(first=600, most=600)).finetune(ROWS, TrainDataFormat.CHAT, KWARGS)
    assert looking.wait(30)
    server.polls = 0
    starting, start = server.hold("POST /model-customization/custom-model-deployments", after=True)
    quick, ended = attach(slow.id), []
    thread = threading.Thread(target=lambda: ended.append(quick.wait(30)))
    thread.start()
    assert starting.wait(30)  # it has seen the end
    look.set()
    deadline = time.monotonic() + 30
    while attach(slow.id).record.status == "succeeded" and time.monotonic() < deadline:
        time.sleep(0.01)
    start.set()
    thread.join()
    assert ended == ["succeeded"]
    assert attach(slow.id).record.status == "succeeded"


def test_an_answer_that_is_lost_is_no_second_job(server: BedrockServer) -> None:
    server.fail(CREATE, LOST)
    job = finetune()
    assert server.seen[server.seen.index(CREATE) + 1].startswith(LOOK)
    assert list(server.jobs) == [job.remote_id]
    job.wait(30)


def test_a_date_until_which_aws_asks_to_wait_is_read(server: BedrockServer) -> None:
    job = finetune()
    job.wait(30)
    server.fail(LOOK, 503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")
    with pytest.raises(TransientError) as caught:
        job.provider.look(job.record)
    assert caught.value.retry_after == 0


def test_a_job_that_fails_says_why(server: BedrockServer) -> None:
    server.failure = "Training data has 1 line that cannot be parsed"
    job = finetune()
    with pytest.raises(TrainingError, match="has 1 line that cannot be parsed"):
        job.result(30)
    assert job.events()[-1].message == f"Failed {server.failure}"


def test_a_job_is_cancelled_here_or_elsewhere(server: BedrockServer) -> None:
    server.polls = None
    job = finetune()
    assert job.cancel()
    assert job.wait(30) == "cancelled"
    assert not job.cancel()
    other = finetune(rows=ROWS * 2)
    boto3.client("bedrock").stop_model_customization_job(jobIdentifier=other.remote_id)
    with pytest.raises(TrainingError, match="was cancelled"):
        other.result(30)


def test_status_events_and_metrics(server: BedrockServer) -> None:
    server.polls = 4
    job = finetune(start_endpoint=False)
    job.wait(30)
    assert job.status() == "succeeded"
    assert job.metrics() == {"trainingLoss": 0.5}
    assert "created" in [event.message for event in job.events()]


@pytest.mark.parametrize("code", ["ExpiredTokenException", "UnrecognizedClientException", "AccessDeniedException"])
def test_credentials_that_do_not_serve_are_said_at_once(server: BedrockServer, code: str) -> None:
    server.fail(CREATE, 403, code=code)
    with pytest.raises(ProviderError, match=code) as caught:
        finetune()
    assert caught.value.hint
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert server.seen.count(CREATE) == 1


def test_no_credentials_at_all_are_said(server: BedrockServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(ProviderError, match="Unable to locate credentials"):
        finetune()
    with pytest.raises(ConfigError, match="sso-profile"):
        finetune(aws_profile="sso-profile")


def test_a_bucket_or_model_that_does_not_exist_is_said(server: BedrockServer) -> None:
    with pytest.raises(ProviderError, match="NoSuchBucket"):
        finetune(s3_path="s3://no-such-bucket/x")
    with pytest.raises(ProviderError, match="model identifier is invalid"):
        finetune("bedrock/amazon.unknown-v1", start_endpoint=False)
    assert server.jobs == {}


def test_rows_that_would_be_refused_are_named_before_anything_is_sent(server: BedrockServer) -> None:
    with pytest.raises(DataError, match=r"Row 9: turn 1 contains 'User:'"):
        finetune(rows=[*ROWS, {"messages": [{"role": "user", "content": "User: hi"}, ROWS[0]["messages"][1]]}])
    with pytest.raises(DataError, match="trains on 8 rows or more"):
        finetune(rows=ROWS[:7])
    assert [request for request in server.seen if "/train" in request] == []


def test_no_credential_is_written_or_logged(
    server: BedrockServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.DEBUG):
        finetune().result(30)
        server.fail(CREATE, 403)
        with pytest.raises(ProviderError) as caught:
            finetune(rows=ROWS * 2)
    assert CANARY not in caplog.text + str(caught.value)
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert kept
    assert not any(CANARY.encode() in path.read_bytes() for path in kept)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"s3_path": None}, "There is no `s3_path`"),
        ({"s3_path": "rows-bucket/x"}, "`s3_path` is 'rows-bucket/x'"),
        ({"s3_path": "s3://rows-bucket/a b"}, "`s3_path` is"),
        ({"role_arn": None}, "There is no `role_arn`"),
        ({"role_arn": "tuner"}, "`role_arn` is 'tuner'"),
        ({"hyperparameters": {"epochCount": 6}}, "epochCount is 6; this model takes whole numbers from 1 to 5"),
        ({"hyperparameters": {"epochCount": 2.5}}, "epochCount is 2.5"),
        ({"hyperparameters": {"epochCount": True}}, "epochCount is True"),
        ({"hyperparameters": {"epochCount": "many"}}, "epochCount is 'many'"),
        ({"hyperparameters": {"learningRate": 1e-3}}, "learningRate is 0.001; this model takes numbers from 1e-06"),
        ({"hyperparameters": {"warmup": 3}}, "takes no warmup"),
        ({"start_endpoint": "yes"}, "`start_endpoint` is 'yes'"),
        ({"model_units": 0}, "`model_units` is 0"),
        ({"commitment": "OneYear"}, "`commitment` is 'OneYear'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(NOVA, {**KWARGS, **change})
    assert reason in caught.value.message
    assert caught.value.hint


def test_hyperparameters_are_text_that_the_model_takes() -> None:
    assert hyperparameters("amazon.nova-pro-v1:0:300k", {}) == {"epochCount": "3", "learningRate": "0.00001"}
    assert hyperparameters("meta.llama3-2-1b-instruct-v1:0:128k", {})["batchSize"] == "1"
    assert hyperparameters("amazon.nova-pro-v1:0:300k", {"epochCount": None})["epochCount"] == "3"
    given = {"epochCount": "4", "learningRate": 0.00005, "learningRateWarmupSteps": 10}
    assert hyperparameters("amazon.nova-micro-v1:0:128k", given) == {
        "epochCount": "4",
        "learningRate": "0.00005",
        "learningRateWarmupSteps": "10",
    }


@pytest.mark.parametrize(
    ("base", "rate", "sent"),
    [
        ("meta.llama3-2-1b-instruct-v1:0:128k", 5e-6, "0.000005"),
        ("meta.llama3-2-1b-instruct-v1:0:128k", "0.1", "0.1"),
        ("amazon.nova-pro-v1:0:300k", 1e-6, "0.000001"),
        ("amazon.nova-pro-v1:0:300k", 1e-4, "0.0001"),
        ("amazon.titan-text-express-v1", 1e-7, "0.0000001"),
    ],
)
def test_the_ends_of_a_published_range_are_in_it(base: str, rate: float | str, sent: str) -> None:
    assert hyperparameters(base, {"learningRate": rate})["learningRate"] == sent


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("bedrock/amazon.nova-lite-v1", "amazon.nova-lite-v1:0:300k"),
        ("bedrock/converse/us.amazon.nova-micro-v1:0", "amazon.nova-micro-v1:0:128k"),
        ("bedrock/amazon.nova-pro-v1:0:300k", "amazon.nova-pro-v1:0:300k"),
        ("bedrock/meta.llama3-1-8b-instruct-v1:0:128k", "meta.llama3-1-8b-instruct-v1:0:128k"),
    ],
)
def test_the_base_is_the_variant_that_can_be_trained(given: str, base: str) -> None:
    assert base_model(given) == base


def test_a_base_whose_rows_nobody_writes_is_refused() -> None:
    with pytest.raises(ConfigError, match="its rows have a form of their own"):
        base_model("bedrock/anthropic.claude-3-haiku-20240307-v1:0:200k")


@pytest.mark.parametrize(
    "text", ["my_fine.tune job!", "amazon.nova-lite-v1:0:300k", "--", "é" * 9, "x" * 80, "a..b--c"]
)
def test_names_are_made_valid(text: str) -> None:
    shape = MODEL.operation_model("CreateModelCustomizationJob").input_shape
    for name, made in (
        ("jobName", job_name(text, "dspyc-12ab-1")),
        ("customModelName", model_name(text, "dspyc-12ab-1")),
    ):
        import re

        limits = shape.members[name].metadata
        assert re.fullmatch(limits["pattern"], made)
        assert len(made) <= limits["max"]
        assert made.endswith("dspyc-12ab-1")
