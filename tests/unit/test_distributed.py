"""Training in two processes: as in one, and all of it ends and goes on together.

Sums are rounded differently in two processes. Losses then agree to 1e-5, and the weights of a
network as one vector to 1e-4: Adam turns even the rounding errors of a gradient that is zero, such
as that of the keys' bias in an attention, into steps of the learning rate.
"""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import test_network_training as t
import torch
from safetensors.numpy import load_file

from diffractory.store import InputError
from diffractory.training import launch
from diffractory.training.fit import epochs_so_far
from diffractory.training.spot_networks import NETWORKS
from diffractory.training.spot_training import SpotTraining as Training
from diffractory.training.spots import SpotBatches

ONE = t.HARDWARE | {"threads": 1}
TWO = ONE | {"devices": 2}
UNVARIED = {**t.UNVARIED, "batch_size": 7, "accumulate": 2}  # batches are of 4 and 3 patterns
EXACT = {
    # Its balance is of products of means over the batch, which are not a mean over the processes.
    "pe_ag_gmoe": t.NETWORK_HPARAMS["pe_ag_gmoe"] | {"dropout": 0.0, "balance_weight": 0.0},
    "mvof_ml": t.NETWORK_HPARAMS["mvof_ml"],
    "ours": {"dropout": 0.0},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return t.write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_train_as_one(data, tmp_path, monkeypatch, name):
    monkeypatch.setitem(t.NETWORK_HPARAMS, name, EXACT[name])
    one = t.train(data, tmp_path / "one", name, ONE, **UNVARIED)
    two = t.train(data, tmp_path / "two", name, TWO, **UNVARIED)
    metrics = [pd.read_csv(model / "metrics.csv") for model in (one, two)]
    assert len(metrics[0]) == 3
    pd.testing.assert_frame_equal(*metrics, rtol=1e-5)
    a, b = (load_file(model / "model.safetensors") for model in (one, two))
    assert a.keys() == b.keys()
    weights = [key for key in a if key != "pooling"]
    a, b = (np.concatenate([v[key].ravel() for key in weights]) for v in (a, b))
    assert np.linalg.norm(b - a) < 1e-4 * np.linalg.norm(a)
    assert (two / "hparams.json").read_bytes() == (one / "hparams.json").read_bytes()
    assert len(list(two.glob("events.*"))) == 1
    assert not two.with_name(f"{name}.training").exists()


@pytest.mark.parametrize("name", EXACT)
def test_the_mean_gradient_is_that_of_a_batch_of_odd_size(data, tmp_path, name):
    """By hand: 7 patterns in three processes, of 3, 2 and 2."""
    labels = t.labels_of_split(data / "patterns", data / "structures.parquet", "train")[:7]
    batches = SpotBatches(data / "patterns", labels, 7, 99, 1, shuffle=True, in_memory=True)
    torch.manual_seed(0)
    network = NETWORKS[name](**EXACT[name]).train()
    material_id = labels.set_index("pattern")["material_id"]
    training = Training(network, t.UNVARIED, 1, 1, material_id, tmp_path)

    def gradient(rank, world):
        training._trainer = SimpleNamespace(world_size=world)
        batch = batches.shared(rank, world)[0]
        training.zero_grad()
        if name == "mvof_ml":
            network.step.fill_(5)
        training.training_step(batch, 0).backward()
        return torch.cat([p.grad.ravel() for p in network.parameters()])

    mean = sum(gradient(rank, 3) for rank in range(3)) / 3
    whole = gradient(0, 1)
    assert torch.linalg.norm(mean - whole) < 1e-5 * torch.linalg.norm(whole)


def test_processes_draw_differently_and_one_draws_as_always(data, tmp_path):
    labels = t.labels_of_split(data / "patterns", data / "structures.parquet", "train")
    training = Training(torch.nn.Identity(), {}, 40, 1, labels["material_id"], tmp_path)
    drawn = []
    for rank in range(3):
        training._trainer = SimpleNamespace(global_rank=rank, current_epoch=2)
        training.on_train_batch_start(None, 5)
        drawn.append(torch.rand(4).tolist())
    torch.manual_seed(int(t.fit.generator(1, "training", 85).integers(2**63)))
    assert drawn[0] == torch.rand(4).tolist()
    assert len({tuple(numbers) for numbers in drawn}) == 3


def processes_of(folder):
    """Return the pids of the processes of a training, by their command line."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        is_rank = b"torch.distributed.run" not in words and b"diffractory.training.launch" in words
        if is_rank and os.fsencode(folder) in b" ".join(words):
            pids.append(int(path.parent.name))
    return pids


def until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def trained_further():
    """Start trainings with much time; return each with its processes, once they did an epoch."""
    started = []

    def start(folder):
        states = folder / "pe_ag_gmoe.training"
        before = [path.stat().st_mtime_ns for path in states.glob("*/last.ckpt")]
        paths = f"Path({str(folder.parent / 'data')!r}), Path({str(folder)!r})"
        process = t.started(f"{paths}, hardware={TWO}, epochs=20")
        started.append(process)
        until(
            lambda: (
                process.poll() is not None
                or [path.stat().st_mtime_ns for path in states.glob("*/last.ckpt")] > before
            )
        )
        ranks = processes_of(folder)
        assert process.poll() is None, process.communicate()[0]
        assert len(ranks) == 2
        return process, ranks

    yield start
    for process in started:
        process.kill()


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc: run on Linux")
def test_killed_in_every_way_and_resumed_two_processes_end_as_undisturbed(
    tmp_path, trained_further
):
    """One of them, the parent, the parent in a friendly way; and time runs out at the start."""
    (tmp_path / "data").mkdir()
    data, folder = t.write_data(tmp_path / "data"), tmp_path / "killed"
    with pytest.raises(SystemExit) as stop:
        t.train(data, folder, hardware=TWO, minutes=0, epochs=20)
    assert stop.value.code == 75
    assert len(epochs_so_far(t.state_of(folder / "pe_ag_gmoe"))) == 1

    for number in (signal.SIGKILL, signal.SIGTERM):
        process, ranks = trained_further(folder)
        os.kill(max(ranks), number)
        output = process.communicate(timeout=300)[0]
        assert "InputError: a process of the training failed (exit status 1): the lines" in output
        until(lambda: not processes_of(folder))

    process, _ = trained_further(folder)
    process.kill()
    process.communicate()
    until(lambda: not processes_of(folder))

    process, _ = trained_further(folder)
    process.terminate()
    output = process.communicate()[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert not processes_of(folder)

    done = len(epochs_so_far(t.state_of(folder / "pe_ag_gmoe")))
    assert 1 < done < 20
    again = t.train(data, folder, hardware=TWO, epochs=20)
    whole = t.train(data, tmp_path / "whole", hardware=TWO, epochs=20)
    assert t.contents(again) == t.contents(whole)


def test_bad_input_of_a_process_is_one_sentence(tmp_path, caplog):
    """A pattern that is not finite, which one of the processes alone has."""
    bad = t.write_data(tmp_path, [0])
    with pytest.raises(InputError, match=r"^the loss of Ours is not finite in epoch \d+ at a b"):
        t.train(bad, tmp_path, "ours", TWO, drop_spots=0.0, epochs=9)
    assert "Traceback" not in caplog.text
    assert not processes_of(tmp_path)


def test_the_log_has_what_processes_say(data, tmp_path, caplog):
    with caplog.at_level("INFO"), pytest.raises(InputError) as error:
        t.train(data, tmp_path, hardware=TWO, batch_size=1)
    assert str(error.value).startswith("2 processes cannot share a batch of 1 patterns: lower")
    assert "Traceback" not in caplog.text


def test_several_nodes_are_of_slurm(data, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(InputError, match=r"nodes is 2, but this is no job of SLURM: run with"):
        t.train(data, tmp_path, hardware=ONE | {"nodes": 2})


@pytest.mark.parametrize(
    ("asked", "world", "visible", "sentence"),
    [
        ({"devices": 4}, 2, 4, "2 processes train .* times nodes is 8: ask SLURM for as many"),
        ({"device": "cuda", "devices": 2}, 4, 1, "devices is 2, but 1 GPUs are visible on .*: low"),
        ({"device": "cuda", "devices": 2}, 4, 2, None),
        ({"device": "cpu", "devices": 2}, 4, 0, None),
    ],
)
def test_processes_and_gpus_are_counted(monkeypatch, asked, world, visible, sentence):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    hardware = ONE | {"nodes": 2} | asked
    if sentence is None:
        launch.check_processes(hardware, world)
    else:
        with pytest.raises(InputError, match=sentence):
            launch.check_processes(hardware, world)
