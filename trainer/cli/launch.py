"""Start the processes of a training: with accelerate on GPUs, with `torch.distributed.run` and gloo on the CPU."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .parser import did_you_mean
from .settings_file import read_yaml
from .terminal import PEER_ENDED

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).resolve().parents[1] / "accelerate_configs"
SCRIPT = Path(__file__).resolve().parents[1] / "run.py"
STARTED = "FASTGOAL_STARTED"  # set in the processes that `launch` starts
# Seconds for which torchrun waits before it kills interrupted processes: 30 by default, which is too short for a long
# step and a large checkpoint.
GRACE = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
# DDP warns once that its search for weights without a gradient was in vain. The search stays: without it, DDP regroups
# gradients after the first step, and a resumed training of three processes would add them in another order.
LOG_LEVEL = ("TORCH_CPP_LOG_LEVEL", "ERROR")
# One of these variables is set in every process that accelerate or torchrun starts.
_SET_BY_LAUNCHERS = ("WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU")


def starts_processes(num_processes: int | None, accelerate_config: str | None) -> bool:
    """Return whether the settings ask for processes that are not started yet.

    Raises:
        ValueError: Another launcher has started this process.
    """
    if (num_processes is None and accelerate_config is None) or STARTED in os.environ:
        return False
    if variables := [name for name in _SET_BY_LAUNCHERS if name in os.environ]:
        raise ValueError(
            f"`num_processes` and `accelerate_config` start the processes of a training, but a launcher has started "
            f"this one ({variables[0]} is set). Leave both out here, or run `fastgoal train` without a launcher."
        )
    return accelerate_config is not None or num_processes != 1


def launch(arguments: Sequence[str], num_processes: int | None, accelerate_config: str | None, use_cpu: bool) -> int:
    """Run `trainer/run.py` with the same arguments in several processes, and return their exit code.

    A single process with an accelerate configuration replaces this one.

    Args:
        arguments: Arguments of the run script.
        num_processes: Number of processes; by default that of the configuration.
        accelerate_config: Name of a packaged configuration, or a file that `accelerate config` wrote.
        use_cpu: Whether to train on the CPU even if there are GPUs.

    Returns:
        The exit code of the process that failed first, 128 plus the number of the signal that ended it, or 0.

    Raises:
        ValueError: The configuration or the number of processes does not fit this machine.
        KeyboardInterrupt: The processes were interrupted.
    """
    import torch
    from accelerate.utils import patch_environment

    path = None if accelerate_config is None else _find_config(accelerate_config)
    config = {} if path is None else read_yaml(path)
    count = config.get("num_processes", 1) if num_processes is None else num_processes
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{path}: num_processes must be a positive integer, got {count!r}. Give `num_processes`.")
    devices = torch.accelerator.device_count()
    on_cpu = use_cpu or bool(config.get("use_cpu")) or not devices
    if on_cpu and config and not config.get("use_cpu"):
        reason = "`use_cpu` is set" if devices else "this machine has none"
        raise ValueError(
            f"`accelerate_config={accelerate_config}` is for GPUs, and {reason}. Use `accelerate_config=cpu`."
        )
    if not on_cpu and count > devices and config.get("num_machines", 1) == 1:
        raise ValueError(
            f"`num_processes` must be at most {devices}, the number of GPUs of this machine, got {count}. "
            "Use fewer, or `use_cpu=True`."
        )
    command = [str(SCRIPT), *arguments, *(["--use_cpu", "true"] if on_cpu and not use_cpu else [])]
    with patch_environment(
        **{STARTED: "1", **{name: os.environ.get(name, value) for name, value in (GRACE, LOG_LEVEL)}}
    ):
        if on_cpu and count > 1:
            return _exit_code(lambda: _run_on_cpu(count, command, config))
        flags = ["--config_file", str(path or CONFIGS / "many_gpus.yaml"), "--num_processes", str(count)]
        if path is None:
            flags += ["--mixed_precision", "no"]  # the training arguments set the precision, as in a single process
        is_plain = bool(config) and config.get("distributed_type", "NO") in ("NO", False)
        if is_plain and count > 1:
            flags.append("--multi_gpu")
        return _exit_code(lambda: _run_accelerate([*flags, *command], is_plain and count == 1))


def _find_config(name: str) -> Path:
    packaged = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    path = CONFIGS / f"{name}.yaml" if name in packaged else Path(name)
    if path.is_file():
        return path
    allowed = f"a file or one of {', '.join(packaged)}"
    raise ValueError(f"`accelerate_config` must be {allowed}, got {name!r}{did_you_mean(name, packaged)}")


def _run_on_cpu(count: int, command: Sequence[str], config: dict[str, Any]) -> None:
    """Use torch's launcher, because `accelerate launch --cpu` always starts a single process without MPI."""
    from accelerate.utils import patch_environment
    from torch.distributed import run

    environment = {
        "ACCELERATE_MIXED_PRECISION": config.get("mixed_precision") or "no",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // count)),
    }
    with patch_environment(**environment):
        run.run(run.parse_args(["--standalone", "--nproc_per_node", str(count), *command]))


def _run_accelerate(command: list[str], replace: bool) -> None:
    from accelerate.commands import launch as accelerate
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    args = accelerate.launch_command_parser().parse_args(command)
    if not replace:
        accelerate.launch_command(args)
        return
    # accelerate would wait for a child process without passing signals on to it.
    words, environment = prepare_simple_launcher_cmd_env(accelerate._validate_launch_command(args)[0])
    sys.stdout.flush()
    os.execvpe(words[0], words, environment)


def _exit_code(run: Callable[[], None]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # the processes report their errors themselves
    try:
        run()
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + stop.sigval
    else:
        return 0
    finally:
        logging.disable(logging.NOTSET)
    # The launcher ends the other processes with SIGTERM, or they lose their connection.
    rank, code = min(codes.items(), key=lambda item: item[1] in (PEER_ENDED, -signal.SIGTERM))
    if code < 0:
        logger.error(f"The process with rank {rank} was ended by {signal.Signals(-code).name}.")
        return 128 - code
    return code
