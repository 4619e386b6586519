"""What clusters do to jobs: the run goes on, or the next one finishes it, with the same bytes."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from projects import Project

CI = "config/ci.yaml"
MODEL = "results/models/symmetry/ours"
TABLES = ("results/tables/symmetry/table_5.csv", "results/tables/symmetry/table_ablations.csv")
"""The tables that need the fewest models."""
PATIENCE = 600
"""Seconds until something happens, on a busy machine."""


class Run:
    """Snakemake under SLURM in the background, with its output in a file."""

    def __init__(self, slurm, project: Project, *targets: str, configs=(), retries=3) -> None:
        self.log = project.folder / f"run_{len(list(project.folder.glob('run_*')))}"
        # A core for each job: two find room on the smallest machine.
        options = ["--profile", "slurm", "--cores", "1", "--retries", str(retries)]
        command = ["snakemake", *targets, *options, "--configfile", CI, *configs]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=project.folder,
                env=slurm.full_environment(),
                stdout=output,
                stderr=output,
            )

    def wait_for(self, condition):
        """Return what a condition gives, once it gives something."""
        end = time.monotonic() + PATIENCE
        while not (result := condition()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)
        return result

    def finish(self) -> str:
        """Return the output of a run that must succeed."""
        status = self.process.wait(timeout=2 * PATIENCE)
        assert status == 0, self.log.read_text()
        return self.log.read_text()


@pytest.fixture
def start(slurm):
    """Return a function that starts a `Run`; none, and no job, is left at the end."""
    runs = []

    def begin(*arguments, **options):
        runs.append(Run(slurm, *arguments, **options))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()
    slurm.run("scancel", f"--user={getpass.getuser()}")
    slurm.wait_for(lambda: not slurm.run("squeue", "--noheader"), "scancel")


def holder(product: Path) -> tuple[int, str] | None:
    """Return the process and the SLURM job that have claimed a product, if any has."""
    lock = product.parent / f".{product.name}.lock"
    try:
        _, pid, job = lock.read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return int(pid), job


def in_training(project: Project, since: float = 0.0) -> tuple[int, str] | None:
    """Return who is training, once it has ended an epoch after a time."""
    states = (project.folder / f"{MODEL}.training").glob("*/last.ckpt")
    if any(state.stat().st_mtime > since for state in states):
        return holder(project.folder / MODEL)
    return None


def in_simulation(project: Project) -> tuple[int, str] | None:
    """Return who is simulating the first of two shards."""
    return holder(project.folder / "results/patterns/prototypes/bloch.shards/0-of-2.zarr")


def contents(project: Project, *names: str) -> dict[str, bytes]:
    return {name: (project.folder / name).read_bytes() for name in names}


RESULT = (*TABLES, f"{MODEL}/model.safetensors", "results/evaluation/symmetry/ours.parquet")


def without(project: Project, *products: str) -> None:
    """Delete products, so that Snakemake makes them and the tables again."""
    for name in (*TABLES, *products):
        path = project.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_killed_jobs_are_repeated(finished, start, rerun):
    """SIGKILL of a simulation and of a training: the run ends as if nothing had been."""
    without(rerun, "results/patterns", "results/models", "results/evaluation")
    run = start(rerun, *TABLES)
    for stage in (in_simulation, in_training):
        pid, _ = run.wait_for(lambda stage=stage: stage(rerun))
        os.kill(pid, signal.SIGKILL)
    assert run.finish().count("Trying to restart job") == 2
    assert contents(rerun, *RESULT) == contents(finished, *RESULT)


def test_killed_snakemake_is_followed_by_another(finished, slurm, start, rerun):
    """SIGKILL of Snakemake: a second job is refused while the first goes on, then all is well."""
    without(rerun, *RESULT[3:], MODEL)
    run = start(rerun, *TABLES)
    pid, job = run.wait_for(lambda: in_training(rerun))
    os.kill(pid, signal.SIGSTOP)  # so that it is still there when the second run comes
    run.process.kill()
    run.process.wait()
    assert rerun.snakemake("--unlock", "--configfile", CI).returncode == 0
    second = start(rerun, MODEL, retries=0)
    assert second.process.wait(timeout=PATIENCE) != 0
    refusal = (rerun.folder / "logs/train_network/ours.log").read_text()
    assert f"ours is being made by process {pid} on" in refusal
    assert f"scancel {job}" in refusal
    slurm.run("scancel", job)
    slurm.wait_for(lambda: not slurm.run("squeue", "--noheader"), "scancel")
    output = start(rerun, *TABLES).finish()
    assert output.count("rule train_network") == 1
    assert "rule simulate_patterns" not in output
    assert contents(rerun, *RESULT) == contents(finished, *RESULT)


def test_requeue_cancel_and_time_limit_are_survived(slurm, start, rerun):
    """A training is cancelled, requeued and out of time; it goes on each time, and never twice."""
    longer = {"symmetry": {"ours": {"training": {"epochs": 10}}}}
    path = rerun.write_config("longer", longer)
    alone = Project(rerun.folder.with_name("alone"))
    shutil.copytree(rerun.folder, alone.folder, symlinks=True)
    result = alone.snakemake(MODEL, "--configfile", CI, path)
    assert result.returncode == 0, result.stdout + result.stderr

    run = start(rerun, MODEL, configs=[path])
    _, cancelled = run.wait_for(lambda: in_training(rerun))
    slurm.run("scancel", cancelled)
    now = time.time()
    first, requeued = run.wait_for(lambda: in_training(rerun, now))
    assert requeued != cancelled
    assert not slurm.succeeds("scontrol", "requeue", requeued)  # Snakemake alone repeats jobs
    slurm.run("scontrol", "update", f"JobId={requeued}", "Requeue=1")  # as an administrator can
    slurm.run("scontrol", "requeue", requeued)
    run.wait_for(lambda: "PENDING" in slurm.run("squeue", "--noheader", "--format=%T"))
    slurm.run("scontrol", "update", f"JobId={requeued}", "StartTime=now")  # not in two minutes
    now = time.time()
    second, same = run.wait_for(lambda: in_training(rerun, now))
    assert same == requeued
    assert second != first
    slurm.run("scontrol", "update", f"JobId={requeued}", "EndTime=now")
    assert run.finish().count("Trying to restart job") == 2
    assert contents(rerun, RESULT[2]) == contents(alone, RESULT[2])

    columns = "--format=JobID,State,Start,End"
    lines = slurm.run("sacct", "-XnP", "--duplicates", columns).splitlines()
    jobs = [line.split("|") for line in lines]
    jobs = [job for job in jobs if int(job[0]) >= int(cancelled)]
    assert [state.split()[0] for _, state, *_ in jobs] == [
        "CANCELLED", "REQUEUED", "TIMEOUT", "COMPLETED",
    ]  # fmt: skip
    assert all(end <= start for (*_, end), (_, _, start, _) in pairwise(jobs))


def test_restarted_controller_is_survived(finished, slurm, start, rerun):
    without(rerun, "results/patterns", "results/evaluation")
    run = start(rerun, TABLES[0])
    run.wait_for(lambda: in_simulation(rerun))
    slurm.stop_controller()
    time.sleep(15)  # longer than Snakemake waits between two questions
    slurm.start_controller()
    run.finish()
    assert contents(rerun, TABLES[0]) == contents(finished, TABLES[0])
