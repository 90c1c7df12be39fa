"""Databricks through the real databricks-sdk, against a workspace on the loopback."""

import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.clients.utils_finetune import TrainDataFormat

from dspyc.errors import ConfigError, DataError, ProviderError
from dspyc.providers.databricks import DatabricksProvider
from dspyc.providers.databricks_script import script
from dspyc.providers.job import RemoteJob
from dspyc.providers.known import attach
from dspyc.providers.polling import Polling

pytest.importorskip("databricks.sdk")

from .databricks_server import TOKEN, DatabricksServer

KWARGS: dict[str, Any] = {
    "train_data_path": "/Volumes/main/default/tuning/rows",
    "register_to": "main.default.triage",
    "task_type": "CHAT_COMPLETION",
}
ROWS = [
    {"messages": [{"role": "user", "content": f"{i}+{i}?"}, {"role": "assistant", "content": str(2 * i)}]}
    for i in range(3)
]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabricksServer]:
    with DatabricksServer() as made:
        monkeypatch.setenv("DATABRICKS_HOST", made.url)
        monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
        monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "databrickscfg"))
        monkeypatch.setenv("DSPYC_HOME", str(tmp_path / "home"))
        yield made


def finetune(rows: list[dict[str, Any]] = ROWS, **kwargs: Any) -> RemoteJob:
    provider = DatabricksProvider(polling=Polling(first=0.01, most=0.02, patience=10))
    with dspy.context(experimental=True):
        lm = dspy.LM("databricks/meta-llama/Llama-3.2-1B-Instruct", provider=provider)
        job = lm.finetune(rows, TrainDataFormat.CHAT, {**KWARGS, **kwargs})
    assert isinstance(job, RemoteJob)
    return job


def test_rows_become_a_model_behind_an_endpoint(server: DatabricksServer, caplog: pytest.LogCaptureFixture) -> None:
    job = finetune(databricks_host=server.url)
    tuned = job.result(30)
    (name,) = server.endpoints
    assert tuned.model == f"databricks/{name}"
    assert tuned.kwargs["api_base"] == f"{server.url}/serving-endpoints"
    (entity,) = server.endpoints[name]["config"]["served_entities"]
    assert (entity["entity_name"], entity["entity_version"]) == ("main.default.triage", "3")
    assert entity["scale_to_zero_enabled"] is True
    assert f"Started {name}: paid by the hour while it is awake" in caplog.text
    job.stop_endpoint()
    assert server.endpoints == {}
    job.stop_endpoint()


def test_an_endpoint_that_was_made_meanwhile_serves(server: DatabricksServer) -> None:
    job = finetune()
    tuned = job.result(30)
    server.fail("GET /api/2.0/serving-endpoints/", 404)  # as before another process made it
    assert job.start_endpoint() == tuned.model
    assert len(server.endpoints) == 1


def test_our_own_trainer_runs_on_ai_runtime(server: DatabricksServer) -> None:
    job = finetune(skip_deploy=True, accelerator="GPU_8xH100", training={"epochs": 2, "method": "lora"})
    (run,) = server.jobs.values()
    (task,) = run["tasks"]
    (deployment,) = task["ai_runtime_task"]["deployments"]
    assert deployment["compute"] == {"accelerator_type": "GPU_8xH100", "accelerator_count": 8}
    text = server.files[deployment["command_path"]].decode()
    data = f"/Volumes/main/default/tuning/rows/{job.record.token}/train.jsonl"
    assert f"dspyc train --data {data} --model meta-llama/Llama-3.2-1B-Instruct" in text
    assert "--num-processes 8" in text
    assert [json.loads(line) for line in server.files[data].decode().splitlines()] == ROWS
    job.wait(30)
    assert server.endpoints == {}
    assert job.start_endpoint().startswith("databricks/triage-dspyc-")
    job.stop_endpoint()
    served = finetune(
        accelerator="GPU_8xH100", training={"epochs": 2, "method": "lora"}
    )  # the same, but to be deployed
    assert served.result(30).model == f"databricks/{next(iter(server.endpoints))}"
    assert served.remote_id == job.remote_id


def test_the_script_is_bash_that_trains_and_registers(tmp_path: Path) -> None:
    text = script("base model", "/Volumes/a/b/c/d.jsonl", "/Volumes/a/b/c/run", "a.b.c", "t-1", {"task": "it's"})
    path = tmp_path / "train.sh"
    path.write_text(text)
    assert subprocess.run(["bash", "-n", str(path)], check=True).returncode == 0
    assert "--model 'base model' --out \"$work\" --merge --set 'task=\"it'\"'\"'s\"'" in text
    compile(text.partition("<<'REGISTER'\n")[2].removesuffix("REGISTER\n"), "register", "exec")
    assert "/final_model" in script("b", "d", "o", "a.b.c", "t", {"method": "full"})


@pytest.mark.parametrize("fails", [False, True])
def test_the_script_trains_on_a_local_disk_and_keeps_what_came_of_it(tmp_path: Path, fails: bool) -> None:
    volume, tools = tmp_path / "volume", tmp_path / "tools"
    (volume / "checkpoint-1").mkdir(parents=True)
    tools.mkdir()
    trains = 'while [ "$1" != --out ]; do shift; done; ls "$2"; echo {} >> "$2/events.jsonl"; mkdir "$2/final_model"'
    for name, does in {"pip": "true", "dspyc": f"{trains}; exit {int(fails)}", "python": 'echo "registers $2"'}.items():
        (tools / name).write_text(f"#!/bin/bash\n{does}\n")
        (tools / name).chmod(0o755)
    text = script("base", "/rows.jsonl", str(volume), "a.b.c", "t-1", {"method": "full"})
    done = subprocess.run(
        ["bash", "-c", text],
        env={"PATH": f"{tools}:/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == int(fails), done.stderr
    assert done.stdout.startswith("checkpoint-1\n")  # what the volume had is there
    assert ("/final_model" in done.stdout) is not fails
    assert {path.name for path in volume.iterdir()} == {"checkpoint-1", "events.jsonl", "final_model"}


def test_the_same_order_is_one_run(server: DatabricksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = finetune(skip_deploy=True), finetune(skip_deploy=True)
    monkeypatch.setenv(
        "DATABRICKS_HOST", "http://127.0.0.1:9"
    )  # a process elsewhere, with another workspace as its own
    other = attach(first.id)
    assert first.remote_id == second.remote_id == other.remote_id == "101"
    assert [job.wait(30) for job in (first, second, other)] == ["succeeded"] * 3


@pytest.mark.parametrize(
    ("environment", "settings", "host"),
    [
        ({}, {}, "https://usual"),
        ({"DATABRICKS_CONFIG_PROFILE": "prod"}, {}, "https://prod:8443?o=1"),
        ({}, {"databricks_profile": "prod"}, "https://prod:8443?o=1"),
        ({}, {"databricks_profile": "bare"}, None),  # it has no host, and none is inherited
        ({"DATABRICKS_HOST": "named/"}, {"databricks_profile": "prod"}, "https://named"),  # as the SDK decides
        ({"DATABRICKS_HOST": "named"}, {"databricks_host": "https://said/"}, "https://said"),
        ({"DATABRICKS_CONFIG_FILE": "none"}, {}, None),
    ],
)
def test_the_workspace_of_an_order_is_known_before_it_is_asked(
    environment: dict[str, str],
    settings: dict[str, str],
    host: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = "[DEFAULT]\nhost = https://usual/\ntoken = a%b\n[prod]\nhost = https://prod:8443/?o=1\n[bare]\ntoken = c\n"
    (tmp_path / "databrickscfg").write_text(file)
    monkeypatch.delenv("DATABRICKS_HOST", raising=False)
    monkeypatch.delenv("DATABRICKS_CONFIG_PROFILE", raising=False)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "databrickscfg"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert DatabricksProvider().place(settings) == ({"host": host} if host else {})


def test_the_default_profile_may_be_named_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_HOST", raising=False)
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "databrickscfg"))
    (tmp_path / "databrickscfg").write_text("[__settings__]\ndefault_profile = b\n[b]\nhost = https://b\n")
    assert DatabricksProvider().connection == {"host": "https://b"}
    (tmp_path / "databrickscfg").write_text("no section\n")
    assert DatabricksProvider().connection == {}


def test_events_and_metrics(server: DatabricksServer) -> None:
    job = finetune(skip_deploy=True)
    assert job.metrics() == {}  # it has not begun to train
    folder = f"{KWARGS['train_data_path']}/{job.record.token}/run"
    server.files[f"{folder}/events.jsonl"] = b'{"step": 0, "event": "started"}\n{"step": 10, "loss": 0.5}\n{"st'
    assert job.metrics() == {"steps": [{"step": 10, "loss": 0.5}]}
    job.wait(30)
    assert [(event.at, event.message) for event in job.events()] == [(1.79e9, "started"), (1.79e9 + 60, "SUCCESS")]


def test_a_wrong_token_is_said_at_once_and_kept_nowhere(
    server: DatabricksServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.DEBUG):
        finetune().result(30)
        monkeypatch.setenv("DATABRICKS_TOKEN", f"{TOKEN}-old")
        with pytest.raises(ProviderError, match="Incorrect API key") as caught:
            finetune(ROWS * 2)
    assert "databricks auth login" in caught.value.hint
    assert TOKEN not in caplog.text + str(caught.value)
    kept = [path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert kept
    assert not any(TOKEN.encode() in content for content in kept)


def test_no_credentials_are_said(server: DatabricksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_TOKEN")
    with pytest.raises(ConfigError, match="Databricks cannot be reached") as caught:
        finetune()
    assert "databricks auth login" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"train_data_path": None}, "There is no `train_data_path`"),
        ({"train_data_path": "dbfs:/rows"}, "`train_data_path` is 'dbfs:/rows'"),
        ({"register_to": "triage"}, "`register_to` is 'triage'"),
        ({"task_type": "CHAT"}, "`task_type` is 'CHAT'"),
        ({"accelerator": "H100"}, "`accelerator` is 'H100'"),
        ({"training": {"epochs": 0}}, "epochs"),
        ({"databricks_token": "your-token"}, "`databricks_token` in train_kwargs is a secret"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    server: DatabricksServer, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        finetune(**change)
    assert reason in str(caught.value)
    assert server.seen == []


@pytest.mark.parametrize("task", ["CHAT_COMPLETION", "INSTRUCTION_FINETUNE"])
def test_rows_of_either_task_are_chats_as_the_endpoint_is_asked(server: DatabricksServer, task: str) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    answer = {"role": "assistant", "content": "4"}
    job = finetune(
        [{"messages": [*asked, answer]}, {"prompt": "2+2?", "response": "4"}], task_type=task, skip_deploy=True
    )
    sent = server.files[f"{KWARGS['train_data_path']}/{job.record.token}/train.jsonl"].decode().splitlines()
    assert [json.loads(line) for line in sent] == [{"messages": [*asked, answer]}, {"messages": [asked[1], answer]}]


def test_rows_that_would_be_refused_are_named(server: DatabricksServer) -> None:
    with pytest.raises(DataError, match="Row 2: the last turn is the user's"):
        finetune([ROWS[0], {"messages": ROWS[0]["messages"][:1]}])
    assert server.seen == []


def test_settings_of_the_service_that_databricks_removed_are_refused(server: DatabricksServer) -> None:
    with pytest.raises(ConfigError, match="databricks has no setting 'service'"):
        finetune(service="foundation-model")
    assert server.seen == []
