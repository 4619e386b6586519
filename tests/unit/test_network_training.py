"""Training of networks: exact after a kill, honest about what it cannot do."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from diffractory.evaluation.predictions import evaluate_network
from diffractory.store import CRYSTAL_SYSTEMS, LATTICE, InputError, Patterns, write_patterns
from diffractory.training import networks
from diffractory.training.fit import check_device, varied
from diffractory.training.networks import architecture, load_network, train_network
from diffractory.training.spots import SpotBatches

HARDWARE = {"device": "cpu", "precision": "32-true", "threads": 2, "workers": 0, "data_memory": 1.0}
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
}


def settings_of(name, **training):
    return {"network": NETWORK_HPARAMS[name], "training": {**TRAINING, **training}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write a store of 40 materials with 5 patterns each, and their labels."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    counts = rng.integers(3, 20, 200)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    n = offsets[-1]
    patterns = Patterns(
        offsets=offsets,
        qx=rng.uniform(-1, 1, n).astype(np.float32),
        qy=rng.uniform(-1, 1, n).astype(np.float32),
        intensity=rng.uniform(0, 0.1, n).astype(np.float32),
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


def train(data, folder, name="pe_ag_gmoe", hardware=HARDWARE, **training):
    model = folder / name
    settings = settings_of(name, **training)
    inputs = data / "patterns", data / "structures.parquet"
    train_network(name, *inputs, model, settings, 15, hardware, 1)
    return model


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
        networks.labels_of_split(data / "patterns", data / "structures.parquet", "validation")[::2],
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
    with pytest.raises(InputError, match="PeAgGmoe is not finite in epoch"):
        train(data, tmp_path, learning_rate=1e30, schedule="constant")


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
    labels = networks.labels_of_split(*inputs, "test")[7:8]
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
        check_device({"device": "cuda"})
    else:
        with pytest.raises(InputError, match="no CUDA device is visible"):
            check_device({"device": "cuda"})


def test_architecture_tells_shapes_and_parameters():
    network = networks.NETWORKS["pe_ag_gmoe"]()
    blocks = {block["name"]: block for block in architecture(network)}
    assert blocks["encoder"]["inputs"] == [[45, 3]]
    assert blocks["encoder"]["outputs"] == [[45, 256]]
    assert blocks["graphormer"]["outputs"][0] == [64]
    assert blocks["encoder.layers.0"]["parent"] == "encoder"
    top = [name for name, block in blocks.items() if not block["parent"]]
    assert top == ["encoder", "graph", "graphormer", "crystal_system", "space_group"]
    total = sum(blocks[name]["parameters"] for name in top)
    assert total == sum(p.numel() for p in network.parameters())


UNVARIED = {"rotate": False, "scale_jitter": 0.0, "drop_spots": 0.0}


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
