"""Pools of worker processes: what becomes of them when something is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from diffractory.errors import InputError
from diffractory.store import worker_pool
from diffractory.training.batches import loader


def nothing():
    pass


def write_pid_and_wait(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(120)


def main(folder):
    """Keep two processes busy, until this one is killed."""
    with worker_pool(2, "json", nothing, "") as pool:
        list(pool.map(write_pid_and_wait, [folder, folder]))


def use_processes():
    """Have results of a pool and of a loader's worker."""
    with worker_pool(2, "json", nothing, "") as pool:
        assert pool.submit(abs, -1).result() == 1
    data = TensorDataset(torch.arange(2.0))
    assert [float(item) for (item,) in loader(data, range(2), workers=1)] == [0, 1]


def until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Nobody may be there to reap an orphan.
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")


def test_processes_end_with_a_killed_parent(tmp_path):
    process = subprocess.Popen([sys.executable, __file__, tmp_path])
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    until(lambda: not any(runs(pid) for pid in workers))


def lose_a_process():
    with worker_pool(2, "json", nothing, "buy some.") as pool:
        pool.submit(os._exit, 1).result()


def test_a_killed_process_is_an_error_with_advice():
    with pytest.raises(InputError, match=r"want of memory: buy some\."):
        lose_a_process()


def test_one_process_is_this_one():
    with worker_pool(1, "json", nothing, "") as pool:
        assert list(pool.map(lambda a, b: (a + b, os.getpid()), [1, 2], [3, 4], chunksize=2)) == [
            (4, os.getpid()),
            (6, os.getpid()),
        ]


def test_processes_in_a_temporary_folder_of_a_long_name(tmp_path):
    """Paths of sockets have at most 107 characters; a cluster's temporary folder may have more."""
    folder = tmp_path / ("scratch" * 15)
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    subprocess.run([sys.executable, __file__], env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1])) if sys.argv[1:] else use_processes()
