"""The stages that augment whole data sets: same bytes from any shares, failures set aside."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_spot_perturbations import with_direct_beams
from test_store import assert_equal

from diffractory.augment import stage
from diffractory.augment.spot_steps import augment_spots
from diffractory.augment.stage import augment_patterns, augment_structures
from diffractory.errors import InputError
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.stage import simulate_material
from diffractory.store import Patterns, read_patterns, write_patterns
from diffractory.store.provenance import read_record

CUBIC = np.array(
    [np.eye(3), -np.eye(3), [[0, 1, 0], [1, 0, 0], [0, 0, 1]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]]
)
STEPS = [
    {"repeat": [2, 2, 1]},
    {"vacancies": {"fraction": 0.25}},
    {"thermal": {"debye_waller": [0.1, 0.6]}},
]


def write_cleaned(path: Path, elements: list[int]) -> pd.DataFrame:
    positions = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    table = pd.DataFrame({
        "material_id": [f"m{k}" for k in range(len(elements))],
        "space_group": 225,
        "structure": [
            Crystal((3.7 + 0.01 * k) * np.eye(3), positions, np.full(4, z)).to_json()
            for k, z in enumerate(elements)
        ],
        "laue_rotations": [CUBIC.astype(np.int64).ravel()] * len(elements),
    })  # fmt: skip
    table.to_parquet(path)
    return table


def run(folder: Path, steps, name="augmented", calculator="emt", limit=0.5, threads=1, seed=0):
    paths = [folder / f"{name}{end}" for end in (".parquet", ".rejected.parquet", ".run.json")]
    augment_structures(folder / "cleaned.parquet", *paths, steps, calculator, limit, seed, threads)
    return pd.read_parquet(paths[0]), pd.read_parquet(paths[1]), read_record(paths[2])


def test_structures_are_augmented_and_their_labels_stay(tmp_path):
    before = write_cleaned(tmp_path / "cleaned.parquet", [29] * 9)
    table, rejected, record = run(tmp_path, STEPS)
    assert table["material_id"].tolist() == before["material_id"].tolist()
    assert (table["space_group"] == 225).all()
    assert rejected.empty
    assert record["facts"]["accepted"] == 9
    assert table["augmentation"].nunique() == 9
    for old, new, drawn in zip(
        before["structure"], table["structure"], table["augmentation"], strict=True
    ):
        crystal, was = Crystal.from_json(new), Crystal.from_json(old)
        assert len(crystal.numbers) == 12
        assert np.allclose(crystal.cell, np.diag([2, 2, 1]) @ was.cell)
        assert 0.1 <= json.loads(drawn)[2]["debye_waller"] <= 0.6
    # A swap of x and y maps a cell of 2 x 2 x 1 onto itself, and a turn about 111 does not.
    laue = np.stack(table["laue_rotations"]).reshape(9, -1, 3, 3)
    assert np.array_equal(laue[0], CUBIC[:3])


def test_augmented_structures_can_be_simulated(tmp_path):
    write_cleaned(tmp_path / "cleaned.parquet", [29])
    table, *_ = run(tmp_path, STEPS)
    settings = {
        "debye_waller": 0.3, "orientations": "zone_axes", "count": 3, "energies": [200e3],
        "g_max": 1.0, "max_excitation_error": 0.02, "max_beams": 2000, "memory": 1.0,
        "foil_tilt": [0.0, 0.0], "precession_angle": 0.0, "precession_steps": 1,
        "engine": "kinematic", "thicknesses": [100.0], "parametrization": "lobato",
        "absorption": 0.0, "device": "cpu", "min_intensity": 1e-6,
    }  # fmt: skip
    (patterns,), rejected = simulate_material(table.iloc[0].to_dict(), settings, 0)
    assert not rejected
    assert len(patterns) == 3
    assert np.diff(patterns.offsets).min() > 10


def test_any_number_of_processes_gives_the_same_bytes(tmp_path):
    write_cleaned(tmp_path / "cleaned.parquet", [29, 13, 47, 28, 79])
    steps = [{"relax": {"max_force": 0.05}}, *STEPS, {"strain": {"limit": 0.05}}]
    steps.insert(2, {"phonon": {"q_points": [[0.5, 0, 0]], "amplitude": 0.1}})
    run(tmp_path, steps, "one")
    run(tmp_path, steps, "two", threads=2)
    one, two, other = (tmp_path / f"{name}.parquet" for name in ("one", "two", "other"))
    assert one.read_bytes() == two.read_bytes()
    run(tmp_path, steps, "other", seed=1)
    assert one.read_bytes() != other.read_bytes()


def test_what_fails_is_set_aside_with_its_reason(tmp_path):
    # EMT knows no iron.
    write_cleaned(tmp_path / "cleaned.parquet", [29, 26, 13])
    table, rejected, record = run(tmp_path, [{"relax": {"max_force": 0.05}}])
    assert table["material_id"].tolist() == ["m0", "m2"]
    assert rejected["material_id"].tolist() == ["m1"]
    assert rejected["reason"].tolist() == ["augmentation_failed"]
    assert "Fe" in rejected["detail"][0]
    assert record["facts"]["rejected"] == {"augmentation_failed": 1}
    with pytest.raises(InputError, match=r"1 of the 3 structures .* such as m1"):
        run(tmp_path, [{"relax": {"max_force": 0.05}}], limit=0.1)
    with pytest.raises(InputError, match="3 of the 3"):
        run(tmp_path, [{"vacancies": {"fraction": 1.0}}], limit=1.0)


def test_wrong_configurations_stop_before_any_work(tmp_path):
    write_cleaned(tmp_path / "cleaned.parquet", [29])
    with pytest.raises(InputError, match="no step"):
        run(tmp_path, [{"vacancy": {}}])
    with pytest.raises(InputError, match="calculator nope"):
        run(tmp_path, [{"relax": {"max_force": 0.1}}], calculator="nope")
    assert not (tmp_path / "augmented.parquet").exists()


@pytest.mark.parametrize("block", [1, 4, 50_000])
def test_pattern_stores_are_augmented_the_same_in_any_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(stage, "BLOCK", block)
    patterns = with_direct_beams([5, 3, 0, 8, 6, 7, 4])
    names = np.array(["b", "b", "a", "a", "a", "c", "d"], dtype=object)
    patterns = Patterns(**{**patterns.__dict__, "material_id": names})
    write_patterns(tmp_path / "store", [patterns])
    steps = [{"missing_spots": {"fraction": [0.0, 0.6]}}, {"poisson": {"dose": 1000}}]
    outputs = [tmp_path / "made", tmp_path / "made.draws.parquet", tmp_path / "made.run.json"]
    augment_patterns(tmp_path / "store", *outputs, steps, 7)
    expected, drawn = augment_spots(patterns, steps, 7)
    assert_equal(read_patterns(outputs[0]), expected)
    table = pd.read_parquet(outputs[1])
    assert table["pattern"].tolist() == list(range(7))
    assert np.array_equal(table["0.missing_spots.fraction"], drawn["0.missing_spots.fraction"])
    assert read_record(outputs[2])["facts"]["patterns"] == 7
    assert {path.name for path in tmp_path.iterdir()} == {"store", *(path.name for path in outputs)}


def test_an_empty_store_stays_empty(tmp_path):
    write_patterns(tmp_path / "store", [Patterns.empty()])
    outputs = [tmp_path / "made", tmp_path / "draws.parquet", tmp_path / "made.run.json"]
    augment_patterns(tmp_path / "store", *outputs, [{"scale": {"error": 0.1}}], 0)
    assert len(read_patterns(outputs[0])) == 0
