"""Stages that judge samples: hand-worked rows, NaN counted, same bytes from any processes."""

import numpy as np
import pandas as pd
import pytest

from diffractory.evaluation.generation import (
    read_dataset,
    read_evaluation,
)
from diffractory.evaluation.generation_stages import (
    cells_of,
    evaluate_generation,
    evaluate_reconstruction,
    fingerprint_crystals,
    reduced_formula,
    summarize_crystals,
)
from diffractory.store import InputError
from diffractory.store.provenance import read_record
from diffractory.structures.reading import Cell

SETTINGS = {
    "tolerances": {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0},
    "seconds_per_pair": 10.0,
    "properties": 1000,
}
SITES = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
SR, TI, O, BA, ZR, NA, CL = 38, 22, 8, 56, 40, 11, 17


def perovskite(a, x, y, z=O):
    """Return the cubic perovskite with lattice constant a (angstrom) of X, Y and three Z."""
    return Cell(a * np.eye(3), SITES, np.array([x, y, z, z, z], dtype=np.intc))


SRTIO3, BATIO3, BAZRO3 = perovskite(3.9, SR, TI), perovskite(4.0, BA, TI), perovskite(4.2, BA, ZR)
SALT = Cell(
    2.8 * (np.ones((3, 3)) - np.eye(3)),
    np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
    np.array([NA, CL], dtype=np.intc),
)
KNOWN = {
    "train_1": (SRTIO3, "train", "train"),
    "train_2": (SALT, "train", "test"),
    "test_1": (BATIO3, "test", "train"),
    "test_2": (BAZRO3, "test", "test"),
    "twin": (SRTIO3, "test", ""),
    "other": (BATIO3, "validation", "validation"),
}


def columns(cells):
    return {
        "lattice": [list(cell.lattice.ravel()) for cell in cells],
        "positions": [list(cell.positions.ravel()) for cell in cells],
        "numbers": [list(cell.numbers) for cell in cells],
    }


def write_crystals(path):
    cells, split, disjoint = zip(*KNOWN.values(), strict=True)
    formulas = [reduced_formula(cell) for cell in cells]
    pd.DataFrame(
        {
            "material_id": list(KNOWN),
            "source": "test",
            "formula": formulas,
            "n_sites": [len(cell.numbers) for cell in cells],
            "space_group": 221,
            "prototype": [f"p{len(cell.numbers)}" for cell in cells],
            "duplicate_group": formulas,
            "split": split,
            "disjoint_split": disjoint,
            **columns(cells),
        }
    ).to_parquet(path)
    return path


def write_samples(path, cells, task, sampler="", material_ids=None):
    pd.DataFrame(
        {
            "task": task,
            "sampler": sampler,
            "item": np.arange(len(cells)),
            "material_id": material_ids or "",
            **columns(cells),
            "steps": 10,
        }
    ).to_parquet(path)
    return path


def with_nan(cell):
    return Cell(cell.lattice, np.where(cell.positions > 0.4, np.nan, 0), cell.numbers)


def sheared(cell, degrees):
    """Return the crystal with another angle gamma than 90 degree."""
    turned = np.array([np.cos(np.radians(90 - degrees)), np.sin(np.radians(90 - degrees))])
    lattice = cell.lattice.copy()
    lattice[1, :2] = lattice[1, 1] * turned[::-1]
    return Cell(lattice, cell.positions, cell.numbers)


def shifted(cell, distance):
    """Return the crystal with its first atom moved along x by a distance, angstrom."""
    step = np.zeros_like(cell.positions)
    step[0, 0] = distance / cell.lattice[0, 0]
    return Cell(cell.lattice, cell.positions + step, cell.numbers)


def doubled(cell):
    shifts = np.repeat([[0, 0, 0], [1, 0, 0]], len(cell.positions), axis=0)
    positions = (np.tile(cell.positions, (2, 1)) + shifts) / [2, 1, 1]
    return Cell(cell.lattice * [[2], [1], [1]], positions, np.tile(cell.numbers, 2))


def reconstruct(folder, made, ids, threads=1, name="made"):
    samples = write_samples(folder / "samples.parquet", made, "reconstruction", "", ids)
    crystals = write_crystals(folder / "crystals.parquet")
    evaluation, record = folder / f"{name}.parquet", folder / f"{name}.run.json"
    evaluate_reconstruction(samples, crystals, evaluation, record, SETTINGS, 0, threads)
    return read_evaluation(evaluation, "reconstructed"), read_record(record)["facts"]


def test_reconstructions_are_compared_with_their_truth(tmp_path):
    made = {
        "exact": (SRTIO3, "train_1"),
        "larger": (perovskite(5.0, SR, TI), "train_1"),
        "shifted": (shifted(SRTIO3, 0.4), "train_1"),
        "sheared": (sheared(SRTIO3, 97.0), "train_1"),
        "supercell": (doubled(SALT), "train_2"),
        "other element": (BATIO3, "train_1"),
        "nan": (with_nan(BATIO3), "test_1"),
        "no element": (Cell(BATIO3.lattice, SITES, np.zeros(5, dtype=np.intc)), "test_1"),
        "flat": (Cell(BATIO3.lattice * [[1], [1], [0]], SITES, BATIO3.numbers), "test_1"),
    }
    cells, ids = zip(*made.values(), strict=True)
    table, facts = reconstruct(tmp_path, cells, list(ids))
    table.index = list(made)
    assert table["item"].tolist() == list(range(9))
    assert table["material_id"].tolist() == list(ids)
    assert table["formula"].tolist() == ["SrTiO3"] * 4 + ["NaCl", "SrTiO3"] + ["BaTiO3"] * 3
    assert table["n_sites"].tolist() == [5] * 4 + [2] + [5] * 4
    assert table.index[table["matched"]].tolist() == list(made)[:5]
    assert table.index[~table["matched_default"]].tolist() == ["sheared", *list(made)[5:]]
    assert table.index[~table["same_n_sites"]].tolist() == ["supercell"]
    assert table.index[~table["same_composition"]].tolist() == ["other element", "no element"]
    same = ["exact", "larger", "supercell", "other element", "no element"]
    assert table.index[table["same_space_group"]].tolist() == same
    assert table.index[~table["valid"]].tolist() == ["nan", "no element", "flat"]
    # One of five atoms moved: the mean moves too, and the scale is the cube root of V / N.
    expected = 0.4 * np.sqrt(0.8 / 5) / (3.9 / np.cbrt(5))
    assert table.loc["shifted", "rms"] == pytest.approx(expected, rel=1e-3)
    assert table.loc[["exact", "larger", "sheared", "supercell"], "rms"].max() < 1e-3
    assert not table["timed_out"].any()
    assert facts == {"crystals": 9, "finite": 8, "timed_out": 0}


def test_reconstructions_may_be_compared_by_any_number_of_processes(tmp_path):
    cells = [shifted(SRTIO3, d) for d in (0, 0.1, 0.2, 0.3)] + [with_nan(SRTIO3)]
    for threads, name in ((1, "one"), (2, "two")):
        reconstruct(tmp_path, cells, ["train_1"] * 5, threads, name)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_crystals_and_samples_must_belong_together(tmp_path):
    with pytest.raises(InputError, match="reconstruction of elsewhere"):
        reconstruct(tmp_path, [SRTIO3], ["elsewhere"])
    assert not (tmp_path / "made.parquet").exists()


GENERATED = {
    "of the test": BATIO3,
    "of the training": SRTIO3,
    "again": perovskite(4.01, BA, TI),
    "new": perovskite(4.1, SR, ZR),
    "not neutral": perovskite(4.1, SR, SR),
    "overlapping": Cell(3.9 * np.eye(3), SITES * 1e-3, SRTIO3.numbers),
    "nan": with_nan(BATIO3),
    "no cell": Cell(np.full((3, 3), np.nan), SITES, BATIO3.numbers),
}


@pytest.fixture(scope="module")
def fingerprinted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fingerprints")
    crystals = write_crystals(folder / "crystals.parquet")
    found, record = folder / "fingerprints.parquet", folder / "fingerprints.run.json"
    fingerprint_crystals(crystals, found, record, 0, 1)
    return crystals, found


def judge(folder, fingerprinted, samples, split="split", threads=1, seed=0, **changes):
    outputs = [folder / f"made.{end}" for end in ("generated.parquet", "reference.parquet")]
    record = folder / "made.generated.run.json"
    settings = SETTINGS | changes
    evaluate_generation(samples, *fingerprinted, *outputs, record, settings, split, seed, threads)
    kinds = "generated", "reference"
    generated, reference = map(read_evaluation, outputs, kinds)
    return generated, reference, read_record(record)["facts"]


def test_fingerprints_are_of_the_test_crystals_of_either_split(fingerprinted):
    table = pd.read_parquet(fingerprinted[1])
    assert table["material_id"].tolist() == ["train_2", "test_1", "test_2", "twin"]
    assert table["n_elements"].tolist() == [2, 3, 3, 3]
    assert {len(row) for row in table["structure"]} == {61}
    assert {len(row) for row in table["composition"]} == {132}
    assert (table["formation_energy"] < -1).all()
    # Of four formula units of NaCl in a cube of 5.6 angstrom.
    density = 4 * (22.990 + 35.453) * 1.66054 / 5.6**3
    assert table["density"][0] == pytest.approx(density, rel=1e-4)


def test_generated_crystals_are_judged(tmp_path, fingerprinted):
    samples = write_samples(tmp_path / "samples.parquet", list(GENERATED.values()), "generation")
    table, near, facts = judge(tmp_path, fingerprinted, samples)
    table.index = list(GENERATED)

    def where(name):
        return table.index[table[name]].tolist()

    names = list(GENERATED)
    assert where("finite") == names[:6]
    assert where("valid_structure") == names[:5]
    assert where("valid_composition") == [n for n in names if n != "not neutral"]
    # A copy of a twin, or of a crystal with another lattice constant, is not new.
    assert where("for_properties") == names[:4]
    assert {"of the test", "of the training", "new"} <= set(where("unique"))
    assert "again" not in where("unique")
    assert {"of the test", "again", "new"} <= set(where("novel"))
    assert "of the training" not in where("novel")
    without = table.index[~table["has_fingerprint"]]
    assert {"nan", "no cell"} <= set(without)
    assert table.loc[without, ["structure_distance", "composition_distance"]].isna().all(axis=None)
    assert table.loc["of the test", "structure_distance"] == pytest.approx(0, abs=1e-6)
    assert table.loc["of the test", "composition_distance"] == pytest.approx(0, abs=1e-6)
    assert table["formation_energy"].notna().tolist() == table["for_properties"].tolist()
    assert table.loc["nan", "n_elements"] == 3
    assert table.loc["again", "density"] / table.loc["of the test", "density"] == pytest.approx(
        (4 / 4.01) ** 3
    )
    assert near["material_id"].tolist() == ["test_1", "test_2", "twin"]
    assert near["structure_distance"].iloc[[0, 2]].to_numpy() == pytest.approx(0, abs=1e-6)
    assert near["composition_distance"].iloc[1] > 1
    assert (facts["generated"], facts["train"], facts["test"]) == (8, 2, 3)
    assert (facts["finite"], facts["valid_structure"]) == (6, 5)


def test_a_set_of_nothing_but_nan_covers_nothing(tmp_path, fingerprinted):
    samples = write_samples(tmp_path / "samples.parquet", [GENERATED["no cell"]] * 3, "generation")
    table, near, facts = judge(tmp_path, fingerprinted, samples)
    assert not table[["finite", "valid_structure", "has_fingerprint", "unique", "novel"]].any(
        axis=None
    )
    assert near[["structure_distance", "composition_distance"]].isna().all(axis=None)
    assert facts["has_fingerprint"] == 0


def test_samplers_are_sets_of_their_own(tmp_path, fingerprinted):
    parts = [tmp_path / "own.parquet", tmp_path / "few.parquet", tmp_path / "other.parquet"]
    write_samples(parts[0], [BATIO3, SRTIO3], "generation")
    write_samples(parts[1], [BATIO3], "generation", "steps_20")
    write_samples(parts[2], [SALT], "reconstruction")
    samples = tmp_path / "samples.parquet"
    pd.concat([pd.read_parquet(part) for part in parts]).to_parquet(samples)
    table, near, _ = judge(tmp_path, fingerprinted, samples, split="disjoint_split")
    assert table["sampler"].tolist() == ["", "", "steps_20"]
    assert table["unique"].all()
    # By this split BaTiO3 is a training crystal.
    assert table["novel"].tolist() == [False, False, False]
    assert near["sampler"].tolist() == ["", "", "steps_20", "steps_20"]
    assert near["material_id"].tolist() == ["train_2", "test_2"] * 2


def test_crystals_for_properties_are_drawn_by_the_seed(tmp_path, fingerprinted):
    cells = [perovskite(3.9 + 0.01 * k, SR, TI) for k in range(12)]
    samples = write_samples(tmp_path / "samples.parquet", cells, "generation")
    drawn, written = [], []
    for threads, seed in ((1, 0), (2, 0), (1, 1)):
        table, _, _ = judge(
            tmp_path, fingerprinted, samples, threads=threads, seed=seed, properties=5
        )
        drawn.append(np.flatnonzero(table["for_properties"]).tolist())
        written.append((tmp_path / "made.generated.parquet").read_bytes())
    assert len(drawn[0]) == 5
    assert written[0] == written[1]
    assert drawn[0] != drawn[2]


def test_nothing_generated_is_said(tmp_path, fingerprinted):
    samples = write_samples(tmp_path / "samples.parquet", [BATIO3], "reconstruction")
    with pytest.raises(InputError, match="no generated crystal"):
        judge(tmp_path, fingerprinted, samples)


def test_data_set_is_counted(tmp_path):
    crystals = write_crystals(tmp_path / "crystals.parquet")
    summarize_crystals(crystals, tmp_path / "d.parquet", tmp_path / "d.run.json", 0)
    table = read_dataset(tmp_path / "d.parquet").set_index(["split_kind", "split"])
    test = table.loc[("split", "test")]
    assert test["crystals"] == 3
    assert test["duplicate_groups"] == 3
    assert test["with_twin_in_train"] == 1
    assert test["formulas"] == 3
    assert test["elements"] == 5  # O, Ti, Sr, Zr, Ba
    train = table.loc[("split", "train")]
    assert (train["with_twin_in_train"], train["mean_sites"], train["max_sites"]) == (0, 3.5, 5)
    assert table.loc[("disjoint_split", "validation"), "with_twin_in_train"] == 1
    assert table.loc[("disjoint_split", ""), "crystals"] == 1
    assert table.groupby("split_kind")["crystals"].sum().tolist() == [6, 6]


def test_cells_whose_every_number_is_nan_can_be_read(tmp_path):
    path = write_samples(tmp_path / "s.parquet", [GENERATED["no cell"]], "generation")
    (cell,) = cells_of(pd.read_parquet(path))
    assert np.isnan(cell.lattice).all()
    assert np.array_equal(cell.positions, SITES)
    assert [reduced_formula(c) for c in (SALT, doubled(SALT), BAZRO3)] == ["NaCl", "NaCl", "BaZrO3"]
    assert reduced_formula(Cell(SALT.lattice, SALT.positions, np.array([0, 300]))) == ""
