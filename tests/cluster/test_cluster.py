"""The workflow under a real SLURM: the same results, and each job with what it asked for."""

import json

import pandas as pd
import pytest
from projects import OF_EACH_STUDY, check_each_study, copy_project

CI = ("--configfile", "config/ci.yaml")
MODEL = "results/models/symmetry/ours"


def submitted(slurm, name=""):
    """Return what the accounting knows of the jobs in the order in which they were submitted."""
    columns = ["JobID", "State", "AllocTRES", "AllocCPUS", "Comment"]
    lines = slurm.run("sacct", "-XnP", f"--format={','.join(columns)}").splitlines()
    jobs = [dict(zip(columns, line.split("|"), strict=True)) for line in lines]
    return [job for job in jobs if name in job["Comment"]]


def test_each_study_gives_what_a_local_run_gives(finished, slurm, tmp_path):
    project = copy_project(tmp_path)
    stages = project.planned(*OF_EACH_STUDY, *CI)
    before = len(submitted(slurm))
    result = project.snakemake(*OF_EACH_STUDY, "--profile", "slurm", *CI, **slurm.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    check_each_study(tmp_path, finished.folder)
    jobs = submitted(slurm)[before:]
    assert {job["State"] for job in jobs} == {"COMPLETED"}
    # The two stages of the structures of each of three studies are one job, and so are the three
    # that show something.
    assert len(jobs) == sum(stages.values()) - 3 - 2
    assert slurm.run("squeue", "--noheader") == ""


def test_without_accounting(slurm_without_accounting, project):
    target = "results/structures/prototypes/retrieved.parquet"
    slurm = slurm_without_accounting
    assert not slurm.succeeds("sacct")
    result = project.snakemake(target, "--profile", "slurm", *CI, **slurm.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (project.folder / target).exists()
    assert slurm.run("squeue", "--noheader", "--states=all", "--format=%T") == "COMPLETED\n"


@pytest.mark.parametrize(("request_", "devices"), [("gpu", 1), ("gres:pretended", 2)])
def test_a_training_gets_its_gpus_and_starts_once(rerun, slurm, request_, devices):
    """The pretended GPUs cannot train: the one process of the script says so, in one sentence."""
    hardware = {"device": "cuda", "devices": devices, "threads": 1}
    config = {"slurm": {"gpu_request": request_}, "symmetry": {"hardware": hardware}}
    path = rerun.write_config("gpu", config)
    arguments = (MODEL, "--retries", "0", "--profile", "slurm", *CI, path)
    result = rerun.snakemake(*arguments, **slurm.environment)
    assert result.returncode != 0
    job = submitted(slurm)[-1]
    assert f"gres/gpu={devices}" in job["AllocTRES"].split(",")
    assert job["AllocCPUS"] == str(devices)
    assert job["State"] == "FAILED"
    log = (rerun.folder / "logs/train_network/ours.log").read_text()
    assert log.count("no CUDA device is visible") == 1
    assert "Traceback" not in log
    (output,) = (rerun.folder / ".snakemake/slurm_logs").rglob(f"{job['JobID']}.log")
    assert output.read_text().count("Error: ") == 1


def test_two_processes_under_srun_train_what_one_does(rerun, slurm):
    """Without random changes of the patterns, which differ between processes."""
    training = {"scale_jitter": 0.0, "drop_spots": 0.0, "faint_spots": 0.0}
    network = {"network": {"dropout": 0.0}, "training": training}
    one = rerun.write_config("one", {"symmetry": {"ours": network, "hardware": {"threads": 1}}})
    result = rerun.snakemake(MODEL, *CI, one)
    assert result.returncode == 0, result.stdout + result.stderr
    alone = pd.read_csv(rerun.folder / MODEL / "metrics.csv")
    two = rerun.write_config("two", {"symmetry": {"hardware": {"devices": 2}}})
    arguments = (MODEL, "--profile", "slurm", *CI, one, two)
    result = rerun.snakemake(*arguments, **slurm.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    together = pd.read_csv(rerun.folder / MODEL / "metrics.csv")
    pd.testing.assert_frame_equal(together, alone, rtol=1e-3)
    record = json.loads((rerun.folder / MODEL / "run.json").read_text())
    assert record["config"]["hardware"]["devices"] == 2
    job = submitted(slurm)[-1]
    assert job["AllocCPUS"] == "2"
    steps = slurm.run("sacct", "-nP", f"--jobs={job['JobID']}", "--format=JobID,NTasks").split()
    assert f"{job['JobID']}.0|2" in steps
