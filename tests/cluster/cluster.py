"""A real SLURM of one node with two pretended GPUs, all of it in one folder of one user."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
"""Debian keeps daemons where only the search path of root looks."""

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "mungekey")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd")

PATIENCE = 300
"""Seconds in which a daemon answers, on a busy machine."""

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmdPort={slurmd}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,batch_sched_delay=1,sched_min_interval=0
JobAcctGatherType=jobacct_gather/linux
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=600
GresTypes=gpu
{accounting}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=200000 Gres=gpu:pretended:2
PartitionName=main Nodes={host} Default=YES MaxTime=UNLIMITED State=UP
"""

GRES_CONF = """
Name=gpu Type=pretended File=/dev/null
Name=gpu Type=pretended File=/dev/zero
"""

ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd}
AccountingStoragePass={folder}/munge.socket
AccountingStorageTRES=gres/gpu
"""

SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


def missing_programs(*more: str) -> str:
    """Return what to install where a program is missing, or nothing."""
    missing = [name for name in (*PROGRAMS, *more) if not shutil.which(name, path=PATH)]
    packages = "slurm-wlm slurmdbd munge mariadb-server-core"
    return f"no {', '.join(missing)}: apt-get install {packages}" if missing else ""


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """Return a port of this machine that nobody listens on for each name."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return dict(zip(names, ports, strict=True))


class Cluster:
    """Daemons of a cluster; its folder should be new and have a short path, for the sockets."""

    def __init__(self, folder: Path, accounting: bool) -> None:
        self.folder = folder
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin:{PATH}",
        }
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.accounting = accounting
        values = {
            "folder": folder,
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "cpus": len(os.sched_getaffinity(0)),
            **free_ports(("slurmctld", "slurmd", "slurmdbd", "mariadbd")),
        }
        self.ports = values
        srun = shutil.which("srun", path=PATH)
        folder.chmod(0o755)  # munge wants its socket to be within everybody's reach
        for name in ("state", "spool"):
            (folder / name).mkdir()
        values["accounting"] = ACCOUNTING.format(**values) if accounting else ""
        self._write("slurm.conf", SLURM_CONF.format(**values))
        self._write("gres.conf", GRES_CONF)
        # Snakemake strips SLURM_CONF from the environment of a job step, as sites have /etc/slurm.
        (folder / "bin").mkdir()
        self._write("bin/srun", f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {srun} "$@"\n')
        (folder / "bin/srun").chmod(0o755)
        self._write("slurmdbd.conf", SLURMDBD_CONF.format(**values))

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)

    def start(self) -> None:
        """Start every daemon and wait until jobs run."""
        self.run("mungekey", "--create", f"--keyfile={self.folder}/munge.key")
        files = [
            f"--{name}-file={self.folder}/{file}"
            for name, file in (("key", "munge.key"), ("pid", "munged.pid"), ("seed", "munged.seed"))
        ]
        self.spawn("munged", "--foreground", f"--socket={self.folder}/munge.socket", *files)
        self.wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        self.spawn("slurmd", "-D")
        self.wait_for(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T"), "slurmd")

    def start_controller(self) -> None:
        """Start slurmctld, with the state that the last one left."""
        self.spawn("slurmctld", "-D")
        self.wait_for(lambda: self.succeeds("scontrol", "ping"), "slurmctld")

    def stop_controller(self) -> None:
        """End slurmctld as an administrator does, with its state saved."""
        daemon = self.daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait(timeout=PATIENCE)

    def _start_accounting(self) -> None:
        data, user = self.folder / "mariadb", getpass.getuser()
        data.mkdir()
        (self.folder / "start.sql").write_text("CREATE DATABASE slurm;\n")
        self.spawn(
            "mariadbd", "--no-defaults", "--skip-grant-tables", f"--user={user}",
            f"--datadir={data}", f"--init-file={self.folder}/start.sql",
            "--bind-address=127.0.0.1", f"--port={self.ports['mariadbd']}",
            f"--socket={self.folder}/mariadb.socket",
        )  # fmt: skip
        self.wait_for(lambda: self.listens("mariadbd"), "mariadbd")
        self.spawn("slurmdbd", "-D")
        self.wait_for(
            lambda: self.succeeds("sacctmgr", "--noheader", "show", "cluster"), "slurmdbd"
        )
        self.run("sacctmgr", "--immediate", "add", "cluster", "test")
        self.run("sacctmgr", "--immediate", "add", "account", "crystals")
        self.run("sacctmgr", "--immediate", "add", "user", user, "account=crystals")

    def spawn(self, *command: str) -> None:
        """Start a daemon in the foreground, with its output in a file."""
        with (self.folder / f"{command[0]}.out").open("ab") as output:
            self.daemons[command[0]] = subprocess.Popen(
                command, env=self.full_environment(), stdout=output, stderr=output
            )

    def full_environment(self) -> dict[str, str]:
        """Return the environment in which the commands of SLURM talk to this cluster."""
        return {
            k: v for k, v in os.environ.items() if not k.startswith("SLURM_")
        } | self.environment

    def listens(self, name: str) -> bool:
        """Return whether something answers at the port of a daemon."""
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.ports[name])) == 0

    def succeeds(self, *command: str) -> bool:
        """Return whether a command ends without error."""
        done = subprocess.run(
            command, env=self.full_environment(), capture_output=True, check=False
        )
        return done.returncode == 0

    def run(self, *command: str) -> str:
        """Return the output of a command that must succeed."""
        done = subprocess.run(
            command, env=self.full_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait_for(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until something holds, or fail with the ends of the logs."""
        end = time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < end, f"{what} did not start:\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """Return the last lines of every log."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"{f.name}: {f.read_text()[-2000:]}" for f in files)

    def stop(self) -> None:
        """End all jobs and daemons, the last started first."""
        if "slurmd" in self.daemons:
            subprocess.run(
                ["scancel", f"--user={getpass.getuser()}"], env=self.full_environment(), check=False
            )
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for name, daemon in self.daemons.items():
            try:
                daemon.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                daemon.kill()
                print(f"{name} had to be killed")
