"""The simulation stage: shards, settings, rejections, and what the store says of each pattern."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pymatgen.core import Lattice, Structure
from test_config import DEFAULTS

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.propagation import pattern_memory
from diffractory.simulate.scattering import wavelength
from diffractory.simulate.stage import collect_patterns, simulate_patterns
from diffractory.store import InputError, read_patterns
from diffractory.store.provenance import sha256
from diffractory.structures.cleaning import Labelled, label_structure

CONFIG = yaml.safe_load(DEFAULTS.read_text())
SETTINGS = {k: v for k, v in CONFIG["simulate"].items() if k != "shards"} | {"count": 5}
CRYSTALS = {
    "halite": Structure.from_spacegroup(
        225, Lattice.cubic(5.64), ["Na", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)]
    ),
    "rutile": Structure.from_spacegroup(
        136, Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [(0, 0, 0), (0.3053, 0.3053, 0)]
    ),
    "wurtzite": Structure.from_spacegroup(
        186, Lattice.hexagonal(3.19, 5.19), ["Ga", "N"], [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.376)]
    ),
    "copper": Structure.from_spacegroup(225, Lattice.cubic(3.61), ["Cu"], [(0, 0, 0)]),
    "triclinic": Structure(
        Lattice.from_parameters(4.1, 4.7, 5.3, 82, 97, 105),
        ["Cu", "Se", "O"],
        [(0.05, 0.1, 0.2), (0.4, 0.55, 0.6), (0.75, 0.2, 0.85)],
    ),
}


@pytest.fixture(scope="module")
def structures(tmp_path_factory):
    rows = []
    for name, structure in CRYSTALS.items():
        content = json.dumps(structure.as_dict()).encode()
        labelled = label_structure(CONFIG["structures"], "json", content)
        assert isinstance(labelled, Labelled)
        rows.append({"material_id": name, **labelled.row})
    path = tmp_path_factory.mktemp("structures") / "structures.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def simulate(structures, folder, shards=1, fraction=0.5, threads=2, **changes):
    """Run both stages; return the folder's store."""
    settings = SETTINGS | changes
    for shard in range(shards):
        simulate_patterns(
            structures,
            folder / f"{shard}.zarr",
            folder / f"{shard}.parquet",
            folder / f"{shard}.json",
            shard,
            shards,
            settings,
            seed=1,
            threads=threads,
        )
    collect_patterns(
        [folder / f"{shard}.zarr" for shard in range(shards)],
        [folder / f"{shard}.parquet" for shard in range(shards)],
        [folder / f"{shard}.json" for shard in range(shards)],
        folder / "store",
        folder / "rejected.parquet",
        folder / "simulation.json",
        folder / "run.json",
        settings,
        fraction,
        seed=1,
    )
    return folder / "store"


@pytest.mark.parametrize("shards", [4, 7])
def test_store_is_the_same_bytes_for_any_number_of_shards_and_threads(structures, tmp_path, shards):
    (tmp_path / "one").mkdir()
    (tmp_path / "more").mkdir()
    one = simulate(structures, tmp_path / "one", threads=1)
    more = simulate(structures, tmp_path / "more", shards=shards)
    assert sha256(one) == sha256(more)
    records = [json.loads((tmp_path / f"more/{i}.json").read_text()) for i in range(shards)]
    whole = json.loads((tmp_path / "more/simulation.json").read_text())
    assert whole["seconds"] == pytest.approx(sum(record["seconds"] for record in records))
    assert whole["facts"] == {"shards": shards, "accepted": 25, "rejected": {}}


def test_every_pattern_says_what_it_is_of(structures, tmp_path):
    changes = {"energies": [2e5, 3e5], "thicknesses": [50.0, 200.0]}
    patterns = read_patterns(simulate(structures, tmp_path, **changes))
    assert len(patterns) == 5 * 5 * 2 * 2
    assert patterns.qx.dtype == np.float32
    table = pd.DataFrame(
        {
            "material": patterns.material_id,
            "energy": patterns.energy,
            "thickness": patterns.thickness,
            "axis": [tuple(axis) for axis in patterns.zone_axis],
        }
    )
    assert not table.duplicated().any()
    assert (table.groupby("material").size() == 20).all()
    assert set(table["energy"]) == {2e5, 3e5}
    assert set(table["thickness"]) == {50, 200}


def test_spots_lie_where_their_indices_say(structures, tmp_path):
    """q = R g(hkl), near the Ewald sphere, and the zone axis points along the beam."""
    patterns = read_patterns(simulate(structures, tmp_path))
    rows = pd.read_parquet(structures).set_index("material_id")
    for p in range(len(patterns)):
        crystal = Crystal.from_json(rows.loc[patterns.material_id[p], "structure"])
        spots = slice(patterns.offsets[p], patterns.offsets[p + 1])
        g = patterns.hkl[spots] @ crystal.reciprocal @ patterns.orientation[p].T
        q = np.stack([patterns.qx[spots], patterns.qy[spots]], axis=1)
        np.testing.assert_allclose(g[:, :2], q, atol=1e-6)
        s = -g[:, 2] - wavelength(2e5) / 2 * (g**2).sum(axis=1)
        assert np.abs(s).max() <= SETTINGS["max_excitation_error"] + 1e-6
        axis = patterns.orientation[p] @ (patterns.zone_axis[p] @ crystal.cell)
        np.testing.assert_allclose(axis[:2], 0, atol=1e-9)
        assert axis[2] > 0
        assert patterns.intensity[spots].min() >= SETTINGS["min_intensity"]


def test_random_orientations_have_no_zone_axis(structures, tmp_path):
    patterns = read_patterns(simulate(structures, tmp_path, orientations="random"))
    assert not patterns.zone_axis.any()
    assert len(np.unique(patterns.orientation.round(6), axis=0)) == 25


def test_kinematic_engine_writes_the_same_form(structures, tmp_path):
    patterns = read_patterns(simulate(structures, tmp_path, engine="kinematic"))
    assert len(patterns) == 25
    direct = (patterns.hkl == 0).all(axis=1)
    assert (patterns.intensity[direct] == 1).all()


def test_patterns_of_a_material_do_not_depend_on_the_others(structures, tmp_path):
    alone = tmp_path / "alone.parquet"
    rows = pd.read_parquet(structures)
    rows[rows["material_id"] == "wurtzite"].to_parquet(alone)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    together = read_patterns(simulate(structures, tmp_path / "a"))
    single = read_patterns(simulate(alone, tmp_path / "b"))
    picked = together.select(np.flatnonzero(together.material_id == "wurtzite"))
    assert np.array_equal(picked.qx, single.qx)
    assert np.array_equal(picked.intensity, single.intensity)


def test_too_many_beams_are_rejected_by_name_and_counted(structures, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "few").mkdir()
    everything = read_patterns(simulate(structures, tmp_path / "all"))
    few = read_patterns(simulate(structures, tmp_path / "few", max_beams=150, fraction=1.0))
    rejected = pd.read_parquet(tmp_path / "few/rejected.parquet")
    assert 0 < len(rejected) < 25
    assert len(few) + len(rejected) == len(everything)
    assert set(rejected["reason"]) == {"too_many_beams"}
    kept = set(zip(few.material_id, map(tuple, few.zone_axis), strict=True))
    refused = {
        (name, tuple(map(int, axis.split())))
        for name, axis in zip(rejected["material_id"], rejected["zone_axis"], strict=True)
    }
    assert kept.isdisjoint(refused)
    facts = json.loads((tmp_path / "few/simulation.json").read_text())["facts"]
    reasons = {"too_many_beams": len(rejected)}
    assert facts == {"shards": 1, "accepted": len(few), "rejected": reasons}


def test_a_small_memory_rejects_large_patterns(structures, tmp_path):
    """The limit is that of one pattern, whatever the number of threads."""
    memory = pattern_memory(150) / 2**30
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        simulate(structures, folder, memory=memory, fraction=1.0, threads=threads)
    assert sha256(tmp_path / "1/store") == sha256(tmp_path / "3/store")
    detail = pd.read_parquet(tmp_path / "1/rejected.parquet")["detail"]
    assert len(detail) > 0
    assert detail.str.endswith("beams, more than 150").all()


def test_settings_of_the_physics_reach_the_patterns(structures, tmp_path):
    """Each key alone changes the intensities, and absorption takes some away."""
    changes = {
        "parametrization": {"parametrization": "kirkland"},
        "debye_waller": {
            "debye_waller": {"default": 0.5, "Na": 1.5, "Ti": 0.1, "N": 2.0, "O": 0.1}
        },
        "absorption": {"absorption": True},
        "foil_tilt": {"foil_tilt": [30.0, 0.0]},
        "precession": {"precession_angle": 1.0, "precession_steps": 6},
    }
    totals = {}
    for name, change in ({"default": {}} | changes).items():
        (tmp_path / name).mkdir()
        store = simulate(structures, tmp_path / name, min_intensity=0.0, **change)
        patterns = read_patterns(store)
        halite = patterns.select(np.flatnonzero(patterns.material_id == "halite"))
        totals[name] = halite.intensity.sum() / len(halite)
    for name in ("default", "parametrization", "debye_waller", "foil_tilt", "precession"):
        assert totals[name] == pytest.approx(1, abs=1e-3)
    assert totals["absorption"] < 0.97
    assert len({sha256(tmp_path / name / "store") for name in totals}) == len(totals)


def test_precession_keeps_the_positions_of_the_spots(structures, tmp_path):
    patterns = read_patterns(simulate(structures, tmp_path, precession_angle=1.5))
    rows = pd.read_parquet(structures).set_index("material_id")
    for p in range(len(patterns)):
        crystal = Crystal.from_json(rows.loc[patterns.material_id[p], "structure"])
        spots = slice(patterns.offsets[p], patterns.offsets[p + 1])
        g = patterns.hkl[spots] @ crystal.reciprocal @ patterns.orientation[p].T
        np.testing.assert_allclose(g[:, 0], patterns.qx[spots], atol=1e-6)
        np.testing.assert_allclose(g[:, 1], patterns.qy[spots], atol=1e-6)
        assert len(np.unique(patterns.hkl[spots], axis=0)) == len(g)


def test_polar_crystals_are_seen_from_both_sides(structures, tmp_path):
    """The sense of an axis is drawn only where inversion does not make it the same."""
    patterns = read_patterns(simulate(structures, tmp_path, count=12))
    flipped = {
        name: (patterns.zone_axis[patterns.material_id == name].sum(axis=1) < 0).sum()
        for name in CRYSTALS
    }
    assert flipped["halite"] == flipped["rutile"] == flipped["copper"] == 0
    assert 0 < flipped["wurtzite"] < 12


def test_missing_gpu_is_named(structures, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match=r"simulate\.device is cuda, but torch .* finds no CUDA"):
        simulate(structures, tmp_path, device="cuda")


def test_a_run_with_too_few_patterns_left_stops(structures, tmp_path):
    with pytest.raises(InputError, match="25 of 25 patterns have more than 1 beams"):
        simulate(structures, tmp_path, max_beams=1)
    assert not (tmp_path / "run.json").exists()
