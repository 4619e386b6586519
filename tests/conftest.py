"""A project to run the workflow in, and one finished run that several tests look at."""

import shutil

import pytest
from projects import Project, copy_project


@pytest.hookimpl(tryfirst=True)  # before the workers read the groups
def pytest_collection_modifyitems(items):
    """Give what shares the finished run, or waits for SLURM, to one worker of the two."""
    for item in items:
        if item.path.parent.name in ("workflow", "cluster"):
            item.add_marker(pytest.mark.xdist_group("whole runs"))


@pytest.fixture
def project(tmp_path):
    return copy_project(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Return the project of one whole run at the ci scale."""
    project = copy_project(tmp_path_factory.mktemp("finished"))
    result = project.snakemake("--configfile", "config/ci.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    return project


@pytest.fixture
def rerun(finished, tmp_path):
    """Return a copy of the finished run that a test may change."""
    shutil.copytree(finished.folder, tmp_path / "run", symlinks=True)
    return Project(tmp_path / "run")
