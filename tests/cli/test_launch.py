"""What `--launcher` tells accelerate, and what it makes of how the processes ended.

tests/training/test_processes.py starts real ones.
"""

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dspyc.cli.launch import _exit_code, _options
from dspyc.errors import ConfigError, TrainingError

CONFIG = "compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nnum_processes: 3\nnum_machines: 1\n"


def options(*given: object) -> dict[str, str]:
    found = _options(*given)  # type: ignore[arg-type]
    assert found.pop(0) == "--multi_gpu"  # without it accelerate starts one process on a machine without GPUs
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


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_config_that_divides_the_model_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(kind=kind))
    with pytest.raises(ConfigError, match=f"{kind} divides a model among processes"):
        _options(2, tmp_path / "config.yaml", "cpu")


def test_the_exit_code_is_that_of_the_process_that_failed() -> None:
    assert _exit_code(ended(main=1)) == 1
    assert _exit_code(ended(main=130)) == 130
    with pytest.raises(TrainingError, match="Process 0 was ended by SIGKILL") as raised:
        _exit_code(ended(main=-9))
    assert "memory" in raised.value.hint
