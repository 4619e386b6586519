"""A SLURM for the tests of this folder, and the project run on it."""

import shutil
import tempfile
from pathlib import Path

import pytest
from cluster import ACCOUNTING_PROGRAMS, Cluster, missing_programs


def started(accounting):
    """Yield a cluster, or skip where it cannot be had."""
    if reason := missing_programs(*(ACCOUNTING_PROGRAMS if accounting else ())):
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets need a short path
    cluster = Cluster(folder, accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def slurm():
    """A cluster with accounting."""
    yield from started(accounting=True)


@pytest.fixture
def slurm_without_accounting():
    """A cluster that forgets its jobs, as a small site has it."""
    yield from started(accounting=False)
