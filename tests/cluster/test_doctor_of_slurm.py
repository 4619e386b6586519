"""What `diffractory doctor` says of a real SLURM."""

import getpass

import pytest

from diffractory import doctor


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Return a function that gives what the doctor finds of a cluster, by what it looked at."""

    def find(cluster, profile=""):
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        path = tmp_path / "config.yaml"
        path.write_text(profile)
        return {finding.check: finding for finding in doctor.slurm(path)}

    return find


def test_a_cluster_that_works(slurm, ask):
    profile = "default-resources: {slurm_account: crystals, slurm_partition: main}"
    found = ask(slurm, profile)
    assert {finding.status for finding in found.values()} == {"ok"}
    assert found["SLURM"].found == "partitions main* (1 nodes, gpu:pretended:2)"
    assert found["SLURM queue"].found == "0 jobs of yours"
    assert found["SLURM accounting"].found == "on"
    assert found["SLURM job"].found.startswith("a test job ran in")
    columns = "--format=Account,Partition,State"
    job = ["sacct", "-XnP", "--name=doctor", columns]
    slurm.wait_for(lambda: slurm.run(*job) == "crystals|main|COMPLETED\n", "accounting")


def test_a_partition_that_is_not_there(slurm, ask):
    found = ask(slurm, "default-resources: {slurm_partition: nowhere}")["SLURM job"]
    assert found.status == "problem"
    assert "Invalid partition name" in found.found
    assert "slurm_partition" in found.advice


def test_a_cluster_that_is_full(slurm, ask, monkeypatch):
    monkeypatch.setattr(doctor, "QUEUE_TIME", 3)
    job = slurm.run("sbatch", "--parsable", "--exclusive", "--output=/dev/null", "--wrap=sleep 60")
    slurm.wait_for(lambda: "RUNNING" in slurm.run("squeue", "-h", "-o%T"), "a job")
    found = ask(slurm)
    slurm.run("scancel", job.strip())
    assert found["SLURM queue"].found == "1 jobs of yours"
    assert found["SLURM job"].status == "warning"
    assert "queued for 3 s" in found["SLURM job"].found
    slurm.wait_for(lambda: not slurm.run("squeue", "-h", f"--user={getpass.getuser()}"), "scancel")


def test_a_cluster_without_accounting_and_one_that_does_not_answer(slurm_without_accounting, ask):
    found = ask(slurm_without_accounting, "slurm-status-command: sacct")["SLURM accounting"]
    assert found.status == "warning"
    assert "Slurm accounting storage is disabled" in found.found
    assert "slurm-status-command: squeue" in found.advice
    found = ask(slurm_without_accounting, "slurm-status-command: squeue")["SLURM accounting"]
    assert found.status == "ok"
    slurm_without_accounting.stop_controller()
    (found,) = ask(slurm_without_accounting).values()
    assert found.status == "problem"
    assert "sinfo" in found.found
