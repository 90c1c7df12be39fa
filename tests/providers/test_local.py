"""LocalLM and local fine-tuning through DSPy's own door, `lm.finetune`."""

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
import torch
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus
from safetensors.torch import load_file

from dspyc.errors import ConfigError, DataError, DspycError, ModelError
from dspyc.providers import LocalLM, LocalProvider, LocalTrainingJob
from dspyc.providers.local import default_folder, split
from tests.models import small

QUICK = {"num_train_epochs": 2, "learning_rate": 1e-2, "show_progress": False}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("provider") / "student", seed=7, initializer_range=0.05)


def rows(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"number {i}"}, {"role": "assistant", "content": "yes"}]}
        for i in range(count)
    ]


def test_a_local_lm_is_a_plain_dspy_lm(student: Path) -> None:
    lm = LocalLM(student, max_tokens=5, temperature=0.0, cache=False)
    assert isinstance(lm, dspy.LM)
    assert lm.model == lm.engine.model_string
    assert lm.kwargs["max_tokens"] == 5
    assert lm.provider.finetunable
    assert len(lm("Hello")) == 1


@pytest.mark.parametrize("setting", ["api_key", "api_base", "max_token", "timeout"])
def test_settings_that_a_local_model_does_not_have(student: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"no setting {setting}") as caught:
        LocalLM(student, **{setting: "x"})
    assert "max_tokens" in caught.value.hint


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", 9),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_p", 1.5),
        ("top_k", -3),
        ("max_tokens", 0),
        ("stop", [""]),
        ("seed", "one"),
        ("n", 0),
        ("n", True),
    ],
)
def test_values_that_every_call_would_refuse(student: Path, setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"LocalLM's {setting} is {value!r}: ".replace("[", r"\[")) as caught:
        LocalLM(student, **{setting: value})
    assert setting in caught.value.hint
    assert LocalLM(student, **{setting: None}).kwargs[setting] is None


def test_a_setting_of_sampling_that_does_nothing_is_told(student: Path, caplog: pytest.LogCaptureFixture) -> None:
    LocalLM(student, top_p=0.9, top_k=5, temperature=1.0)
    assert "dspyc.providers.local" not in {record.name for record in caplog.records}
    LocalLM(student, top_p=0.9, top_k=5)
    assert "top_k=5 changes nothing and top_p=0.9 changes nothing" in caplog.text
    assert "temperature is None" in caplog.text


@pytest.mark.parametrize("model", [None, 7, b"bytes", "", "  "])
def test_models_that_are_no_name(model: Any) -> None:
    with pytest.raises(ConfigError, match="LocalLM's model is"):
        LocalLM(model)


def test_a_model_that_does_not_exist() -> None:
    with pytest.raises(ModelError, match=r"'\./gone' does not exist"):
        LocalLM("./gone")


def test_finetuning_gives_an_lm_that_says_what_it_was_taught(student: Path, tmp_path: Path) -> None:
    lm = LocalLM(student, max_tokens=3, cache=False)
    before = lm("number 3")
    job = lm.finetune(
        rows(), TrainDataFormat.CHAT, {**QUICK, "num_train_epochs": 4, "output_dir": str(tmp_path / "out")}
    )
    tuned = job.result(timeout=300)
    assert isinstance(tuned, dspy.LM), tuned
    assert job.status() is TrainingStatus.succeeded
    assert tuned.model != lm.model
    assert tuned("number 3") == ["yes"]
    assert lm("number 3") == before != ["yes"]
    state = {k: v for k, v in tuned.dump_state().items() if k != "_dspy_lm_class"}
    assert json.dumps(state)
    assert dspy.LM.load_state(state, allow_custom_lm_class=True)("number 3") == ["yes"]


@pytest.mark.parametrize(
    ("data", "data_format", "kwargs", "kind"),
    [
        ([], TrainDataFormat.CHAT, {}, DataError),
        (rows(), TrainDataFormat.COMPLETION, {}, ConfigError),
        (rows(), TrainDataFormat.GRPO_CHAT, {}, ConfigError),
        (rows(), TrainDataFormat.CHAT, {"validation_fraction": 2}, ConfigError),
        (rows(), TrainDataFormat.CHAT, {"no_such_setting": 1}, ConfigError),
    ],
)
def test_a_failed_job_returns_what_went_wrong(
    student: Path, data: Any, data_format: Any, kwargs: Any, kind: type[DspycError]
) -> None:
    job = LocalLM(student).finetune(data, data_format, kwargs)
    assert isinstance(job.result(timeout=60), kind)
    assert job.status() is TrainingStatus.failed


def test_an_adapter_that_a_model_wears_is_trained_further(student: Path, tmp_path: Path) -> None:
    worn = small.lora(student, tmp_path / "worn", seed=1, r=16, lora_alpha=32, target_modules="all-linear")
    lm = LocalLM(student, worn)
    tuned = lm.finetune(rows(), TrainDataFormat.CHAT, {**QUICK, "learning_rate": 1e-9}).result(timeout=60)
    assert isinstance(tuned, dspy.LM), tuned
    before, after = (load_file(engine.adapter / "adapter_model.safetensors") for engine in (lm.engine, tuned.engine))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    error = lm.finetune(rows(), TrainDataFormat.CHAT, {**QUICK, "lora_rank": 2}).result(timeout=60)
    assert isinstance(error, ConfigError)
    assert "r is 16, not 2" in str(error)


def test_a_job_is_cancelled_before_it_begins_and_not_after() -> None:
    job = LocalTrainingJob(model="local/x", train_data=rows())
    assert job.status() is TrainingStatus.not_started
    assert job.cancel() is True
    assert job.status() is TrainingStatus.cancelled
    with pytest.raises(SystemExit):
        LocalProvider.finetune(job, "local/x", rows(), TrainDataFormat.CHAT)
    running = LocalTrainingJob(model="local/x", train_data=rows())
    running.set_running_or_notify_cancel()
    assert running.status() is TrainingStatus.running
    assert running.cancel() is False


def test_the_held_out_rows_are_the_same_each_time() -> None:
    data = rows(50)
    train, held_out = split(data, 0.1)
    assert (len(train), len(held_out)) == (45, 5)
    assert split(data, 0.1) == (train, held_out)
    assert sorted([*train, *held_out], key=str) == sorted(data, key=str)
    assert split(rows(9), 0.1) == (rows(9), [])
    assert split(data, 0) == (data, [])


def test_a_run_has_a_folder_named_after_its_content() -> None:
    folder = default_folder("local/tiny@0123", rows(), {"seed": 1})
    assert folder == default_folder("local/tiny@0123", rows(), {"seed": 1})
    assert folder.parent.name == "finetuned"
    assert folder.name.startswith("tiny-")
    assert folder != default_folder("local/tiny@0123", rows(), {"seed": 2})
    assert folder != default_folder("local/tiny@4567", rows(), {"seed": 1})


def test_how_a_run_is_carried_out_names_no_other_run(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSPYC_HOME", str(tmp_path))
    settings = {"max_steps": 1, "method": "full"}
    for more in ({}, {"show_progress": False}, {"num_processes": 1, "validation_fraction": 0.1, "output_dir": None}):
        LocalProvider.finetune(LocalTrainingJob(), str(student), rows(), TrainDataFormat.CHAT, settings | more)
    assert len(list((tmp_path / "finetuned").iterdir())) == 1
