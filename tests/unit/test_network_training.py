"""Training of networks: exact after a kill, honest about what it cannot do."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from diffractory.evaluation.predictions import evaluate_network
from diffractory.store import CRYSTAL_SYSTEMS, LATTICE, InputError, Patterns, write_patterns
from diffractory.store.labels import labels_of_split
from diffractory.training import fit, spot_training
from diffractory.training.batches import check_device
from diffractory.training.fit import epochs_so_far, read_checkpoint
from diffractory.training.spot_networks import NETWORKS, load_network
from diffractory.training.spot_training import architecture, train_network
from diffractory.training.spots import SpotBatches, varied

HARDWARE = {
    "device": "cpu",
    "devices": 1,
    "nodes": 1,
    "precision": "32-true",
    "threads": 2,
    "workers": 0,
    "data_memory": 1.0,
}
NETWORK_HPARAMS = {
    "pe_ag_gmoe": {"input_dim": 16, "hidden_dim": 8, "n_layers": 1, "n_heads": 2},
    "mvof_ml": {"image_size": 16, "width": 4, "annealing_steps": 10},
    "ours": {},
}
TRAINING = {
    "epochs": 3,
    "patterns_per_epoch": 40,
    "validation_patterns": 20,
    "patience": 9,
    "batch_size": 8,
    "accumulate": 2,
    "learning_rate": 0.001,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "rotate": True,
    "scale_jitter": 0.02,
    "drop_spots": 0.2,
    "faint_spots": 0.1,
}


def settings_of(name, **training):
    return {"network": NETWORK_HPARAMS[name], "training": {**TRAINING, **training}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def write_data(folder, not_finite=(), value=np.nan):
    """Write a store of 40 materials with 5 patterns each, and their labels.

    The spots of some patterns may have an intensity that is not finite.
    """
    rng = np.random.default_rng(0)
    counts = rng.integers(3, 20, 200)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    n = offsets[-1]
    qx, qy = rng.uniform(-1, 1, (2, n)).astype(np.float32)
    intensity = rng.uniform(0, 0.1, n).astype(np.float32)
    for pattern in not_finite:
        intensity[offsets[pattern] : offsets[pattern + 1]] = value
    patterns = Patterns(
        offsets=offsets,
        qx=qx,
        qy=qy,
        intensity=intensity,
        hkl=np.zeros((n, 3), dtype=np.int16),
        material_id=np.repeat([f"m{i:02}" for i in range(40)], 5).astype(object),
        zone_axis=np.zeros((200, 3), dtype=np.int16),
        orientation=np.zeros((200, 3, 3)),
        thickness=np.full(200, 200.0, dtype=np.float32),
        energy=np.full(200, 2e5, dtype=np.float32),
    )
    write_patterns(folder / "patterns", [patterns])
    pd.DataFrame(
        {
            "material_id": [f"m{i:02}" for i in range(40)],
            "split": ["train"] * 24 + ["validation"] * 8 + ["test"] * 8,
            "crystal_system": [CRYSTAL_SYSTEMS[i % 7] for i in range(40)],
            "space_group": [[1, 5, 20, 80, 150, 170, 200][i % 7] for i in range(40)],
            **dict.fromkeys(LATTICE, 1.0),
        }
    ).to_parquet(folder / "structures.parquet")
    return folder


def train(data, folder, name="pe_ag_gmoe", hardware=HARDWARE, minutes=None, **training):
    model = folder / name
    settings = settings_of(name, **training)
    inputs = data / "patterns", data / "structures.parquet"
    train_network(name, *inputs, model, settings, 15, hardware, 1, minutes)
    return model


def state_of(model):
    (state,) = model.with_name(f"{model.name}.training").iterdir()
    return state


def stop_before_the_model(*_):
    raise KeyboardInterrupt


def started(call):
    """Start a training in a process of its own; ``call`` has its arguments as text."""
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_network_training as t

t.train({call})
"""
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def contents(model):
    names = ["model.safetensors", "hparams.json", "architecture.json", "metrics.csv"]
    return {name: (model / name).read_bytes() for name in names}


@pytest.mark.parametrize("name", NETWORK_HPARAMS)
def test_a_killed_training_ends_as_an_undisturbed_one(data, tmp_path, name):
    """Kill it for real, after its first checkpoint, and train again."""
    whole = train(data, tmp_path / "whole", name, epochs=4)
    script = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_network_training as t
from diffractory.training.fit import Training

save = Training.on_save_checkpoint

def stop_after_second(self, checkpoint):
    save(self, checkpoint)
    if len(self.epochs) == 3:
        print("ready", flush=True)
        time.sleep(60)

Training.on_save_checkpoint = stop_after_second
t.train(Path({str(data)!r}), Path({str(tmp_path / "killed")!r}), {name!r}, epochs=4)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / name).exists()
    states = list((tmp_path / "killed" / f"{name}.training").glob("*/last.ckpt"))
    assert len(states) == 1
    assert len(torch.load(states[0], weights_only=True)["epochs"]) == 2
    again = train(data, tmp_path / "killed", name, epochs=4)
    assert contents(again) == contents(whole)
    assert not (tmp_path / "killed" / f"{name}.training").exists()
    assert list(again.glob("events.*"))  # for TensorBoard


def test_a_terminated_training_says_so(data, tmp_path):
    """Its exit status is not 0, and it goes on when it is started again."""
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_network_training as t
from diffractory.training.fit import Training

save = Training.on_save_checkpoint

def say(self, checkpoint):
    save(self, checkpoint)
    print("saved", flush=True)

Training.on_save_checkpoint = say
t.train(Path({str(data)!r}), Path({str(tmp_path)!r}), epochs=2000, patience=2000)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for _ in range(4):
        assert process.stdout.readline() == "saved\n"
    process.terminate()
    process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM
    assert not (tmp_path / "pe_ag_gmoe").exists()
    assert list((tmp_path / "pe_ag_gmoe.training").glob("*/last.ckpt"))


def test_the_state_of_another_training_is_not_taken(data, tmp_path):
    stale = tmp_path / "pe_ag_gmoe.training" / "other" / "last.ckpt"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"not a checkpoint")
    train(data, tmp_path, epochs=1)
    assert not stale.parent.exists()


def test_results_depend_on_the_seed_and_not_on_the_workers(data, tmp_path):
    first = contents(train(data, tmp_path / "0"))
    disk = HARDWARE | {"data_memory": 0.0}
    second = contents(train(data, tmp_path / "1", hardware=disk, epochs=2))
    workers = contents(train(data, tmp_path / "2", hardware=disk | {"workers": 1}, epochs=2))
    assert second["model.safetensors"] == workers["model.safetensors"]
    assert second["model.safetensors"] != first["model.safetensors"]


def test_training_stops_when_validation_gets_no_better(data, tmp_path):
    model = train(data, tmp_path, epochs=40, patience=1, learning_rate=0.05, schedule="constant")
    metrics = pd.read_csv(model / "metrics.csv")
    assert len(metrics) < 40
    assert metrics["validation_loss"].iloc[-1] > metrics["validation_loss"].min()


def test_the_model_is_that_of_the_best_epoch(data, tmp_path):
    model = train(data, tmp_path, epochs=6, learning_rate=0.02, schedule="constant")
    metrics = pd.read_csv(model / "metrics.csv")
    network, max_spots = load_network(model)
    batches = SpotBatches(
        data / "patterns",
        labels_of_split(data / "patterns", data / "structures.parquet", "validation")[::2],
        8, max_spots, 1, shuffle=False, in_memory=True,
    )  # fmt: skip
    right = total = 0
    with torch.inference_mode():
        for k in range(len(batches)):
            batch = batches[k]
            said = network.opinions(network(batch.spots, batch.mask)).crystal_system
            right += int((said.argmax(dim=-1) == batch.crystal_system).sum())
            total += len(batch.spots)
    best = metrics.loc[metrics["validation_loss"].idxmin()]
    assert right / total == pytest.approx(best["crystal_system_accuracy"], abs=1e-6)


def test_a_loss_that_is_not_finite_stops_in_one_sentence(data, tmp_path):
    sentence = "PeAgGmoe is not finite in epoch 0 at a batch of .* there is no epoch before it"
    with pytest.raises(InputError, match=sentence):
        train(data, tmp_path, learning_rate=1e30, schedule="constant")


def batches_of(data):
    labels = labels_of_split(data / "patterns", data / "structures.parquet", "train")
    return SpotBatches(data / "patterns", labels, 8, 15, 1, shuffle=True, in_memory=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", NETWORK_HPARAMS)
def test_a_material_that_is_not_finite_is_named_and_the_state_kept(data, tmp_path, name, value):
    """It has a pattern in the second epoch, of 5 batches, and none in the first."""
    batches = batches_of(data)
    before = {p // 5 for k in range(5) for p in batches[k].pattern.tolist()}
    second = [batches[k].pattern.tolist() for k in range(5, 10)]
    batch = next(batch for batch in second if not {p // 5 for p in batch} <= before)
    material = next(p // 5 for p in batch if p // 5 not in before)
    bad = write_data(tmp_path, range(5 * material, 5 * material + 5), value)
    with pytest.raises(InputError) as error:
        train(bad, tmp_path, name, drop_spots=0.0)
    named = next(b for b in second if material in {p // 5 for p in b})
    ids = ", ".join(sorted({f"m{p // 5:02}" for p in named}))
    state = state_of(tmp_path / name)
    network = {"pe_ag_gmoe": "PeAgGmoe", "mvof_ml": "MvofMl", "ours": "Ours"}[name]
    assert str(error.value) == (
        f"the loss of {network} is not finite in epoch 1 at a batch of the materials {ids}: lower "
        "its learning_rate, train with precision 32-true, or look at the patterns of these "
        f"materials; {state / 'last.ckpt'} has all up to the epoch before"
    )
    assert len(epochs_so_far(state)) == 1
    weights = read_checkpoint(state / "last.ckpt")["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


def test_a_material_that_is_not_finite_in_validation_is_named(tmp_path):
    bad = write_data(tmp_path, [5 * 24 + 2])  # the first to validate with
    with pytest.raises(InputError, match=r"is not finite in epoch 0 at a batch .*m24.* no epoch"):
        train(bad, tmp_path, validation_patterns=40)


def test_a_training_stops_before_its_time_is_over_and_goes_on(data, tmp_path):
    """The job has no time at all, so that each try does the one epoch that every try does."""
    whole = train(data, tmp_path / "whole")
    call = f"Path({str(data)!r}), Path({str(tmp_path)!r}), minutes=0"
    for done in (1, 2):
        process = started(f"{call}, epochs=3")
        output = process.communicate()[0]
        assert process.returncode == 75, output
        lines = [line for line in output.splitlines() if "epochs are done" in line]
        assert len(lines) == 1
        assert lines[0].startswith(f"{done} of at most 3 epochs are done and the time of the job")
        assert not (tmp_path / "pe_ag_gmoe").exists()
        assert len(epochs_so_far(state_of(tmp_path / "pe_ag_gmoe"))) == done
    assert contents(train(data, tmp_path, minutes=0)) == contents(whole)


def test_a_training_with_time_enough_is_not_stopped(data, tmp_path):
    assert len(pd.read_csv(train(data, tmp_path, minutes=1e6) / "metrics.csv")) == 3


@pytest.mark.parametrize(("spare", "stops"), [(-1.0, True), (1.0, False)])
def test_the_longest_epoch_must_fit_into_what_is_left(monkeypatch, spare, stops):
    """Epochs of 100, 300 and 200 s: at 1600 s another of 360 s must end before the margin."""
    now = iter([1000.0, 1100.0, 1400.0, 1600.0])
    monkeypatch.setattr(fit.time, "time", lambda: next(now))
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(should_stop=False, strategy=strategy)
    clock = fit.Deadline(1600 + 360 + fit.MARGIN + spare)
    clock.on_train_start(trainer, None)
    for _ in range(2):
        clock.on_train_epoch_end(trainer, None)
        assert not trainer.should_stop
    clock.on_train_epoch_end(trainer, None)
    assert trainer.should_stop == stops


@pytest.mark.parametrize("patience", [1, 9])
def test_a_training_killed_after_its_last_epoch_only_writes_the_model(
    data, tmp_path, monkeypatch, patience
):
    how = {"patience": patience, "epochs": 6, "learning_rate": 0.05, "schedule": "constant"}
    whole = train(data, tmp_path / "whole", **how)
    with monkeypatch.context() as patch:
        patch.setattr(spot_training, "architecture", stop_before_the_model)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path, **how)
    assert not (tmp_path / "pe_ag_gmoe").exists()
    monkeypatch.delattr(spot_training, "train_epochs")
    assert contents(train(data, tmp_path, **how)) == contents(whole)
    assert (len(pd.read_csv(whole / "metrics.csv")) == 6) == (patience == 9)


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """Return the folder of a training that was stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(SystemExit):
        train(data, folder, minutes=0)
    return folder


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "gone"])
def test_a_damaged_checkpoint_is_refused(data, stopped, tmp_path, name, damage):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    path = state_of(tmp_path / "pe_ag_gmoe") / name
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 4
    sizes = {"truncated": len(content) * 2 // 3, "flipped": len(content), "empty": 0}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: sizes[damage]])
    if (name, damage) == ("last.ckpt", "gone"):
        assert contents(train(data, tmp_path)) == contents(train(data, tmp_path / "whole"))
        return
    sentence = f"{path} is damaged .*: delete {path.parent}, and the training starts from the begin"
    with pytest.raises(InputError, match=sentence):
        train(data, tmp_path)
    shutil.rmtree(path.parent)
    train(data, tmp_path, epochs=1)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_no_flipped_bit_of_a_checkpoint_changes_what_is_read(stopped, tmp_path):
    """Bits in names, sizes and dates of the archive are among those tried."""
    content = (state_of(stopped / "pe_ag_gmoe") / "last.ckpt").read_bytes()
    whole = read_checkpoint(state_of(stopped / "pe_ag_gmoe") / "last.ckpt")
    path = tmp_path / "last.ckpt"
    rng = np.random.default_rng(0)
    places = [*rng.integers(len(content), size=150), *range(80), *range(-400, 0)]
    refused = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except InputError:
            refused += 1
        else:
            assert same(found, whole)
    assert refused > 150


def test_a_model_that_another_process_trains_is_left_alone(data, tmp_path):
    process = started(f"Path({str(data)!r}), Path({str(tmp_path)!r}), epochs=5000, patience=5000")
    try:
        while not list((tmp_path / "pe_ag_gmoe.training").glob("*/last.ckpt")):
            assert process.poll() is None
            time.sleep(0.1)
        with pytest.raises(InputError, match=f"pe_ag_gmoe is being made by process {process.pid}"):
            train(data, tmp_path)
        assert process.poll() is None
        assert state_of(tmp_path / "pe_ag_gmoe").exists()
    finally:
        process.kill()
        process.communicate()


def test_half_precision_trains(data, tmp_path):
    model = train(data, tmp_path, hardware=HARDWARE | {"precision": "bf16-mixed"}, epochs=1)
    assert np.isfinite(pd.read_csv(model / "metrics.csv")["validation_loss"]).all()


@pytest.mark.parametrize("name", NETWORK_HPARAMS)
def test_predictions_of_a_network(data, tmp_path, name):
    model = train(data, tmp_path, name, epochs=1)
    predictions, run = tmp_path / "p.parquet", tmp_path / "p.run.json"
    inputs = data / "patterns", data / "structures.parquet"
    evaluate_network(model, *inputs, predictions, run, HARDWARE, 1)
    table = pd.read_parquet(predictions)
    assert table["pattern"].tolist() == list(range(160, 200))
    assert table["material_id"].tolist() == [f"m{i}" for i in range(32, 40) for _ in range(5)]
    probability = table[[f"probability_{system}" for system in CRYSTAL_SYSTEMS]].to_numpy()
    assert probability.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    best = np.array(CRYSTAL_SYSTEMS)[probability.argmax(axis=1)]
    assert (table["predicted_crystal_system"] == best).all()
    assert ("predicted_space_group" in table) == (name != "mvof_ml")
    assert ("uncertainty" in table) == (name == "mvof_ml")
    assert ("pool_weight" in table) == (name == "ours")
    assert json.loads(run.read_text())["facts"]["test_patterns"] == 40
    network, max_spots = load_network(model)
    labels = labels_of_split(*inputs, "test")[7:8]
    alone = SpotBatches(inputs[0], labels, 1, max_spots, 1, shuffle=False, in_memory=True)[0]
    with torch.inference_mode():
        said = network.opinions(network(alone.spots, alone.mask)).crystal_system[0].numpy()
    assert probability[7] == pytest.approx(said, abs=1e-5)


def test_a_broken_model_is_named(data, tmp_path):
    model = train(data, tmp_path, epochs=1)
    (model / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="pe_ag_gmoe does not hold a trained network"):
        load_network(model)


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        check_device({"device": "cuda"}, "symmetry")
    else:
        with pytest.raises(InputError, match="no CUDA device is visible"):
            check_device({"device": "cuda"}, "symmetry")


def test_architecture_tells_shapes_and_parameters():
    network = NETWORKS["pe_ag_gmoe"]()
    blocks = {block["name"]: block for block in architecture(network)}
    assert blocks["encoder"]["inputs"] == [[45, 3]]
    assert blocks["encoder"]["outputs"] == [[45, 256]]
    assert blocks["graphormer"]["outputs"][0] == [64]
    assert blocks["encoder.layers.0"]["parent"] == "encoder"
    top = [name for name, block in blocks.items() if not block["parent"]]
    assert top == ["encoder", "graph", "graphormer", "crystal_system", "space_group"]
    total = sum(blocks[name]["parameters"] for name in top)
    assert total == sum(p.numel() for p in network.parameters())


UNVARIED = {"rotate": False, "scale_jitter": 0.0, "drop_spots": 0.0, "faint_spots": 0.0}


def test_unvaried_patterns_are_the_same():
    spots, mask = torch.rand(6, 9, 3), torch.rand(6, 9) > 0.2
    result = varied(spots, mask, UNVARIED)
    assert torch.equal(result[0], spots)
    assert torch.equal(result[1], mask)


def test_varied_patterns_are_turned_and_enlarged_each_as_a_whole():
    torch.manual_seed(0)
    spots, mask = torch.rand(400, 9, 3) - 0.5, torch.ones(400, 9, dtype=torch.bool)
    result, same = varied(spots, mask, {**UNVARIED, "rotate": True, "scale_jitter": 0.1})
    assert torch.equal(result[..., 2], spots[..., 2])
    assert torch.equal(same, mask)
    before, after = (torch.view_as_complex(s[..., :2].contiguous()) for s in (spots, result))
    ratio = after / before
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-3, rtol=0)
    assert ratio[:, 0].abs().log().std().item() == pytest.approx(0.1, rel=0.15)
    quarter = torch.histc(ratio[:, 0].angle(), 4, -np.pi, np.pi)
    assert quarter.min() > 60


def test_varied_patterns_lose_spots_that_they_have():
    torch.manual_seed(0)
    spots, mask = torch.rand(500, 40, 3), torch.rand(500, 40) > 0.3
    _, kept = varied(spots, mask, {**UNVARIED, "drop_spots": 0.4})
    assert not (kept & ~mask).any()
    lost = 1 - kept.sum() / mask.sum()
    assert lost.item() == pytest.approx(0.2, abs=0.03)


def test_varied_patterns_lose_their_faintest_spots():
    torch.manual_seed(0)
    mask = torch.ones(4000, 41, dtype=torch.bool)
    mask[:, 0] = False
    spots = torch.zeros(4000, 41, 3)
    spots[:, 1:, 2] = torch.logspace(-4, 0, 40)
    same, kept = varied(spots, mask, {**UNVARIED, "faint_spots": 0.01})
    assert torch.equal(same, spots)
    assert not kept[:, 0].any()
    assert (kept[:, 1:].diff(dim=1) >= 0).all()  # none that is brighter than one that is left
    assert kept[:, spots[0, :, 2] >= 0.01].all()
    # As likely to lose those below 0.001 as those below no more than that.
    lost = 1 - kept[:, 20 // 2 + 1].float().mean()
    assert lost.item() == pytest.approx(0.5, abs=0.06)
