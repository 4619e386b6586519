"""Layers relax in their plane; snapshots of thermal motion, whole or laid into one cell."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diffractory.augment.calculators import calculator, to_atoms
from diffractory.augment.crystals import repeat
from diffractory.augment.layers import folded, make_distractors, perturb_layers, relax_layers
from diffractory.errors import InputError
from diffractory.simulate.crystal import Crystal
from diffractory.store.provenance import read_record
from diffractory.structures.layers import lattice_columns

GAUSSIAN = {"method": "gaussian", "debye_waller": 0.6, "cells": [3, 2], "fold": False}
DYNAMICS = {"method": "dynamics", "temperature": 300.0, "duration": 0.02, "timestep": 2.0,
            "friction": 10.0, "cells": [2, 2], "fold": True}  # fmt: skip
HEXAGONAL = np.array([[2.7, 0, 0], [-1.35, 1.35 * 3**0.5, 0], [0, 0, 17]])
BILAYER = np.array([[0, 0, 0.44], [1 / 3, 2 / 3, 0.56]])


def crystal(number: int = 29) -> Crystal:
    """Two hexagonal sheets on each other, which relaxation brings closer: EMT knows copper."""
    return Crystal(HEXAGONAL, BILAYER, np.full(2, number))


def write_layers(path: Path, numbers: list[int]) -> pd.DataFrame:
    rows = [
        {
            "material_id": f"m{k}",
            **lattice_columns(HEXAGONAL),
            "thickness": 2.04,
            "layer_group": 72,
            "structure": crystal(z).to_json(),
        }
        for k, z in enumerate(numbers)
    ]
    table = pd.DataFrame(rows)
    table.to_parquet(path)
    return table


def run(stage, folder: Path, settings, name="made", calculator="emt", seed=0, threads=1):
    paths = [folder / f"{name}{end}" for end in (".parquet", ".rejected.parquet", ".run.json")]
    stage(folder / "layers.parquet", *paths, settings, calculator, seed, threads)
    return pd.read_parquet(paths[0]), pd.read_parquet(paths[1]), read_record(paths[2])


def structure_factors(made: Crystal, indices: np.ndarray) -> np.ndarray:
    """Sums of occupied waves at (h k 0), shape (B,)."""
    phases = np.exp(2j * np.pi * made.positions[:, :2] @ indices.T)
    return (np.broadcast_to(made.occupancies, len(made.numbers))[:, None] * phases).sum(axis=0)


def test_the_first_layers_relax(tmp_path):
    before = write_layers(tmp_path / "layers.parquet", [29, 79, 29])
    settings = {"relaxed": 2, "max_force": 0.02}
    table, rejected, record = run(relax_layers, tmp_path, settings)
    assert table["relaxed"].tolist() == [True, True, False]
    pd.testing.assert_series_equal(table.iloc[2].drop("relaxed"), before.iloc[2])
    assert rejected.empty
    assert record["facts"]["relaxed"] == 2
    row = table.iloc[0]
    made = Crystal.from_json(row["structure"])
    atoms = to_atoms(made, calculator("emt"))
    assert np.abs(atoms.get_forces()).max() < 0.02
    assert np.abs(atoms.get_stress()[[0, 1, 5]]).max() * made.volume < 0.02
    assert row["layer_group"] == 72
    assert 2.3 < row["a"] < 2.65
    assert np.allclose(made.cell[0], [row["a"], 0, 0], rtol=0, atol=1e-9)
    assert np.allclose(made.cell[2], [0, 0, 17], rtol=0, atol=1e-9)
    constants = lattice_columns(made.cell)
    assert row[list(constants)].to_dict() == pytest.approx(constants)
    heights = made.positions[:, 2] * 17
    assert row["thickness"] == pytest.approx(np.ptp(heights))
    assert abs(row["thickness"] - 2.04) > 1e-3
    assert heights.mean() == pytest.approx(8.5, abs=1e-6)


def test_a_relaxed_layer_has_a_along_x(tmp_path):
    """Shear in the plane turns both axes of an oblique cell."""
    table = write_layers(tmp_path / "layers.parquet", [29])
    skewed = HEXAGONAL + np.array([[0, 0, 0], [0.7, 0, 0], [0, 0, 0]])
    oblique = Crystal(skewed, BILAYER, np.full(2, 29))
    table["structure"] = oblique.to_json()
    table.to_parquet(tmp_path / "layers.parquet")
    made, _, _ = run(relax_layers, tmp_path, {"relaxed": 1, "max_force": 0.1})
    cell = Crystal.from_json(made["structure"][0]).cell
    assert np.allclose(cell[0], [made["a"][0], 0, 0], rtol=0, atol=1e-9)
    assert abs(made["gamma"][0] - lattice_columns(oblique.cell)["gamma"]) > 1


def test_layers_that_do_not_relax_are_set_aside(tmp_path):
    write_layers(tmp_path / "layers.parquet", [29, 92, 92])
    table, rejected, _ = run(relax_layers, tmp_path, {"relaxed": 2, "max_force": 0.02})
    assert table["material_id"].tolist() == ["m0", "m2"]
    assert table["relaxed"].tolist() == [True, False]
    assert rejected["material_id"].tolist() == ["m1"]
    assert rejected["reason"].tolist() == ["relaxation_failed"]


def test_none_to_relax_copies(tmp_path):
    before = write_layers(tmp_path / "layers.parquet", [92, 29])
    table, rejected, _ = run(relax_layers, tmp_path, {"relaxed": 0, "max_force": 0.02})
    assert not table["relaxed"].any()
    pd.testing.assert_frame_equal(table.drop(columns="relaxed"), before)
    assert rejected.empty


def test_gaussian_displacements(tmp_path):
    """Their variance is B / (8 pi^2) along each axis, and each layer has its own."""
    before = write_layers(tmp_path / "layers.parquet", [29] * 60)
    table, _, _ = run(perturb_layers, tmp_path, GAUSSIAN)
    assert table["material_id"].tolist() == before["material_id"].tolist()
    assert [list(cells) for cells in table["cells"]] == [[3, 2]] * 60
    assert json.loads(table["drawn"][0]) == {"method": "gaussian", "debye_waller": 0.6}
    still = repeat(crystal(), (3, 2, 1))
    made = [Crystal.from_json(text) for text in table["structure"]]
    assert all(np.allclose(one.cell, still.cell) for one in made)
    moved = np.stack([(one.positions - still.positions) @ still.cell for one in made])
    assert moved.shape == (60, 12, 3)
    # 720 draws for each axis: their variance is known to 5 %.
    assert moved.var(axis=(0, 1)) == pytest.approx(0.6 / (8 * np.pi**2), rel=0.25)
    assert len(np.unique(moved[:, 0, 0])) == 60


def test_draws_belong_to_the_layer_and_the_seed(tmp_path):
    write_layers(tmp_path / "layers.parquet", [29] * 6)
    many, _, _ = run(perturb_layers, tmp_path, GAUSSIAN)
    other, _, _ = run(perturb_layers, tmp_path, GAUSSIAN, seed=1)
    write_layers(tmp_path / "layers.parquet", [29] * 3)
    few, _, _ = run(perturb_layers, tmp_path, GAUSSIAN)
    assert many["structure"][:3].tolist() == few["structure"].tolist()
    assert (many["structure"] != other["structure"]).all()


def test_folded_cells_scatter_as_the_supercell():
    """At the reflections of one cell, which are (3 h, 2 k) of the supercell."""
    rng = np.random.default_rng(0)
    supercell = repeat(crystal(), (3, 2, 1))
    shaken = Crystal(
        supercell.cell,
        supercell.positions + 0.02 * rng.standard_normal((12, 3)),
        supercell.numbers,
    )
    made = Crystal.from_json(folded(shaken, (3, 2)).to_json())
    assert np.allclose(made.cell, HEXAGONAL)
    assert np.allclose(made.occupancies, 1 / 6)
    indices = np.array([[0, 0], [1, 0], [1, 1], [2, -1], [-3, 1]])
    whole = structure_factors(shaken, indices * [3, 2])
    assert np.allclose(structure_factors(made, indices), whole / 6)


@pytest.mark.parametrize("fold", [True, False])
def test_dynamics(tmp_path, fold):
    write_layers(tmp_path / "layers.parquet", [29, 47, 92])
    settings = {**DYNAMICS, "fold": fold}
    table, rejected, _ = run(perturb_layers, tmp_path, settings, name="one")
    assert table["material_id"].tolist() == ["m0", "m1"]
    assert rejected["material_id"].tolist() == ["m2"]
    assert rejected["reason"].tolist() == ["perturbation_failed"]
    made = Crystal.from_json(table["structure"][0])
    still = repeat(crystal(), (2, 2, 1))
    scale = np.array([2, 2, 1] if fold else [1, 1, 1])
    assert np.allclose(made.cell * scale[:, None], still.cell)
    moved = (made.positions / scale - still.positions) @ still.cell
    assert 0.01 < np.sqrt((moved**2).mean()) < 0.5
    assert np.allclose(moved.mean(axis=0), 0, atol=1e-6)
    assert made.occupancies.sum() == pytest.approx(2 if fold else 1)
    assert json.loads(table["drawn"][0]) == {"method": "dynamics", "temperature": 300.0}


def test_same_bytes_from_any_number_of_processes(tmp_path):
    write_layers(tmp_path / "layers.parquet", [29, 47, 92, 79])
    for stage, settings in (
        (perturb_layers, DYNAMICS),
        (relax_layers, {"relaxed": 3, "max_force": 0.02}),
    ):
        run(stage, tmp_path, settings, "one")
        run(stage, tmp_path, settings, "two", threads=2)
        for end in (".parquet", ".rejected.parquet"):
            assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"two{end}").read_bytes()


def test_nothing_left_and_no_calculator_are_said(tmp_path):
    write_layers(tmp_path / "layers.parquet", [92, 92])
    with pytest.raises(InputError, match=r"no layer of .*layers\.parquet is left, such as m0: "):
        run(perturb_layers, tmp_path, DYNAMICS)
    with pytest.raises(InputError, match=r"no layer of .*layers\.parquet is left, such as m0: "):
        run(relax_layers, tmp_path, {"relaxed": 2, "max_force": 0.02})
    with pytest.raises(InputError, match="calculator abacus cannot be had"):
        run(relax_layers, tmp_path, {"relaxed": 1, "max_force": 0.02}, calculator="abacus")
    assert len(run(perturb_layers, tmp_path, GAUSSIAN, calculator="abacus")[0]) == 2


STEPS = [{"strain": {"limit": 0.03, "in_plane": True}}, {"thermal": {"debye_waller": 0.5}}]


def distractors(folder, layers, seed=7, steps=STEPS, count=3):
    layers.to_parquet(folder / "layers.parquet")
    paths = [folder / f"{name}" for name in ("layers.parquet", "distractors.parquet", "d.run.json")]
    make_distractors(*paths, {"count": count, "steps": steps}, seed)
    return pd.read_parquet(paths[1])


def some_layers(folder, split):
    return write_layers(folder / "layers.parquet", [29] * len(split)).assign(split=split)


def test_distractors_are_nearly_the_crystals_of_the_test(tmp_path):
    layers = some_layers(tmp_path, ["train", "test", "validation", "test"])
    table = distractors(tmp_path, layers)
    assert table["material_id"].tolist() == ["m1~0", "m1~1", "m1~2", "m3~0", "m3~1", "m3~2"]
    assert table["structure"].nunique() == 6
    assert read_record(tmp_path / "d.run.json")["facts"]["distractors"] == 6
    for row in table.itertuples():
        made, drawn = Crystal.from_json(row.structure), json.loads(row.drawn)
        assert made.numbers.tolist() == [29, 29]
        assert len(drawn) == len(STEPS)
        a, b, c = made.cell
        assert np.allclose([a[1], a[2], b[2], *c], [0, 0, 0, 0, 0, 17], rtol=0, atol=1e-9)
        lengths = np.linalg.norm(made.cell[:2], axis=1)
        # a strain with a shear component changes lengths in second order besides
        assert np.all(np.abs(lengths / 2.7 - 1) < 0.05)
        assert not np.allclose(lengths, 2.7, rtol=0, atol=1e-4)
        moved = (made.positions - BILAYER) @ made.cell
        assert 0.005 < np.sqrt((moved**2).mean()) < 0.4


def test_distractors_belong_to_their_crystal_and_the_seed(tmp_path):
    layers = some_layers(tmp_path, ["train", "test", "test"])
    made = distractors(tmp_path, layers)
    alone = distractors(tmp_path, layers[2:])
    assert alone["structure"].tolist() == made["structure"][3:].tolist()
    more = distractors(tmp_path, layers, count=4)
    assert set(made["structure"]) < set(more["structure"])
    other = distractors(tmp_path, layers, seed=8)
    assert not set(made["structure"]) & set(other["structure"])


def test_distractors_need_a_test_and_steps_that_exist(tmp_path):
    layers = some_layers(tmp_path, ["train", "validation"])
    with pytest.raises(InputError, match=r"no layer to test with: raise structure_2d.layers.test"):
        distractors(tmp_path, layers)
    with pytest.raises(InputError, match="melt"):
        distractors(tmp_path, layers.assign(split="test"), steps=[{"melt": {}}])
