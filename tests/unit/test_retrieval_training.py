"""Training of retrieval networks: they learn, resume exactly, and see no test data."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from diffractory.simulate.crystal import Crystal
from diffractory.store import InputError, Patterns, read_patterns, write_patterns
from diffractory.training.crystals import PairBatches, layers_of, padded, pairs, read_layers
from diffractory.training.fit import epochs_so_far
from diffractory.training.retrieval_networks import (
    embed_patterns,
    embed_structures,
    load_retrieval_network,
)
from diffractory.training.retrieval_training import train_retrieval_network

HARDWARE = {
    "device": "cpu",
    "devices": 1,
    "nodes": 1,
    "precision": "32-true",
    "threads": 1,
    "workers": 0,
    "data_memory": 1.0,
}
Q_MAX = 1.0
NETWORKS = {
    "dd2d": {
        "width": 32, "n_layers": 1, "n_heads": 4, "max_length": 40, "dropout": 0.0,
        "q_max": Q_MAX, "q_step": 0.02,
    },
    "invariant": {
        "width": 32, "dim": 16, "n_densities": 8, "n_harmonics": 3, "n_products": 8,
        "hidden_dim": 32, "dropout": 0.0, "q_max": Q_MAX,
    },
}  # fmt: skip
TRAINING = {
    "epochs": 3,
    "batch_size": 32,
    "accumulate": 1,
    "learning_rate": 0.003,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "patience": 99,
    "rotate": False,
    "scale_jitter": 0.0,
    "drop_spots": 0.0,
    "position_jitter": 0.0,
}


def crystals(count, seed=0):
    """Return layers like MX2 in 2H and 1T, with random lattice constants and elements."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        a = rng.uniform(2.8, 4.2)
        cell = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, 20.0]])
        other = [1 / 3, 2 / 3] if i % 2 else [2 / 3, 1 / 3]
        positions = np.array([[0, 0, 0.5], [1 / 3, 2 / 3, 0.57], [*other, 0.43]])
        metal, anion = rng.integers(20, 80), rng.integers(6, 53)
        yield Crystal(cell, positions, np.array([metal, anion, anion]))


def spots_of(crystal):
    """Return hkl, q_x and q_y in 1/angstrom, and |sum_j Z_j exp(-q^2) exp(-2 pi i q r_j)|^2."""
    h = np.arange(-5, 6)
    hkl = np.stack(np.meshgrid(h, h, 0, indexing="ij"), axis=-1).reshape(-1, 3)
    q = hkl @ crystal.reciprocal
    kept = (np.abs(q).max(axis=1) <= Q_MAX) & hkl.any(axis=1)
    hkl, q = hkl[kept], q[kept]
    waves = np.exp(-2j * np.pi * hkl @ crystal.positions.T)
    intensity = np.abs(np.exp(-(q**2).sum(axis=1)) * (waves @ crystal.numbers)) ** 2
    return hkl, q[:, 0], q[:, 1], intensity


def write_data(folder, count, *, without=(), not_finite=None):
    """Write layers.parquet and a store of the patterns of all layers but some, in reverse order."""
    some = list(crystals(count))
    split = np.resize(["test", "validation", "train", "train", "train"], count)
    ids = [f"layer_{i}" for i in range(count)]
    table = {"material_id": ids, "split": split, "structure": [c.to_json() for c in some]}
    pd.DataFrame(table).to_parquet(folder / "layers.parquet")
    made = [i for i in reversed(range(count)) if i not in without]
    hkl, qx, qy, intensity = zip(*(spots_of(some[i]) for i in made), strict=True)
    intensity = [
        v * (np.nan if i == not_finite else 1) for i, v in zip(made, intensity, strict=True)
    ]
    n = len(made)
    patterns = Patterns(
        offsets=np.cumsum([0, *map(len, qx)]),
        qx=np.concatenate(qx).astype(np.float32),
        qy=np.concatenate(qy).astype(np.float32),
        intensity=np.concatenate(intensity).astype(np.float32),
        hkl=np.concatenate(hkl).astype(np.int16),
        material_id=np.array(ids, dtype=object)[made],
        zone_axis=np.tile(np.int16([0, 0, 1]), (n, 1)),
        orientation=np.tile(np.eye(3), (n, 1, 1)),
        thickness=np.full(n, 3, dtype=np.float32),
        energy=np.full(n, 4e4, dtype=np.float32),
    )
    write_patterns(folder / "patterns", [patterns])
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), 300)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("few"), 60, without=[7, 13])


def train(data, folder, name, hardware=HARDWARE, network=None, **how):
    model = folder / name
    settings = {"network": NETWORKS[name] | (network or {}), "training": TRAINING | how}
    layers = data / "layers.parquet"
    train_retrieval_network(name, data / "patterns", layers, model, settings, hardware, 1)
    return model


def contents(model):
    names = ["model.safetensors", "hparams.json", "architecture.json", "metrics.csv"]
    return {name: (model / name).read_bytes() for name in names}


def similarities_of(network, data, split):
    """Return what a network says of the patterns (rows) and layers of a split, which are pairs."""
    table = pairs(pd.read_parquet(data / "layers.parquet"), data / "patterns", split)
    patterns = read_patterns(data / "patterns").select(table["pattern"].to_numpy())
    gallery = embed_structures(network, read_layers(data / "layers.parquet"), HARDWARE)
    embeddings = gallery[table["layer"]], embed_patterns(network, patterns, HARDWARE)
    with torch.inference_mode():
        loss = network.loss(*map(torch.from_numpy, embeddings)).item()
        similarity = network.similarities(*map(torch.from_numpy, embeddings)).numpy()
    return loss, (similarity > np.diag(similarity)[:, None]).sum(axis=1)


@pytest.mark.parametrize(("name", "epochs"), [("dd2d", 20), ("invariant", 10)])
def test_networks_learn_to_find_crystals_that_they_have_not_seen(data, tmp_path, name, epochs):
    """Of 60 test crystals, 10 at random have the right one in 17 % of all cases."""
    model = train(data, tmp_path, name, epochs=epochs)
    network = load_retrieval_network(model)
    _, rank = similarities_of(network, data, "test")
    assert len(rank) == 60
    assert (rank < 10).mean() > 0.5
    metrics = pd.read_csv(model / "metrics.csv")
    measures = ["validation_loss", "top_1", "top_10"]
    assert list(metrics) == ["epoch", "patterns_seen", "training_loss", *measures]
    loss, rank = similarities_of(network, data, "validation")
    found = metrics.loc[metrics["validation_loss"].idxmin(), measures]
    expected = [loss, (rank < 1).mean(), (rank < 10).mean()]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    facts = json.loads((model / "run.json").read_text())["facts"]
    assert (facts["training_patterns"], facts["validation_patterns"]) == (180, 60)
    blocks = {block["name"] for block in json.loads((model / "architecture.json").read_text())}
    assert {"dd2d": "geometry.transformer", "invariant": "form_factors"}[name] in blocks


def test_a_killed_training_ends_as_an_undisturbed_one(few, tmp_path):
    """Kill it for real, after its second checkpoint, and train again."""
    how = {"rotate": True, "scale_jitter": 0.02, "position_jitter": 0.01, "drop_spots": 0.1}
    how |= {"network": {"dropout": 0.1}}
    whole = train(few, tmp_path / "whole", "dd2d", **how)
    script = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_retrieval_training as t
from diffractory.training.fit import Training

save = Training.on_save_checkpoint

def stop_after_second(self, checkpoint):
    save(self, checkpoint)
    if len(self.epochs) == 3:
        print("ready", flush=True)
        time.sleep(60)

Training.on_save_checkpoint = stop_after_second
t.train(Path({str(few)!r}), Path({str(tmp_path / "killed")!r}), "dd2d", **{how!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (state,) = (tmp_path / "killed" / "dd2d.training").iterdir()
    assert len(epochs_so_far(state)) == 2
    assert contents(train(few, tmp_path / "killed", "dd2d", **how)) == contents(whole)
    assert not state.parent.exists()


def test_variation_changes_the_training(few, tmp_path):
    plain = contents(train(few, tmp_path / "plain", "dd2d", epochs=1))["model.safetensors"]
    for k, change in enumerate(({"rotate": True}, {"position_jitter": 0.01})):
        other = train(few, tmp_path / str(k), "dd2d", epochs=1, **change)
        assert (other / "model.safetensors").read_bytes() != plain


def batches_of(data):
    of_layers = pd.read_parquet(data / "layers.parquet")
    table = pairs(of_layers, data / "patterns", "train")
    return PairBatches(data / "patterns", layers_of(of_layers), table, 10, Q_MAX, 1, shuffle=True)


def test_each_pass_has_every_pair_of_its_split_once(few):
    batches = batches_of(few)
    ids = read_patterns(few / "patterns").material_id
    expected = {f"layer_{i}" for i in range(60) if i % 5 > 1} - {"layer_7", "layer_13"}
    n = len(batches)
    passes = [torch.cat([batches[k].pattern for k in range(n * p, n * p + n)]) for p in (0, 1)]
    for one in passes:
        assert sorted(ids[one.numpy()]) == sorted(expected)
    assert not torch.equal(*passes)
    again = batches_of(few)[n + 1]
    assert torch.equal(again.spots, batches[n + 1].spots)


def test_pairs_belong_together(few):
    """The store has other materials, in another order, than the layers."""
    batches = batches_of(few)
    ids = read_patterns(few / "patterns").material_id
    some = list(crystals(60))
    batch = batches[1]
    for i, pattern in enumerate(batch.pattern):
        crystal = some[int(ids[pattern].removeprefix("layer_"))]
        _, qx, qy, intensity = spots_of(crystal)
        found = batch.spots[i][batch.mask[i]].numpy()
        assert found == pytest.approx(np.stack([qx, qy, intensity], axis=1), rel=1e-5, abs=1e-6)
        a = np.linalg.norm(crystal.cell[0])
        assert batch.crystals.lattice[i].tolist() == pytest.approx([a, a, 20, 90, 90, 120])
        assert sorted(batch.crystals.numbers[i].tolist()) == sorted(crystal.numbers.tolist())
        # Half of the spots of a disc, whose radius is half a side of the square.
        inside = np.hypot(qx, qy) <= Q_MAX
        q = batch.crystals.reflections[i]
        q = q[(q != 0).any(dim=1)].numpy()
        both = np.concatenate([q, -q])
        expected = np.stack([qx, qy], axis=1)[inside]
        assert len(both) == len(expected)
        distance = np.linalg.norm(both[:, None] - expected, axis=2)
        assert distance.min(axis=0).max() < 1e-5


def test_atoms_are_ordered_by_number_then_distance_then_coordinates():
    """Ties are told by x, then y, then z, whatever the order in the file and rounding errors."""
    where = np.array(
        [[2, 0, 0], [0, 2, 0], [0, 0, 2], [1, 1, 1], [3, 0, 0], [-2, 0, 0], [0, 0.5, 0]],
        dtype=float,
    )
    numbers = np.array([8, 8, 8, 8, 6, 8, 9])
    expected = [4, 3, 5, 2, 1, 0, 6]
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(5):
        order = rng.permutation(7)
        noise = rng.uniform(-1e-9, 1e-9, (7, 3))
        cell = np.diag([7.0, 9.0, 20.0])
        texts.append(Crystal(cell, (where + noise)[order] / [7, 9, 20], numbers[order]).to_json())
    table = {"material_id": list("abcde"), "structure": texts}
    layers = layers_of(pd.DataFrame(table))
    for one in layers.positions.reshape(5, 7, 3):
        assert one == pytest.approx(where[expected], abs=1e-8)
    assert layers.numbers.reshape(5, 7).tolist() == [numbers[expected].tolist()] * 5


def test_padding():
    values, offsets = np.arange(10.0).reshape(5, 2), np.array([0, 2, 2, 5])
    result, mask = padded(values, offsets, np.array([2, 1, 0]))
    assert result.tolist() == [
        [[4, 5], [6, 7], [8, 9]], [[0, 0]] * 3, [[0, 1], [2, 3], [0, 0]],
    ]  # fmt: skip
    assert mask.tolist() == [[True] * 3, [False] * 3, [True, True, False]]
    assert padded(values, offsets, np.array([1]))[0].shape == (1, 1, 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings_of_a_gallery_are_those_of_its_items(few, tmp_path, name):
    network = load_retrieval_network(train(few, tmp_path, name, epochs=1))
    layers = read_layers(few / "layers.parquet")
    found = embed_structures(network, layers, HARDWARE)
    patterns = read_patterns(few / "patterns")
    of_patterns = embed_patterns(network, patterns, HARDWARE)
    assert found.shape == (60, 32)
    assert of_patterns.shape == (58, 32)
    for i in (0, 29, 57):
        one = embed_patterns(network, patterns.select(np.array([i])), HARDWARE)[0]
        assert of_patterns[i] == pytest.approx(one, abs=1e-5)
        with torch.inference_mode():
            one = network.structures(layers.batch(np.array([i]), Q_MAX))[0]
        assert found[i] == pytest.approx(one.numpy(), abs=1e-5)


def test_a_layer_longer_than_the_sequence_is_named(few, tmp_path):
    message = r"layer_0, layer_1, .* have more than the 2 atoms that max_length: 19 leaves room"
    with pytest.raises(InputError, match=message):
        train(few, tmp_path, "dd2d", network={"max_length": 19})
    network = load_retrieval_network(train(few, tmp_path, "dd2d", network={"max_length": 20}))
    network.max_length = 19
    with pytest.raises(InputError, match="have more than the 2 atoms"):
        embed_structures(network, read_layers(few / "layers.parquet"), HARDWARE)


def test_what_cannot_be_trained_is_named(few, tmp_path):
    with pytest.raises(InputError, match=r"several devices or nodes.* set devices and nodes to 1"):
        train(few, tmp_path, "dd2d", HARDWARE | {"devices": 2})
    table = pd.read_parquet(few / "layers.parquet")
    (tmp_path / "patterns").symlink_to(few / "patterns")
    table[table["split"] != "validation"].to_parquet(tmp_path / "layers.parquet")
    with pytest.raises(InputError, match="has no pattern of a layer of the split validation"):
        train(tmp_path, tmp_path, "invariant")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pattern_that_is_not_finite_is_named(tmp_path, name):
    bad = write_data(tmp_path, 20, not_finite=3)
    with pytest.raises(InputError, match=r"not finite .* materials .*layer_3, "):
        train(bad, tmp_path, name)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(InputError, match="does not hold a trained network"):
        load_retrieval_network(tmp_path)
