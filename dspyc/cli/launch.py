"""One command in several processes: `accelerate launch` runs it again, once for each of them."""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, TrainingError
from ..progress import is_main

if TYPE_CHECKING:
    from ..training.division import Division

_LOOKS = 1.0  # seconds between two looks at whether the launcher is still there


def launched() -> bool:
    """Whether a launcher started this process."""
    return "LOCAL_RANK" in os.environ


def launch(processes: int | None, config: Path | None, device: str) -> int:
    """Run this very command in `processes` processes, and return its exit code.

    Args:
        processes: How many; None takes what `config` says.
        config: A file that `accelerate config` wrote, such as one for several machines.
        device: What the command trains on; "auto" as everywhere.

    Raises:
        ConfigError: More processes than GPUs, or a config that divides the model.
        TrainingError: A process was ended from outside.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    said = logging.getLogger("torch.distributed.elastic")  # the processes say themselves what goes wrong
    said.addHandler(logging.NullHandler())
    said.propagate = False
    options = _options(processes, config, device)
    arguments = launch_command_parser().parse_args([*options, "-m", "dspyc", *sys.argv[1:]])
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        return _exit_code(error)
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def join_in() -> None:
    """What a launched process does first: all but the main one are quiet, and it ends when its launcher is gone."""
    if not is_main():
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS)
        os._exit(1)  # nobody waits for this process any more, and its folder may get another run

    threading.Thread(target=look, daemon=True).start()


def _options(processes: int | None, config: Path | None, device: str) -> list[str]:
    """What `accelerate launch` has to be told so that it warns of nothing and starts what is asked for."""
    from ..models.weights import device_of
    from ..training.launching import check_processes

    options = ["--multi_gpu"]  # its name for "several processes on this machine", CPUs included
    if config is not None:
        configured, division = _configured(config)
        processes = processes or configured
        if division is not None:  # whatever asked for it
            kept = str(division.reshard).lower()
            options = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_reshard_after_forward", kept]
        options += ["--config_file", str(config)]
    else:
        options += ["--num_machines", "1", "--main_process_port", "0"]  # any free port
    if processes is None or processes < 2:
        raise ConfigError(f"--num-processes is {processes}.", hint="A launcher starts at least 2.")
    place = device_of(device)
    if config is None or place.type == "mps" or place.index is not None:  # a configuration may name other machines
        check_processes(processes, place)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // processes))
    options += ["--num_processes", str(processes), "--num_cpu_threads_per_process", threads]
    return [*options, "--mixed_precision", "no", "--dynamo_backend", "no"]


def _configured(config: Path) -> tuple[int | None, "Division | None"]:
    """The number of processes in an accelerate config, and how it divides the model among them, if it does."""
    from accelerate.commands.config.config_args import load_config_from_file

    from ..training import division

    try:
        found: Any = load_config_from_file(str(config))
    except Exception as error:  # whatever its reader makes of a file that is none
        raise ConfigError(
            f"--accelerate-config {config} cannot be read: {error}", hint="Write one with `accelerate config`."
        ) from error
    kind = str(getattr(found.distributed_type, "value", found.distributed_type))
    asked: Division | None = None
    if kind == "FSDP":
        asked = division.of_fsdp({name.removeprefix("fsdp_"): value for name, value in found.fsdp_config.items()})
    elif kind == "DEEPSPEED":
        asked = division.of_deepspeed(found.deepspeed_config)
    elif kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise division.refusal(kind)
    return found.num_processes if isinstance(found.num_processes, int) else None, asked


def _exit_code(error: Any) -> int:
    """The exit code of the first process that failed; it has said itself why, unless a signal ended it."""
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return int(failure.exitcode)
    name = signal.Signals(-failure.exitcode).name
    raise TrainingError(
        f"Process {rank} was ended by {name}.",
        hint="SIGKILL often means that memory ran out. The same command goes on from the newest checkpoint.",
    )
