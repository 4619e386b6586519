"""Training in several processes: on one machine by torch's launcher, under SLURM by srun."""

import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from diffractory.store import InputError, write_text

BAD_INPUT = "diffractory: InputError in "
"""Begins a line of a process that waits to be ended, with the name of a file that says why."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What each of the processes is told that train together.

    Attributes
    ----------
    module
        Full name of the module whose ``train_epochs`` they run.
    study
        Section of the configuration that ``hardware`` is of.
    name
        Of the network.
    data
        What ``train_epochs`` trains with, paths as text.
    settings, hardware, seed
        As the stage takes them.
    state
        Folder for checkpoints and logs.
    deadline
        When the job is killed, seconds since 1970, if that is known.
    """

    module: str
    study: str
    name: str
    data: dict[str, Any]
    settings: dict[str, Any]
    hardware: dict[str, Any]
    seed: int
    state: str = ""
    deadline: float | None = None


def launch(job: Job) -> None:
    """Run ``train_epochs`` in all processes to their end; what they print goes to the log.

    They end with this process, even if it is killed.

    Raises
    ------
    InputError
        Of one of them, or if one fails otherwise.
    """
    arguments = Path(job.state, "arguments.json")
    write_text(arguments, json.dumps(asdict(job)))
    processes = subprocess.Popen(
        [*_launcher(job), "-m", "diffractory.training.launch", str(arguments)],
        stdin=subprocess.PIPE,  # its end tells them of the end of this process
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ
        | {"OMP_NUM_THREADS": str(job.hardware["threads"]), "MASTER_PORT": _free_port()},
    )
    assert processes.stdout is not None
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for line in processes.stdout:
            if line.startswith(BAD_INPUT):
                name = line.removeprefix(BAD_INPUT).strip()
                raise InputError(Path(job.state, name).read_text(encoding="utf-8"))
            logger.info("%s", line.rstrip())
            if sys.stderr.isatty():
                print(line, end="", file=sys.stderr)
        status = processes.wait()
    finally:
        processes.communicate()  # ends their input first, and so them
        signal.signal(signal.SIGTERM, before)
    if status:
        raise InputError(
            f"a process of the training failed (exit status {status}): the lines before this one "
            "in the log of the stage say why; run again, and it goes on from its last epoch"
        )


def _free_port() -> str:
    """Return a port of this machine, on which SLURM starts the first process too."""
    # Without it Lightning takes 15000 and a part of the job's number, which may be in use.
    with socket.create_server(("", 0)) as server:
        return str(server.getsockname()[1])


def _launcher(job: Job) -> list[str]:
    """Return the beginning of a command that runs a module in all processes."""
    devices, nodes = job.hardware["devices"], job.hardware["nodes"]
    if "SLURM_JOB_ID" in os.environ:
        # In numbers, since variables of the allocation may not be there.
        return [
            "srun", f"--nodes={nodes}", f"--ntasks={devices * nodes}",
            f"--ntasks-per-node={devices}", f"--cpus-per-task={job.hardware['threads']}",
            "--kill-on-bad-exit=1", sys.executable,
        ]  # fmt: skip
    if nodes > 1:
        raise InputError(
            f"{job.study}.hardware.nodes is {nodes}, but this is no job of SLURM: run with "
            "--profile slurm, or set it to 1"
        )
    launcher = [sys.executable, "-m", "torch.distributed.run"]
    return [*launcher, "--standalone", f"--nproc-per-node={devices}"]


def check_processes(hardware: Mapping[str, Any], world: int, study: str = "symmetry") -> None:
    """Check that a number of processes, and the GPUs that this one sees, are those asked for.

    Raises
    ------
    InputError
        If they are not.
    """
    devices, nodes = hardware["devices"], hardware["nodes"]
    if world != devices * nodes:
        raise InputError(
            f"{world} processes train together, but {study}.hardware.devices times nodes is "
            f"{devices * nodes}: ask SLURM for as many tasks"
        )
    visible = torch.cuda.device_count()
    if hardware["device"] == "cuda" and visible < devices:
        raise InputError(
            f"{study}.hardware.devices is {devices}, but {visible} GPUs are visible on "
            f"{platform.node()}: lower it, or ask SLURM for as many GPUs per node"
        )


def main(arguments: Path) -> None:
    """Be one of the processes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = Job(**json.loads(arguments.read_text(encoding="utf-8")))
    environment = (
        TorchElasticEnvironment()
        if TorchElasticEnvironment.detect()
        else SLURMEnvironment(auto_requeue=False)  # Snakemake alone repeats jobs
    )
    rank = environment.global_rank()
    # All would say the same.
    logging.basicConfig(level=logging.ERROR if rank else logging.INFO, format="%(message)s")
    logging.captureWarnings(True)
    torch.set_num_threads(job.hardware["threads"])
    try:
        check_processes(job.hardware, environment.world_size(), job.study)
        import_module(job.module).train_epochs(job, environment)
    except InputError as error:
        # A new name, which no network file system remembers as missing.
        report = Path(job.state, f"error.{rank}.{os.getpid()}.txt")
        write_text(report, str(error))
        print(f"{BAD_INPUT}{report.name}", flush=True)
        threading.Event().wait()  # if this one ended, the others would fail with tracebacks


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
