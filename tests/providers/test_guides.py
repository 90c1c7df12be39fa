"""The guide to fine-tuning that DSPy's users know, run as it is written (`guide.py`), and the code in docs/providers.md.

`here` makes the only changes: `dspy.LM` is `dspyc.LM`, what the guide leaves to the reader ("Add more examples…") is there, and
a workspace's address is the local one. Servers are found by the environment variables that the real SDKs read.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import dspy
import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from dspyc.errors import ConfigError, DataError

pytest.importorskip("moto.server")
pytest.importorskip("databricks.sdk")

from .bedrock_server import BedrockServer
from .databricks_server import TOKEN, DatabricksServer
from .guide import (
    BASIC_USAGE,
    BEDROCK_KWARGS,
    CANCEL,
    CHAT_DATA,
    COMPLETION_DATA,
    DATABRICKS_KWARGS,
    ENDPOINTS,
    OPENAI_KWARGS,
    STATUS,
    SYSTEM_PROMPT_DATA,
    WITH_BOOTSTRAP_FINETUNE,
)
from .openai_server import KEY, OpenAIServer

ROLE = "arn:aws:iam::123456789012:role/tuner"

SAID = {"role": "assistant", "content": "The capital of that country is its largest city."}
MORE = [{"messages": [{"role": "user", "content": f"What is the capital of country {i}?"}, SAID]} for i in range(9)]
PAIRS = [{"prompt": f"What is the capital of country {i}?", "completion": "Its largest city."} for i in range(9)]


def here(code: str, workspace: str = "") -> str:
    """The guide's code with what may be changed."""
    changes = {
        "dspy.LM(": "dspyc.LM(",
        "# Add more examples...": "*MORE,",
        "https://your-workspace.cloud.databricks.com": workspace,
    }
    for theirs, ours in changes.items():
        code = code.replace(theirs, ours)
    return code


def run(code: str, **names: Any) -> dict[str, Any]:
    """The code's names once it has run."""
    names = {"dspyc": dspyc, "MORE": MORE, **names}
    exec(compile(code, "guide", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))


@pytest.fixture
def bedrock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BedrockServer]:
    with BedrockServer(polls=0, ready=0) as server:
        environment = {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_BEDROCK_RUNTIME_ENDPOINT": server.url,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "DSPYC_BEDROCK_ROLE_ARN": ROLE,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        boto3.resource("s3").Bucket("your-bucket").create()
        yield server


@pytest.fixture
def databricks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabricksServer]:
    with DatabricksServer(polls=0) as server:
        monkeypatch.delenv("DATABRICKS_HOST", raising=False)
        monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
        monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "databrickscfg"))
        yield server


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    with OpenAIServer(polls=1) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield server


# ----------------------------------------------------------------------------------------------------------------- Bedrock


def test_basic_usage(bedrock: BedrockServer, capsys: pytest.CaptureFixture[str]) -> None:
    """`result()` is an LM here, and `dspyc.LM(model=…)` takes it. The role, which the guide does not name and AWS requires,
    comes from DSPYC_BEDROCK_ROLE_ARN."""
    names = run(here(BASIC_USAGE))
    (job,) = bedrock.jobs.values()
    (endpoint,) = bedrock.endpoints
    assert names["finetuned_lm"].model == f"bedrock/converse/{endpoint}"
    assert "What is the capital of Germany?" in capsys.readouterr().out
    assert job["hyperParameters"] == {"epochCount": "3", "learningRate": "0.00001"}  # Nova has no batch size
    assert job["trainingDataConfig"]["s3Uri"].startswith("s3://your-bucket/fine-tuning-data/")


def test_bedrocks_arguments(bedrock: BedrockServer) -> None:
    train_kwargs = run(BEDROCK_KWARGS)["train_kwargs"]
    chats = run(SYSTEM_PROMPT_DATA)["chat_data"] + MORE
    job = dspyc.LM("bedrock/amazon.nova-micro-v1").finetune(chats, TrainDataFormat.CHAT, train_kwargs)
    assert "tuned: " in job.result(60)("What is the capital of Germany?", cache=False)[0]
    assert job.start_endpoint() == job.result(60).model  # it is up
    (made,) = bedrock.jobs.values()
    assert made["jobName"].startswith("my-finetune-job-dspyc-")
    key = made["trainingDataConfig"]["s3Uri"].removeprefix("s3://your-bucket/")
    rows = boto3.resource("s3").Object("your-bucket", key).get()["Body"].read().decode()
    assert '"system": [{"text": "You are a helpful assistant specialized in geography."}]' in rows.splitlines()[0]
    assert len(bedrock.endpoints) == 1

    run(ENDPOINTS, job=job)
    assert bedrock.endpoints == {}


def test_the_default_profile_is_not_another_in_the_environment(
    bedrock: BedrockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "somebody-elses")
    with pytest.raises(ConfigError, match=r"profile \(default\) could not be found"):
        run(here(BASIC_USAGE))


def test_completion_rows_at_bedrock(bedrock: BedrockServer) -> None:
    """Models other than Nova cost by the hour where they are served, so `start_endpoint` is said, as the guide's second example
    says it."""
    rows = run(COMPLETION_DATA)["completion_data"] + PAIRS
    train_kwargs = run(BEDROCK_KWARGS)["train_kwargs"]
    lm = dspyc.LM("bedrock/amazon.titan-text-express-v1")
    job = lm.finetune(rows, TrainDataFormat.COMPLETION, train_kwargs)
    job.wait(60)
    (made,) = bedrock.jobs.values()
    assert made["hyperParameters"] == {"epochCount": "3", "batchSize": "4", "learningRate": "0.00001"}
    key = made["trainingDataConfig"]["s3Uri"].removeprefix("s3://your-bucket/")
    lines = boto3.resource("s3").Object("your-bucket", key).get()["Body"].read().decode().splitlines()
    assert lines[0] == '{"prompt": "What is the capital of France?", "completion": "Paris is the capital of France."}'
    job.stop_endpoint()


@pytest.mark.parametrize("given", [{}, {"hyperparameters": {}}])
def test_bedrocks_default_values(bedrock: BedrockServer, given: dict[str, Any]) -> None:
    train_kwargs = {"s3_path": "s3://your-bucket/fine-tuning-data/", "start_endpoint": False, **given}
    dspyc.LM("bedrock/amazon.titan-text-express-v1").finetune(MORE, TrainDataFormat.CHAT, train_kwargs).wait(60)
    (made,) = bedrock.jobs.values()
    assert made["hyperParameters"] == {"epochCount": "3", "batchSize": "4", "learningRate": "0.00001"}


# ------------------------------------------------------------------------------------------------------------------ OpenAI


@pytest.mark.parametrize(
    ("data", "name", "form", "more"),
    [
        (CHAT_DATA, "chat_data", TrainDataFormat.CHAT, MORE),
        (COMPLETION_DATA, "completion_data", TrainDataFormat.COMPLETION, PAIRS),
    ],
)
def test_openais_arguments(openai: OpenAIServer, data: str, name: str, form: TrainDataFormat, more: list[Any]) -> None:
    lm = dspyc.LM("openai/gpt-4.1-mini-2025-04-14")
    job = lm.finetune(
        train_data=run(data)[name] + more,
        train_data_format=form,
        train_kwargs=run(OPENAI_KWARGS)["train_kwargs"],
    )
    assert "ok" in job.result(60)("What is the capital of Germany?", cache=False)[0]
    (order,) = openai.bodies
    assert order["method"]["supervised"]["hyperparameters"] == {
        "n_epochs": 3,
        "batch_size": 4,
        "learning_rate_multiplier": 1.0,
    }
    content = openai.files[order["training_file"]]["content"].decode().splitlines()
    assert len(content) == 10
    assert content[0].startswith('{"messages": [')


# -------------------------------------------------------------------------------------------------------------- Databricks


def databricks_kwargs(server: DatabricksServer, **changes: Any) -> dict[str, Any]:
    """The guide's, without the token, which `test_databricks_token_is_refused` is about."""
    names = run(here(DATABRICKS_KWARGS, server.url))
    return {**{k: v for k, v in names["train_kwargs"].items() if k != "databricks_token"}, **changes}


@pytest.mark.parametrize(
    ("changes", "rows", "form"),
    [
        ({}, MORE, TrainDataFormat.CHAT),
        ({"task_type": "INSTRUCTION_FINETUNE"}, PAIRS, TrainDataFormat.COMPLETION),
    ],
)
def test_databricks_arguments(
    databricks: DatabricksServer, changes: dict[str, Any], rows: list[Any], form: TrainDataFormat
) -> None:
    lm = dspyc.LM("databricks/meta-llama/Llama-3.2-1B-Instruct")
    job = lm.finetune(rows, form, databricks_kwargs(databricks, **changes))
    databricks.reply = lambda request: f"{request['model']} says Berlin"
    tuned = job.result(60)
    (endpoint,) = databricks.endpoints
    assert tuned("What is the capital of Germany?", cache=False) == [f"{endpoint} says Berlin"]
    assert databricks.endpoints[endpoint]["config"]["served_entities"][0]["entity_name"] == "catalog.schema.model_name"
    assert any(path.startswith("/Volumes/catalog/schema/volume/path/") for path in databricks.files)


def test_databricks_skip_deploy(databricks: DatabricksServer) -> None:
    lm = dspyc.LM("databricks/meta-llama/Llama-3.2-1B-Instruct")
    job = lm.finetune(MORE, TrainDataFormat.CHAT, databricks_kwargs(databricks, skip_deploy=True))
    job.wait(60)
    assert databricks.endpoints == {}
    run(ENDPOINTS, job=job)
    assert databricks.endpoints == {}


def test_databricks_token_is_refused(databricks: DatabricksServer) -> None:
    """As written the example puts a token into settings, which are kept on the disk: it is refused, and the right way said."""
    train_kwargs = run(here(DATABRICKS_KWARGS, databricks.url))["train_kwargs"]
    lm = dspyc.LM("databricks/meta-llama/Llama-3.2-1B-Instruct")
    with pytest.raises(ConfigError, match="`databricks_token` in train_kwargs is a secret") as caught:
        lm.finetune(MORE, TrainDataFormat.CHAT, train_kwargs)
    assert "DATABRICKS_TOKEN" in caught.value.hint
    assert "your-token" not in str(caught.value)
    assert databricks.seen == []


# -------------------------------------------------------------------------------------------------------------------- jobs


def test_a_jobs_status_and_cancel(
    bedrock: BedrockServer,
    openai: OpenAIServer,
    databricks: DatabricksServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bedrock.polls = databricks.polls = openai.polls = None
    orders = {
        "bedrock/amazon.nova-lite-v1": run(BEDROCK_KWARGS)["train_kwargs"],
        "openai/gpt-4.1-mini-2025-04-14": run(OPENAI_KWARGS)["train_kwargs"],
        "databricks/meta-llama/Llama-3.2-1B-Instruct": databricks_kwargs(databricks),
    }
    jobs = [
        dspyc.LM(model).finetune([*MORE, MORE[0]], TrainDataFormat.CHAT, kwargs) for model, kwargs in orders.items()
    ]
    for job in jobs:
        run(STATUS, job=job)
        run(CANCEL, job=job)
        assert job.wait(60) == "cancelled"
    words = [line.removeprefix("Job status: ") for line in capsys.readouterr().out.splitlines()]
    assert set(words) <= {"pending", "validating", "running"}
    assert [job["status"] for job in bedrock.jobs.values()] == ["Stopped"]
    assert [job["status"] for job in openai.jobs.values()] == ["cancelled"]
    assert [run["result"] for run in databricks.jobs.values()] == ["CANCELED"]


# ------------------------------------------------------------------------------------------------------ BootstrapFinetune


@pytest.mark.parametrize("optimizer", ["dspy.teleprompt", "dspyc"])
def test_bootstrap_finetune(bedrock: BedrockServer, capsys: pytest.CaptureFixture[str], optimizer: str) -> None:
    """DSPy's own optimizer, as the guide imports it, and dspyc's."""
    asked = []

    def reply(request: dict[str, Any]) -> str:
        asked.append(request["model"])
        return "[[ ## reasoning ## ]]\nIt is known.\n\n[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"

    bedrock.reply = reply
    code = here(WITH_BOOTSTRAP_FINETUNE).replace("dspy.teleprompt import", f"{optimizer} import")
    questions = (f"What is the capital of country {i}, {optimizer}?" for i in range(10))  # none is in a cache
    names = run(code, train_examples=[dspy.Example(question=q).with_inputs("question") for q in questions])
    (endpoint,) = bedrock.endpoints
    assert set(asked) == {"amazon.nova-lite-v1:0", endpoint}  # the base by the id that Bedrock knows
    assert names["optimized_program"].generate_answer.predict.lm.model == f"bedrock/converse/{endpoint}"
    assert capsys.readouterr().out.endswith("Paris\n")
    assert len(bedrock.jobs) == 1


def test_one_example_is_too_few(bedrock: BedrockServer) -> None:
    """The guide's list of one row is the beginning of a list: Nova's jobs take eight or more."""
    with pytest.raises(DataError, match="trains on 8 rows or more, and 1 can be used"):
        run(here(BASIC_USAGE).replace("*MORE,", ""))
    assert bedrock.jobs == {}


# -------------------------------------------------------------------------------------------------------------------- docs


@pytest.mark.parametrize("name", ["openai", "bedrock", "databricks"])
def test_the_code_in_the_docs(
    name: str,
    bedrock: BedrockServer,
    openai: OpenAIServer,
    databricks: DatabricksServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABRICKS_HOST", databricks.url)
    text = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f'dspyc.LM("{name}/' in block)
    names = run(code, rows=[*MORE, MORE[0]], TrainDataFormat=TrainDataFormat)
    assert str(names["job"].status()) == "succeeded"
    assert isinstance(names["tuned"], dspy.LM)
    assert bedrock.endpoints == databricks.endpoints == {}  # what was started has been stopped
