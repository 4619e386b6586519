"""Relaxation under pressure: known equations of state, failures named, files for VASP."""

import numpy as np
import pandas as pd
import pytest
from ase import units
from ase.build import bulk
from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar

from diffractory.augment.calculators import calculator, relax_under_pressure
from diffractory.evaluation.ground_state import relax_generated
from diffractory.simulate.crystal import Crystal
from diffractory.store import InputError
from diffractory.store.provenance import read_record

SETTINGS = {
    "crystals": 9, "pressure": 10.0, "max_force": 0.01, "max_steps": 200,
    "seconds_per_crystal": 60.0, "seconds_per_pair": 10.0,
    "tolerances": {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0},
}  # fmt: skip
NAN = np.nan


def copper(a=3.6, z=29):
    """Return four atoms of the fcc crystal."""
    atoms = bulk("Cu", "fcc", a=a, cubic=True)
    return Crystal(np.array(atoms.cell), atoms.get_scaled_positions(), np.full(4, z))


def moved(crystal, seed, width=0.03):
    """Return the crystal with atoms out of their places, and another lattice."""
    rng = np.random.default_rng(seed)
    cell = crystal.cell @ (np.eye(3) + rng.normal(0, 0.03, (3, 3)))
    return Crystal(cell, crystal.positions + rng.normal(0, width, (4, 3)), crystal.numbers)


def write_samples(path, crystals, task="generation", sampler=""):
    pd.DataFrame(
        {
            "task": task,
            "sampler": sampler,
            "item": np.arange(len(crystals)),
            "material_id": "",
            "lattice": [list(crystal.cell.ravel()) for crystal in crystals],
            "positions": [list(crystal.positions.ravel()) for crystal in crystals],
            "numbers": [list(crystal.numbers) for crystal in crystals],
            "steps": 3,
        }
    ).to_parquet(path)


def run(folder, generated, calculator="emt", threads=1, name="made", **changes):
    write_samples(folder / "samples.parquet", generated)
    relaxed, dft = folder / f"{name}.relaxed.parquet", folder / f"{name}.dft"
    record = folder / f"{name}.relaxed.run.json"
    settings = SETTINGS | changes
    relax_generated(
        folder / "samples.parquet", relaxed, dft, record, settings, calculator, 0, threads
    )
    return pd.read_parquet(relaxed), dft, read_record(record)


def volume_at(pressure):
    """Return the volume per atom at which fcc copper has a pressure (GPa) in EMT, by its energy."""
    energies, volumes = [], []
    for a in np.linspace(3.3, 3.7, 161):
        atoms = bulk("Cu", "fcc", a=a)
        atoms.calc = calculator("emt")
        energies.append(atoms.get_potential_energy())
        volumes.append(atoms.get_volume())
    return np.interp(pressure, -np.gradient(energies, volumes)[::-1] / units.GPa, volumes[::-1])


@pytest.mark.parametrize("pressure", [0.0, 10.0, 30.0])
def test_volume_is_that_of_the_equation_of_state(pressure):
    made = relax_under_pressure(moved(copper(), 0), calculator("emt"), pressure, max_force=0.001)
    assert made.converged
    volume = abs(np.linalg.det(made.crystal.cell)) / 4
    assert volume == pytest.approx(volume_at(pressure), rel=2e-3)
    assert made.energy_after < made.energy_before or pressure == 30.0


def test_steps_and_time_are_limited():
    few = relax_under_pressure(moved(copper(), 0), calculator("emt"), 10.0, 0.001, max_steps=3)
    assert (few.converged, few.steps) == (False, 3)
    late = relax_under_pressure(moved(copper(), 0), calculator("emt"), 10.0, 0.001, seconds=0.0)
    assert (late.converged, late.steps) == (False, 0)


def test_relaxed_crystals_are_compared_with_the_generated_ones(tmp_path):
    ordered = Crystal(copper(3.7).cell, copper().positions, np.array([79, 29, 29, 29]))
    table, _, record = run(tmp_path, [moved(ordered, 1), copper(3.7), copper(3.5, z=47)])
    assert table["item"].tolist() == [0, 1, 2]
    assert table["formula"].tolist() == ["Cu3Au", "Cu", "Ag"]
    assert table["converged"].all()
    assert table["matched"].all()
    assert (table["reason"] == "").all()
    # The matcher scales volumes, and one of the crystals has nothing but another volume.
    assert table["rms"][1] == pytest.approx(0, abs=1e-4)
    assert table["rms"][0] > 0.01
    assert table["volume_before"][1] == pytest.approx(3.7**3 / 4)
    assert table["volume_after"][1] == pytest.approx(volume_at(10.0), rel=2e-3)
    for when in ("before", "after"):
        work = 10 * units.GPa * table[f"volume_{when}"]
        assert np.allclose(table[f"enthalpy_{when}"], table[f"energy_{when}"] + work)
    assert (table["enthalpy_after"] < table["enthalpy_before"]).all()
    assert record["facts"]["converged"] == 3
    assert record["facts"]["reasons"] == {}


def test_what_cannot_be_relaxed_is_counted(tmp_path):
    nonsense = Crystal(np.full((3, 3), NAN), copper().positions, copper().numbers)
    close = Crystal(copper().cell / 8, copper().positions, copper().numbers)
    dense = Crystal(0.9 * np.eye(3), np.zeros((1, 3)), np.array([29]))
    crystals = [nonsense, copper(), close, copper(z=26), dense, moved(copper(), 2), copper()]
    table, _, record = run(tmp_path, crystals, max_steps=2, crystals=4)
    # Neither NaN nor atoms at one place are relaxed; EMT knows no iron.
    assert table["item"].tolist() == [1, 3, 4, 5]
    assert not table["converged"].any()
    assert table["reason"][0] == "not converged in 2 steps"
    assert "Fe" in table["reason"][1]
    assert table["reason"][2] == "too dense"
    assert table["matched"].tolist() == [True, False, False, True]
    assert table[["rms", "volume_after", "energy_before"]].isna().all(axis=1).tolist() == [
        False, True, True, False,
    ]  # fmt: skip
    assert [len(positions) for positions in table["positions"]] == [12, 12, 3, 12]
    facts = record["facts"]
    assert (facts["valid"], facts["chosen"], facts["converged"]) == (5, 4, 0)
    assert facts["reasons"]["not converged in 2 steps"] == 2


def test_any_number_of_processes_gives_the_same_bytes(tmp_path):
    crystals = [moved(copper(), seed) for seed in range(4)]
    run(tmp_path, crystals, name="one")
    run(tmp_path, crystals, name="two", threads=2)
    one, two = (tmp_path / f"{name}.relaxed.parquet" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_no_crystal_is_an_empty_table(tmp_path):
    nonsense = Crystal(np.full((3, 3), NAN), copper().positions, copper().numbers)
    table, dft, record = run(tmp_path, [nonsense])
    full, _, _ = run(tmp_path, [copper()], name="full")
    assert table.empty
    assert (table.dtypes == full.dtypes).all()
    assert list(dft.iterdir()) == []
    assert record["facts"]["chosen"] == 0


def test_other_samplers_and_reconstructions_are_not_relaxed(tmp_path):
    paths = [tmp_path / f"{k}.parquet" for k in range(3)]
    write_samples(paths[0], [copper(3.5)], task="reconstruction")
    write_samples(paths[1], [copper(3.6)], sampler="steps_20")
    write_samples(paths[2], [copper(3.7)])
    table = pd.concat([pd.read_parquet(path) for path in paths])
    table.to_parquet(tmp_path / "all.parquet")
    outputs = [tmp_path / name for name in ("relaxed.parquet", "dft", "relaxed.run.json")]
    relax_generated(tmp_path / "all.parquet", *outputs, SETTINGS, "emt", 0, 1)
    assert pd.read_parquet(outputs[0])["volume_before"].tolist() == [pytest.approx(3.7**3 / 4)]


def test_files_for_vasp(tmp_path):
    mixed = Crystal(copper().cell, copper().positions, np.array([47, 29, 47, 29]))
    _, dft, _ = run(tmp_path, [copper(), mixed], max_steps=1)
    folders = sorted(dft.iterdir())
    assert [folder.name for folder in folders] == ["00000", "00001"]
    made = Poscar.from_file(folders[1] / "POSCAR").structure
    assert made.composition.reduced_formula == "CuAg"
    assert np.allclose(made.lattice.matrix, copper().cell)
    incar = Incar.from_file(folders[1] / "INCAR")
    # Pakornchote et al., Methods: PBE, 800 eV, 1e-5 eV, 1e-5 eV/angstrom, 5 x 5 x 5; 10 GPa.
    assert (incar["ENCUT"], incar["EDIFF"], incar["EDIFFG"]) == (800, 1e-5, -1e-5)
    assert (incar["PSTRESS"], incar["ISIF"], incar["GGA"].upper()) == (100, 3, "PE")
    mesh = Kpoints.from_file(folders[1] / "KPOINTS")
    assert tuple(mesh.kpts[0]) == (5, 5, 5)
    assert mesh.style.name == "Monkhorst"


def test_a_calculator_that_is_not_there_stops_the_stage(tmp_path, monkeypatch):
    monkeypatch.delenv("ASE_VASP_COMMAND", raising=False)
    with pytest.raises(InputError, match="ASE_VASP_COMMAND"):
        run(tmp_path, [copper()], calculator="vasp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.dft", "samples.parquet"]
