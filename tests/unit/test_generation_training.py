"""Training of networks that generate crystals: they learn, resume exactly, name what is wrong."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from diffractory.store import InputError
from diffractory.training import fit
from diffractory.training.crystal_generators import load_generator
from diffractory.training.generation_training import train_generator
from diffractory.training.unit_cells import CrystalBatches, read_crystals

HARDWARE = {
    "device": "cpu",
    "devices": 1,
    "nodes": 1,
    "precision": "32-true",
    "threads": 1,
    "workers": 0,
    "data_memory": 1.0,
}
VAE = {
    "process": "ddpm",
    "diffusion": {
        "steps": 20, "beta_min": 1e-10, "beta_max": 0.01, "type_sigma_min": 0.01,
        "type_sigma_max": 5.0, "flow_steps": 10,
        "langevin": {
            "sigma_min": 0.01, "sigma_max": 10.0, "levels": 5, "steps_per_level": 2,
            "step_size": 1e-4,
        },
    },
    "latent": 8,
    "encoder": {
        "hidden_dim": 8, "n_blocks": 1, "n_spherical": 3, "n_radial": 3, "gine_layers": 1,
    },
    "encode_n_sites": True,
    "encode_gine": True,
    "decoder": {"hidden_dim": 8, "n_layers": 1},
    "denoiser": {"hidden_dim": 8, "n_blocks": 1, "n_spherical": 3, "n_radial": 8},
    "fourier": [3, 8],
    "cutoff": 5.0,
    "max_neighbours": 8,
    "max_sites": 5,
    "loss_weights": {
        "coordinates": 1.0, "types": 0.1, "lattice": 100.0, "n_sites": 0.1, "composition": 1.0,
        "kl": 0.01,
    },
}  # fmt: skip
NETWORKS = {
    "crystal_vae": VAE,
    "ftcp": {
        "max_sites": 5, "max_elements": 3, "channels": 16, "hidden": 32, "latent": 8,
        "kl_weight": 1e-3,
    },
}  # fmt: skip
TRAINING = {
    "epochs": 3,
    "batch_size": 8,
    "accumulate": 1,
    "learning_rate": 0.003,
    "weight_decay": 0.0,
    "schedule": "plateau",
    "patience": 99,
}
TERMS = {
    "crystal_vae": ["coordinates", "types", "composition", "lattice", "n_sites", "kl"],
    "ftcp": ["features", "kl"],
}


def crystals(count, seed=0):
    """Return a table of cubic perovskites and rock salts with random elements and sizes."""
    rng = np.random.default_rng(seed)
    perovskite = [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 0]]
    rows = []
    for i in range(count):
        light, heavy, other = 8 + rng.integers(2), 22 + rng.integers(8), 38 + rng.integers(18)
        numbers = [light] * 3 + [heavy, other] if i % 2 else [light, heavy]
        positions = perovskite if i % 2 else [[0, 0, 0], [0.5, 0.5, 0.5]]
        cell = np.diag(np.full(3, rng.uniform(3.5, 4.5)))
        if not i % 2:
            cell = np.linalg.norm(cell[0]) * np.array(
                [[1, 0, 0], [0.5, 0.866, 0], [0.5, 0.289, 0.816]]
            )
        rows.append(
            {
                "material_id": f"crystal_{i}",
                "lattice": cell.ravel().tolist(),
                "positions": np.ravel(positions).astype(float).tolist(),
                "numbers": [int(z) for z in numbers],
            }
        )
    split = np.resize(["test", "validation", "train", "train", "train"], count)
    return pd.DataFrame(rows).assign(split=split, disjoint_split=np.roll(split, 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "crystals.parquet"
    crystals(40).to_parquet(path)
    return path


def train(data, folder, name, hardware=HARDWARE, split="split", network=None, **how):
    model = folder / name
    settings = {"network": NETWORKS[name] | (network or {}), "training": TRAINING | how}
    train_generator(name, data, split, model, settings, hardware, 1)
    return model


def contents(model):
    names = ["model.safetensors", "hparams.json", "architecture.json", "metrics.csv"]
    return {name: (model / name).read_bytes() for name in names}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_learn_and_are_built_again_from_their_folder(data, tmp_path, name):
    model = train(data, tmp_path, name, epochs=8, learning_rate=0.01)
    metrics = pd.read_csv(model / "metrics.csv")
    columns = ["epoch", "patterns_seen", "training_loss", "validation_loss", *TERMS[name]]
    assert sorted(metrics) == sorted(columns)
    assert metrics["patterns_seen"].tolist() == [24 * (k + 1) for k in range(8)]
    assert metrics["validation_loss"].iloc[-1] < 0.8 * metrics["validation_loss"].iloc[0]
    network, hparams = load_generator(model)
    assert hparams == {
        "model": name,
        "network": NETWORKS[name],
        "training": TRAINING | {"epochs": 8, "learning_rate": 0.01},
        "split": "split",
    }
    if name == "ftcp":
        cells = read_crystals(data, "split", "validation").cells(np.arange(8))
        with torch.no_grad():
            mean, log_variance = network.encode(cells)
            divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
        best = metrics.loc[metrics["validation_loss"].idxmin()]
        assert divergence.item() == pytest.approx(best["kl"], rel=1e-4)
    facts = json.loads((model / "run.json").read_text())["facts"]
    assert (facts["training_crystals"], facts["validation_crystals"]) == (24, 8)
    blocks = {block["name"] for block in json.loads((model / "architecture.json").read_text())}
    assert {"crystal_vae": {"encoder", "denoiser", "types"}, "ftcp": {"encoder", "decoder"}}[
        name
    ] <= blocks


@pytest.mark.parametrize("name", NETWORKS)
def test_validation_draws_the_same_in_every_epoch(data, tmp_path, name):
    metrics = pd.read_csv(train(data, tmp_path, name, learning_rate=0.0) / "metrics.csv")
    assert len(set(metrics["validation_loss"])) == 1
    assert len(set(metrics["training_loss"])) == 3


def test_a_killed_training_ends_as_an_undisturbed_one(data, tmp_path, monkeypatch):
    """Kill it for real, after its second checkpoint, in a plateau, and train again."""
    plateau = {"factor": 0.5, "patience": 0, "min_lr": 1e-5, "threshold": 0.5}
    monkeypatch.setattr(fit, "PLATEAU", plateau)
    whole = train(data, tmp_path / "whole", "crystal_vae", epochs=4)
    script = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_generation_training as t

t.fit.PLATEAU = {plateau!r}
save = t.fit.Training.on_save_checkpoint

def stop_after_second(self, checkpoint):
    save(self, checkpoint)
    if len(self.epochs) == 3:
        print("ready", flush=True)
        time.sleep(60)

t.fit.Training.on_save_checkpoint = stop_after_second
t.train(Path({str(data)!r}), Path({str(tmp_path / "killed")!r}), "crystal_vae", epochs=4)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (state,) = (tmp_path / "killed" / "crystal_vae.training").iterdir()
    assert len(fit.epochs_so_far(state)) == 2
    assert contents(train(data, tmp_path / "killed", "crystal_vae", epochs=4)) == contents(whole)
    monkeypatch.undo()
    assert contents(train(data, tmp_path, "crystal_vae", epochs=4)) != contents(whole)


def test_the_learning_rate_falls_where_the_loss_does_not():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    epochs = [{"validation_loss": loss} for loss in [3.0, 2.0, *[2.5] * 31]]
    for n, expected in ((0, 0.001), (32, 0.001), (33, 0.0006)):
        fit.follow_plateau(optimizer, 0.001, epochs[:n])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    fit.follow_plateau(optimizer, 0.001, [*epochs, *[{"validation_loss": 2.5}] * 2000])
    assert optimizer.param_groups[0]["lr"] == 1e-5


def test_two_processes_share_the_batches(data, tmp_path):
    """Their draws differ, so their losses are about those of one process."""
    models = [
        train(data, tmp_path / str(n), "crystal_vae", HARDWARE | {"devices": n}, epochs=1)
        for n in (1, 2)
    ]
    one, two = (pd.read_csv(model / "metrics.csv").loc[0] for model in models)
    assert two["patterns_seen"] == one["patterns_seen"] == 24
    for name in ("training_loss", "validation_loss", "lattice"):
        assert two[name] == pytest.approx(one[name], rel=0.2)


def test_each_pass_has_every_crystal_of_its_split_once(data):
    table = pd.read_parquet(data)
    some = read_crystals(data, "disjoint_split", "train")
    batches = CrystalBatches(some, 10, 1, shuffle=True)
    n = len(batches)
    passes = [torch.cat([batches[k].pattern for k in range(n * p, n * p + n)]) for p in (0, 1)]
    expected = np.flatnonzero(table["disjoint_split"] == "train")
    for one in passes:
        assert sorted(one.tolist()) == expected.tolist()
    assert not torch.equal(*passes)
    again = CrystalBatches(some, 10, 1, shuffle=True)[n + 1]
    assert torch.equal(again.fractional, batches[n + 1].fractional)


def test_batches_hold_the_crystals_of_the_table_and_processes_share_them(data):
    table = pd.read_parquet(data)
    batches = CrystalBatches(read_crystals(data, "split", "train"), 10, 1, shuffle=True)
    whole = batches[1]
    cells = whole.cells
    ends = cells.counts.cumsum(0)
    for k, row in enumerate(whole.pattern.tolist()):
        atoms = slice(ends[k] - cells.counts[k], ends[k])
        expected = table.iloc[row]
        assert cells.numbers[atoms].tolist() == expected["numbers"].tolist()
        assert cells.fractional[atoms].ravel().tolist() == pytest.approx(expected["positions"])
        assert cells.lattice[k].ravel().tolist() == pytest.approx(expected["lattice"])
    parts = [batches.shared(rank, 3)[1] for rank in range(3)]
    assert all(torch.equal(part.pattern, whole.pattern) for part in parts)
    assert [len(part.counts) for part in parts] == [3, 3, 2]
    assert torch.equal(parts[1].lattice, whole.lattice[1::3])
    with pytest.raises(InputError, match=r"9 processes cannot share a batch of 8 crystals"):
        batches.shared(0, 9)


def changed(folder, row, **values):
    path = folder / "crystals.parquet"
    rows = crystals(20).to_dict("records")
    rows[row] |= values
    pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ftcp", {"numbers": [8] * 6, "positions": [0.1] * 18}, "crystal_6 have more than max_s"),
        ("crystal_vae", {"numbers": [8] * 6, "positions": [0.1] * 18}, "max_sites: 5 atoms: raise"),
        ("ftcp", {"numbers": [1, 2, 3, 4], "positions": [0.1] * 12}, "max_elements: 3 elements"),
        (
            "crystal_vae",
            {"numbers": [101], "positions": [0.1] * 3},
            "crystal_6 have an element bey",
        ),
        ("ftcp", {"positions": [np.nan] * 6}, "crystal_6 have values that are not finite: leave"),
        ("crystal_vae", {"lattice": [np.inf] * 9}, "crystal_6 have values that are not finite"),
        ("ftcp", {"positions": [0.1] * 3}, "without three coordinates for each atom"),
        ("ftcp", {"lattice": [0.1] * 3}, "is no table of crystals with split"),
    ],
)
def test_a_crystal_that_no_network_can_take_is_named(tmp_path, name, values, message):
    with pytest.raises(InputError, match=message):
        train(changed(tmp_path, 6, **values), tmp_path, name)


def test_a_split_without_crystals_or_not_there_is_named(tmp_path):
    path = tmp_path / "crystals.parquet"
    table = crystals(20)
    table[table["split"] != "validation"].to_parquet(path)
    with pytest.raises(InputError, match="has no crystal whose split is validation: take more"):
        train(path, tmp_path, "ftcp")
    with pytest.raises(InputError, match=r"no table of crystals with another"):
        train(path, tmp_path, "ftcp", split="another")
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"is no table of crystals"):
        train(path, tmp_path, "ftcp")


def test_a_folder_without_a_model_is_named(data, tmp_path):
    with pytest.raises(InputError, match="does not hold a trained network"):
        load_generator(tmp_path)
    model = train(data, tmp_path, "ftcp", epochs=1)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(InputError, match="does not hold a trained network"):
        load_generator(model)
