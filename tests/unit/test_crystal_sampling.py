"""Sampling: rows belong to their crystals, can be repeated, and hold also what went wrong."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import test_generation_training as t
import torch
from safetensors.torch import load_file, save_file

from diffractory.store import InputError
from diffractory.training.crystal_generators import load_generator
from diffractory.training.sampling import sample_crystals, trace_crystal

SETTINGS = {"reconstructed": 20, "generated": 5, "batch_size": 3, "samplers": []}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a table with the same four crystals in all splits, in the first again and again."""
    path = tmp_path_factory.mktemp("data") / "crystals.parquet"
    some = t.crystals(4)
    tables = [
        some.assign(split=split, material_id=split + some["material_id"])
        for split in (*["train"] * 40, "validation", "test")
    ]
    pd.concat(tables, ignore_index=True).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    """Return folders of networks; FTCP knows its crystals by heart."""
    folder = tmp_path_factory.mktemp("models")
    wide = {"channels": 32, "hidden": 128, "latent": 16, "kl_weight": 1e-4}
    heart = {"epochs": 18, "schedule": "constant", "network": wide}
    return {
        "ftcp": t.train(data, folder, "ftcp", **heart),
        "ddpm": t.train(data, folder, "crystal_vae", epochs=1),
        "flow": t.train(
            data, folder / "flow", "crystal_vae", epochs=1, network={"process": "flow"}
        ),
    }


def sample(data, model, folder, hardware=t.HARDWARE, seed=1, **settings):
    samples = folder / "samples.parquet"
    paths = model, data, samples, folder / "samples.run.json"
    sample_crystals(*paths, SETTINGS | settings, hardware, seed)
    return pd.read_parquet(samples)


def test_rows_belong_to_their_crystals(data, models, tmp_path):
    """Those that are known by heart come back, each to its own row."""
    table = sample(data, models["ftcp"], tmp_path)
    truth = pd.read_parquet(data).set_index("material_id")
    made = table[table["task"] == "reconstruction"]
    assert sorted(made["material_id"]) == sorted(truth.index[truth["split"] == "test"])
    assert made["item"].tolist() == list(range(4))
    assert (table["steps"] == 1).all()
    for row in made.itertuples():
        expected = truth.loc[row.material_id]
        assert row.numbers.tolist() == expected["numbers"].tolist()
        difference = row.positions - expected["positions"]
        assert np.abs(difference - difference.round()).max() < 0.2
        assert row.lattice == pytest.approx(expected["lattice"], abs=0.5)
    new = table[table["task"] == "generation"]
    assert new["item"].tolist() == list(range(5))
    assert set(new["material_id"]) == {""}


def test_each_sampler_has_its_rows_and_leaves_the_others_as_they_are(data, models, tmp_path):
    alone = sample(data, models["ddpm"], tmp_path)
    table = sample(data, models["ddpm"], tmp_path, samplers=["eq_6", "steps_5"])
    columns = ["task", "sampler", "item", "material_id", "lattice", "positions", "numbers", "steps"]
    assert list(table) == columns
    for row in table.itertuples():
        assert len(row.lattice) == 9
        assert len(row.positions) == 3 * len(row.numbers)
        assert row.positions.min() >= 0
        assert row.positions.max() < 1
    groups = dict(iter(table.groupby(["task", "sampler"])))
    found = {key: (len(group), set(group["steps"])) for key, group in groups.items()}
    assert found == {
        ("generation", ""): (5, {20}),
        ("reconstruction", ""): (4, {20}),
        ("reconstruction", "eq_6"): (4, {20}),
        ("reconstruction", "steps_5"): (4, {5}),
    }
    own = table[table["sampler"] == ""].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, alone)
    # From the same latent vectors, so with the same lattices.
    lattices = [np.stack(groups["reconstruction", name]["lattice"]) for name in ("", "eq_6")]
    assert np.array_equal(*lattices)
    positions = [np.concatenate([*group["positions"]]) for group in groups.values()]
    assert not np.array_equal(positions[1], positions[2])


@pytest.mark.parametrize("name", ["ftcp", "ddpm", "flow"])
def test_samples_can_be_repeated_and_depend_on_the_seed(data, models, tmp_path, name):
    first = sample(data, models[name], tmp_path)
    content = (tmp_path / "samples.parquet").read_bytes()
    sample(data, models[name], tmp_path)
    assert (tmp_path / "samples.parquet").read_bytes() == content
    other = sample(data, models[name], tmp_path, seed=2)
    assert not np.array_equal(other["lattice"][0], first["lattice"][0])
    assert other["material_id"].tolist() != first["material_id"].tolist()
    assert len(sample(data, models[name], tmp_path, generated=0, reconstructed=2)) == 2


def test_networks_reconstruct_the_same_crystals(data, models, tmp_path):
    ids = [
        sample(data, model, tmp_path, reconstructed=2)["material_id"].tolist()
        for model in models.values()
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 3


def test_what_is_not_finite_is_kept(data, models, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(models["ddpm"], model)
    weights = load_file(model / "model.safetensors")
    weights["lattice_decoder.2.bias"].fill_(torch.nan)
    save_file(weights, model / "model.safetensors")
    with pytest.raises(InputError, match=r"is damaged, or was changed"):
        sample(data, model, tmp_path)
    (model / "run.json").unlink()
    table = sample(data, model, tmp_path)
    assert len(table) == 9
    assert all(np.isnan(row).any() for row in table["lattice"])


def test_a_trajectory_goes_from_noise_to_the_crystal(data, models, tmp_path):
    path = tmp_path / "trajectory.parquet"
    paths = models["ddpm"], data, path, tmp_path / "trajectory.run.json"
    trace_crystal(*paths, t.HARDWARE, 1)
    table = pd.read_parquet(path)
    assert table["step"].tolist() == list(range(20, -1, -1))
    assert table["time"].tolist() == pytest.approx(np.linspace(1, 0, 21))
    first = sample(data, models["ddpm"], tmp_path)
    assert set(table["material_id"]) == {first["material_id"][0]}
    assert set(table["generator"]) == {"crystal_vae"}
    for row in table.itertuples():
        difference = row.positions - row.unwrapped
        assert np.abs(difference - difference.round()).max() < 1e-6
        assert len(row.numbers) == len(row.positions) / 3
    assert np.abs(np.stack(table["unwrapped"])).max() > 1
    assert len({tuple(lattice) for lattice in table["lattice"]}) == 1
    facts = json.loads((tmp_path / "trajectory.run.json").read_text())
    assert facts["stage"] == "trace_crystal"


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("ftcp", "steps_5"), ("ftcp", "eq_6"), ("flow", "eq_6"), ("ddpm", "steps_21"),
     ("ddpm", "steps_0"), ("ddpm", "fast")],
)  # fmt: skip
def test_a_sampler_that_is_not_there_is_named(data, models, tmp_path, name, sampler):
    with pytest.raises(InputError, match=f"has no sampler {sampler}: take it out"):
        sample(data, models[name], tmp_path, samplers=[sampler])
    assert not (tmp_path / "samples.parquet").exists()


def test_what_cannot_be_sampled_is_named(data, models, tmp_path):
    with pytest.raises(InputError, match="makes crystals at once"):
        trace_crystal(
            models["ftcp"], data, tmp_path / "t.parquet", tmp_path / "t.json", t.HARDWARE, 1
        )
    table = pd.read_parquet(data)
    path = tmp_path / "crystals.parquet"
    table[table["split"] != "test"].to_parquet(path)
    with pytest.raises(InputError, match="has no crystal whose split is test"):
        sample(path, models["ftcp"], tmp_path)
    rows = table.to_dict("records")
    rows[-1] |= {"numbers": [1] * 6, "positions": [0.1] * 18}
    pd.DataFrame(rows).to_parquet(path)
    with pytest.raises(InputError, match="testcrystal_3 have more than max_sites: 5 atoms"):
        sample(path, models["ddpm"], tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"^generation\.hardware\.device is cuda, but no CUDA"):
            sample(data, models["ftcp"], tmp_path, t.HARDWARE | {"device": "cuda"})


def test_training_and_sampling_split_by_the_same_column(tmp_path):
    path = tmp_path / "crystals.parquet"
    table = t.crystals(20)
    table.to_parquet(path)
    model = t.train(path, tmp_path, "ftcp", split="disjoint_split", epochs=1)
    made = sample(path, model, tmp_path)
    expected = table.loc[table["disjoint_split"] == "test", "material_id"]
    assert sorted(made["material_id"])[5:] == sorted(expected)
    assert load_generator(model)[1]["split"] == "disjoint_split"
