"""Claims: nobody makes what another process is making, and the dead claim nothing."""

import errno
import fcntl
import logging
import os
import platform
import signal
import subprocess
import sys

import pytest

from diffractory.simulate.stage import simulate_patterns
from diffractory.store import InputError, claimed

HOLD = """
import sys
from pathlib import Path
from diffractory.store import claimed

with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

COUNT = """
import sys, time
from pathlib import Path
from diffractory.store import InputError, claimed

path = Path(sys.argv[1])
for _ in range(200):
    while True:
        try:
            with claimed(path):
                counter = int(path.read_text())
                time.sleep(0.0005)
                path.write_text(str(counter + 1))
            break
        except InputError:
            pass
"""


def hold(path, **environment):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def take(path):
    with claimed(path):
        pass


def end(process):
    process.communicate()
    assert process.returncode == 0


def test_the_holder_is_named_until_it_ends(tmp_path):
    path = tmp_path / "new" / "model"
    holder = hold(path)
    with pytest.raises(InputError) as error:
        take(path)
    assert str(error.value) == (
        f"{path} is being made by process {holder.pid} on {platform.node()}: wait for it to end, "
        f"or end it with kill {holder.pid}, and run again"
    )
    take(path.with_name("another"))
    end(holder)
    take(path)
    assert not list(path.parent.iterdir())


def test_the_job_of_the_holder_is_named(tmp_path):
    holder = hold(tmp_path / "model", SLURM_JOB_ID="4711")
    with pytest.raises(InputError, match="or end it with scancel 4711, and run again"):
        take(tmp_path / "model")
    end(holder)


def test_a_killed_holder_claims_nothing(tmp_path):
    holder = hold(tmp_path / "model")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert list(tmp_path.iterdir())  # what it left
    again = hold(tmp_path / "model")
    with pytest.raises(InputError, match=f"made by process {again.pid} on"):
        take(tmp_path / "model")
    end(again)
    assert not list(tmp_path.iterdir())


def test_one_at_a_time_however_often_the_claim_is_given_back(tmp_path):
    """Three processes add to a number without any other care."""
    path = tmp_path / "number"
    path.write_text("0")
    command = [sys.executable, "-c", COUNT, path]
    for process in [subprocess.Popen(command) for _ in range(3)]:
        assert process.wait() == 0
    assert path.read_text() == "600"


def test_a_claim_ends_with_an_error(tmp_path):
    with pytest.raises(KeyError), claimed(tmp_path / "model"):
        raise KeyError
    end(hold(tmp_path / "model"))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with caplog.at_level(logging.WARNING), claimed(tmp_path / "model"):
        pass
    (record,) = caplog.records
    assert "has no locks: nothing keeps another run from making" in record.getMessage()


def test_a_shard_that_another_process_simulates_is_left_alone(tmp_path):
    holder = hold(tmp_path / "0.zarr")
    paths = [tmp_path / name for name in ("structures", "0.zarr", "0.parquet", "0.json")]
    with pytest.raises(InputError, match=r"0\.zarr is being made by process"):
        simulate_patterns(*paths, 0, 1, {"device": "cpu"}, seed=1, threads=1)
    end(holder)
