"""A project to run the workflow in, and one finished run that several tests look at."""

import fcntl
import os
import shutil

# Before any library starts OpenMP: threads of two of them that wait for each other in a loop take a
# hundred times as long where cores are shared, as those of the tests are.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from projects import Project, copy_project


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Return the project of one whole run at the ci scale, which all test processes share."""
    of_process = tmp_path_factory.getbasetemp()
    folder = of_process.parent if "PYTEST_XDIST_WORKER" in os.environ else of_process
    project = Project(folder / "finished")
    with (folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not project.folder.exists():
            project.folder.mkdir()
            copy_project(project.folder)
            result = project.snakemake("--configfile", "config/ci.yaml")
            assert result.returncode == 0, result.stdout + result.stderr
    assert (project.folder / "results/report.html").exists(), "the whole run has failed before"
    return project


@pytest.fixture
def rerun(finished, tmp_path):
    """Return a copy of the finished run that a test may change."""
    shutil.copytree(finished.folder, tmp_path / "run", symlinks=True)
    return Project(tmp_path / "run")
