"""What `--launcher` tells accelerate, and what it makes of how the processes ended.

tests/training/test_processes.py starts real ones.
"""

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dspyc.cli.launch import _exit_code, _options
from dspyc.errors import ConfigError, TrainingError

CONFIG = "compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_processes: 3\nnum_machines: 1\n"


def options(*given: object, kind: str = "--multi_gpu") -> dict[str, str]:
    found = _options(*given)  # type: ignore[arg-type]
    assert found.pop(0) == kind  # without one accelerate starts one process on a machine without GPUs
    return dict(zip(found[::2], found[1::2], strict=True))


def ended(**exit_codes: int) -> ChildFailedError:
    failures = {
        rank: ProcessFailure(local_rank=rank, pid=100 + rank, exitcode=code, error_file="none")
        for rank, code in enumerate(exit_codes.values())
    }
    return ChildFailedError("dspyc", failures)


def test_processes_on_this_machine_take_any_free_port_and_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = options(2, None, "cpu")
    assert found["--num_processes"] == "2"
    assert found["--main_process_port"] == "0"
    assert int(found["--num_cpu_threads_per_process"]) >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert options(2, None, "cpu")["--num_cpu_threads_per_process"] == "5"


def test_a_config_file_says_how_many_unless_the_command_does(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(kind="MULTI_GPU"))
    assert options(None, config, "cpu")["--num_processes"] == "3"
    assert options(2, config, "cpu")["--num_processes"] == "2"
    assert options(2, config, "cpu")["--config_file"] == str(config)


@pytest.mark.parametrize(
    ("said", "reshard"),
    [
        ("FSDP", "true"),
        ("FSDP\nfsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: false}", "false"),
        ("DEEPSPEED", "false"),
        ("DEEPSPEED\ndeepspeed_config: {zero_stage: 3}", "true"),
    ],
)
def test_a_config_that_divides_the_model_starts_fsdp_2_whatever_its_words(
    tmp_path: Path, said: str, reshard: str
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(kind=said))
    found = options(2, tmp_path / "config.yaml", "cpu", kind="--use_fsdp")
    assert (found["--fsdp_version"], found["--fsdp_reshard_after_forward"]) == ("2", reshard)


def test_a_config_that_divides_the_model_as_nobody_here_does_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(kind="MEGATRON_LM"))
    with pytest.raises(ConfigError, match="told to divide the model by MEGATRON_LM"):
        _options(2, tmp_path / "config.yaml", "cpu")


def test_the_exit_code_is_that_of_the_process_that_failed() -> None:
    assert _exit_code(ended(main=1)) == 1
    assert _exit_code(ended(main=130)) == 130
    with pytest.raises(TrainingError, match="Process 0 was ended by SIGKILL") as raised:
        _exit_code(ended(main=-9))
    assert "memory" in raised.value.hint
