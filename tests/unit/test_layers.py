"""Layers come into one standard setting from any other, bulk and duplicates are set aside."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule, mx2
from ase.build.supercells import make_supercell
from ase.spacegroup import crystal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from diffractory.store import InputError
from diffractory.store.provenance import read_record
from diffractory.structures.cleaning import clean_structures, to_json
from diffractory.structures.layers import prepare_layers, split_of, standard_layer
from diffractory.structures.reading import Cell, Rejected, read_cell

SETTINGS = {
    "vacuum": 25.0,
    "min_vacuum": 5.0,
    "max_sites": 12,
    "duplicates": {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0},
    "test": 0.1,
    "validation": 0.1,
}
CLEANING = {
    "symprec": 0.01,
    "max_sites": 40,
    "min_volume": 5.0,
    "max_volume": 5000.0,
    "min_distance": 0.7,
    "duplicates": SETTINGS["duplicates"],
}


def layer(symbols, a, b, gamma, positions, vacuum=14.0):
    """Atoms of a layer from positions: fractional in the plane, angstrom across it."""
    positions = np.array(positions, dtype=float)
    c = np.ptp(positions[:, 2]) + vacuum
    atoms = Atoms(symbols, cell=[a, b, c, 90, 90, gamma], pbc=True)
    atoms.set_scaled_positions(positions / [1, 1, c])
    return atoms


def with_gap(atoms, gap=14.0):
    atoms.center(vacuum=gap / 2, axis=2)
    atoms.pbc = True
    return atoms


GRAPHENE = with_gap(graphene(a=2.46))
MOS2_2H = with_gap(mx2("MoS2", "2H", a=3.18, thickness=3.13))
MOS2_1T = with_gap(mx2("MoS2", "1T", a=3.18, thickness=3.13))
JANUS = with_gap(mx2("MoS2", "2H", a=3.25, thickness=3.2))
JANUS.symbols[2] = "Se"
PHOSPHORENE = layer("P4", 3.30, 4.62, 90, [
    [0.25, 0.085, 0], [0.25, 0.265, 2.1], [0.75, 0.585, 2.1], [0.75, 0.765, 0]])  # fmt: skip
SQUARE = layer("FeSeFeSe", 3.77, 3.77, 90, [
    [0, 0, 1.46], [0.5, 0, 0], [0.5, 0.5, 1.46], [0, 0.5, 2.92]])  # fmt: skip
CENTRED = layer("CuCl", 3.2, 3.2, 101, [[0, 0, 0], [0.5, 0.5, 0.3]])
OBLIQUE = layer("ReS2", 3.1, 3.4, 108, [[0, 0, 1.5], [0.31, 0.65, 0], [0.71, 0.35, 3.1]])
STACK = layer("MoS2C2", 3.0, 3.0, 120, [
    [0, 0, 1.56], [1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 3.13], [0, 0, 6.5], [1 / 3, 2 / 3, 6.5]],
)  # fmt: skip
LAYERS = {
    "graphene": (GRAPHENE, 80, "hexagonal"),
    "2H": (MOS2_2H, 78, "hexagonal"),
    "1T": (MOS2_1T, 72, "hexagonal"),
    "Janus": (JANUS, 69, "hexagonal"),
    "phosphorene": (PHOSPHORENE, 42, "rectangular"),
    "FeSe": (SQUARE, 64, "square"),
    "centred": (CENTRED, 26, "rectangular"),
    "oblique": (OBLIQUE, 1, "oblique"),
    "stack": (STACK, 69, "hexagonal"),
}


def cell_of(atoms):
    return Cell(
        np.array(atoms.cell), atoms.get_scaled_positions(wrap=False), atoms.numbers.astype(np.intc)
    )


def standard(atoms):
    return standard_layer(SETTINGS, to_json(cell_of(atoms)), 0.01)


def read(row):
    return read_cell(row["structure"].encode(), "json")


def neighbour_distances(cell):
    """Sorted distances, up to 5.7 angstrom, with the elements at both ends."""
    steps = np.array([(i, j, 0) for i in range(-4, 5) for j in range(-4, 5)])
    paths = cell.positions[None, None] + steps[:, None, None] - cell.positions[None, :, None]
    distances = np.linalg.norm(paths @ cell.lattice, axis=-1)
    kinds = np.add.outer(1000 * cell.numbers, cell.numbers)
    near = distances < 5.7
    found = np.stack([np.broadcast_to(kinds, distances.shape)[near], distances[near].round(6)])
    return found[:, np.lexsort(found[::-1])]


@pytest.mark.parametrize("name", LAYERS)
def test_standard_setting(name):
    atoms, group, family = LAYERS[name]
    row = standard(atoms).row
    cell = read(row)
    a, b, c = cell.lattice
    assert (row["layer_group"], row["family"]) == (group, family)
    assert np.allclose(a, [row["a"], 0, 0], rtol=0, atol=1e-12)
    assert b[1] > 0
    assert b[2] == 0
    assert np.allclose(c, [0, 0, row["c"]], atol=1e-12)
    assert row["alpha"] == row["beta"] == 90
    assert row["a"] <= row["b"] + 1e-9
    assert 90 - 1e-9 <= row["gamma"] <= 120 + 1e-9
    assert row["n_sites"] == len(atoms)
    assert row["volume"] == pytest.approx(abs(np.linalg.det(cell.lattice)))
    heights = cell.positions[:, 2] * row["c"]
    assert np.ptp(heights) == pytest.approx(np.ptp(atoms.positions[:, 2]))
    assert row["thickness"] == pytest.approx(np.ptp(heights))
    assert row["c"] == pytest.approx(row["thickness"] + 25)
    assert heights.max() + heights.min() == pytest.approx(row["c"])
    assert np.allclose(neighbour_distances(cell), neighbour_distances(cell_of(atoms)), atol=3e-6)


def test_known_lattices():
    """By hand: the primitive cell of a centred rectangle; b of the shortest two; gamma obtuse."""
    rectangle = make_supercell(CENTRED, [[1, 1, 0], [1, -1, 0], [0, 0, 1]])
    row = standard(rectangle).row
    assert (row["a"], row["b"], row["gamma"]) == pytest.approx((3.2, 3.2, 101))
    skewed = OBLIQUE.copy()
    skewed.set_cell(OBLIQUE.cell[:] @ np.eye(3) + np.array([[0] * 3, OBLIQUE.cell[0], [0] * 3]))
    row = standard(skewed).row
    assert (row["a"], row["b"], row["gamma"]) == pytest.approx((3.1, 3.4, 108))
    acute = layer("ReS2", 3.1, 3.4, 72, OBLIQUE.get_scaled_positions() * [1, 1, 17.1])
    assert standard(acute).row["gamma"] == pytest.approx(108)


moves = st.fixed_dictionaries({
    "matrix": st.lists(st.integers(-2, 2), min_size=4, max_size=4).map(
        lambda m: np.reshape(m, (2, 2))
    ).filter(lambda m: 0 < abs(np.linalg.det(m)) < 2.5),
    "stagger": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    "axes": st.permutations(range(3)),
    "rotation": st.integers(0, 2**32 - 1),
    "shift": st.tuples(*[st.floats(-15, 15)] * 3),
    "vacuum": st.floats(8, 25),
    "mirrored": st.booleans(),
})  # fmt: skip


def moved(atoms, move):
    """The same crystal: another cell, its axes permuted, rotated, shifted, with other vacuum."""
    atoms = with_gap(atoms.copy(), move["vacuum"])
    matrix = np.eye(3, dtype=int)
    matrix[:2, :2] = move["matrix"]
    atoms = make_supercell(atoms, matrix, wrap=False)
    if move["mirrored"]:
        atoms.positions[:, 0] *= -1
        atoms.set_cell(atoms.cell[:] * [-1, 1, 1])
    # Layers need not stand above each other.
    cell = atoms.cell[:].copy()
    cell[2] += np.array(move["stagger"]) / 4 @ cell[:2]
    turn = Rotation.random(rng=move["rotation"]).as_matrix()
    positions = (atoms.positions + move["shift"]) @ turn
    scaled = positions @ np.linalg.inv(cell @ turn) % 1
    order = list(move["axes"])
    return Atoms(
        atoms.numbers, scaled_positions=scaled[:, order], cell=(cell @ turn)[order], pbc=True
    )


@pytest.mark.parametrize("name", LAYERS)
@given(move=moves)
@settings(max_examples=15, deadline=None)
def test_equal_crystals_get_equal_cells(name, move):
    atoms = LAYERS[name][0]
    first, second = standard(atoms).row, standard(moved(atoms, move)).row
    for key in ("a", "b", "c", "alpha", "beta", "gamma", "volume", "thickness"):
        assert second[key] == pytest.approx(first[key], abs=1e-6)
    assert second["layer_group"] == first["layer_group"]
    one, other = read(first), read(second)
    assert np.allclose(neighbour_distances(one), neighbour_distances(other), atol=3e-6)
    if not move["mirrored"]:
        assert np.array_equal(one.numbers, other.numbers)
        assert np.allclose(one.positions, other.positions, atol=1e-6)


BULK = {
    "graphite": ("no_vacuum", crystal(
        ("C", "C"), [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)], spacegroup=194,
        cellpar=[2.46, 2.46, 6.7, 90, 90, 120])),
    "bulk MoS2": ("no_vacuum", crystal(
        ("Mo", "S"), [(1 / 3, 2 / 3, 0.25), (1 / 3, 2 / 3, 0.621)], spacegroup=194,
        cellpar=[3.16, 3.16, 12.3, 90, 90, 120])),
    "salt": ("not_two_dimensional", bulk("NaCl", "rocksalt", a=5.64)),
    "slab of vacuum in a network": ("not_two_dimensional", bulk("Cu", cubic=True)),
    "molecule": ("not_two_dimensional", molecule("H2O", vacuum=6)),
    "chain": ("not_two_dimensional", Atoms("C", cell=[1.3, 15, 15], pbc=True)),
    "too large": ("too_many_sites", with_gap(
        Atoms("C14", np.random.default_rng(0).random((14, 3)), cell=[4, 4, 0]))),
}  # fmt: skip


@pytest.mark.parametrize("name", BULK)
def test_what_is_no_layer_is_set_aside(name):
    reason, atoms = BULK[name]
    outcome = standard(atoms)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason
    if reason == "not_two_dimensional":
        dimension = {"molecule": 0, "chain": 1}.get(name, 3)
        assert outcome.detail.startswith(f"dimensionality {dimension}:")


def test_stack_of_bulk_spacing_is_one_layer():
    """Graphite's bilayer, cut by the boundary of its cell, with a vacuum: one layer of 3.35 A."""
    atoms = with_gap(BULK["graphite"][1].copy(), 12)
    atoms.positions[:, 2] += 7
    atoms.wrap()
    row = standard(atoms).row
    assert row["thickness"] == pytest.approx(3.35)
    assert row["n_sites"] == 4


def bilayer(shift):
    """Two sheets of graphene, the second shifted along the long diagonal of the cell."""
    sheet = np.array([[0, 0, 0], [1 / 3, 2 / 3, 0]])
    other = sheet + np.array([shift, 2 * shift, 3.35])
    return layer("C4", 2.46, 2.46, 120, [*sheet, *other])


def prepared(folder: Path, crystals, name="layers", seed=0, processes=1, limit=0.5):
    """Clean and prepare named crystals; return both tables, the record and the paths."""
    contents = [to_json(cell_of(atoms)).encode() for atoms in crystals.values()]
    retrieved = pd.DataFrame(
        {"material_id": list(crystals), "source": "test", "format": "json", "content": contents}
    )
    retrieved.to_parquet(folder / "retrieved.parquet")
    names = ("cleaned.parquet", "rejected.parquet", "cleaned.run.json")
    clean = [folder / end for end in names]
    clean_structures(folder / "retrieved.parquet", *clean, CLEANING, 0.5, 0, 1)
    paths = [folder / f"{name}{end}" for end in (".parquet", ".rejected.parquet", ".run.json")]
    prepare_layers(clean[0], *paths, SETTINGS, limit, seed, processes)
    return pd.read_parquet(paths[0]), pd.read_parquet(paths[1]), read_record(paths[2])


def test_stage(tmp_path):
    """Duplicates of other vacuum, cell and lattice go; other stackings stay; all are counted."""
    wide = with_gap(MOS2_2H.copy(), 24) * (2, 1, 1)
    strained = MOS2_2H.copy()
    strained.set_cell(strained.cell[:] * [[1.01], [1.01], [1]], scale_atoms=True)
    crystals = {
        "b-2H": MOS2_2H, "a-wide": wide, "c-strained": strained, "1T": MOS2_1T,
        "salt": BULK["salt"][1], "graphene": GRAPHENE, "graphite": BULK["graphite"][1],
        "Janus": JANUS, "AA": bilayer(0), "AB": bilayer(1 / 3),
    }  # fmt: skip
    table, rejected, record = prepared(tmp_path, crystals)
    assert table["material_id"].tolist() == ["a-wide", "1T", "graphene", "Janus", "AA", "AB"]
    assert rejected.set_index("material_id")["reason"].to_dict() == {
        "salt": "not_two_dimensional",
        "graphite": "no_vacuum",
        "b-2H": "duplicate",
        "c-strained": "duplicate",
    }
    details = rejected.loc[rejected["reason"] == "duplicate", "detail"]
    assert (details == "of a-wide").all()
    first = table.iloc[0]
    assert (first["n_sites"], first["layer_group"], first["space_group"]) == (3, 78, 187)
    assert first["c"] == pytest.approx(3.13 + 25)
    assert read(first).lattice[0, 0] == pytest.approx(3.18)
    assert first["a"] == pytest.approx(3.18)
    assert len(read(first).numbers) == 3
    assert "laue_rotations" not in table
    assert record["facts"]["rejected"] == {
        "duplicate": 2, "no_vacuum": 1, "not_two_dimensional": 1}  # fmt: skip


def test_same_bytes_from_any_number_of_processes(tmp_path):
    crystals = {name: atoms for name, (atoms, _, _) in LAYERS.items()}
    prepared(tmp_path, crystals, "one")
    prepared(tmp_path, crystals, "two", processes=2)
    for end in (".parquet", ".rejected.parquet"):
        assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"two{end}").read_bytes()


def test_duplicates_are_not_held_against_the_data(tmp_path):
    crystals = {str(n): MOS2_2H for n in range(4)} | {"salt": BULK["salt"][1]}
    table, rejected, _ = prepared(tmp_path, crystals, limit=0.2)
    assert (len(table), len(rejected)) == (1, 4)
    with pytest.raises(InputError, match=r"1 of the 5 .* 1 times \(such as salt"):
        prepared(tmp_path, crystals, limit=0.1)


def test_nothing_left_is_said(tmp_path):
    with pytest.raises(InputError, match="none is left"):
        prepared(tmp_path, {"salt": BULK["salt"][1]}, limit=1.0)


def test_split_fractions():
    fractions = {"test": 0.1, "validation": 0.2}
    drawn = pd.Series([split_of(f"m{n}", fractions, 1) for n in range(4000)]).value_counts()
    assert drawn["test"] == pytest.approx(400, abs=80)
    assert drawn["validation"] == pytest.approx(800, abs=110)
    assert drawn["train"] == pytest.approx(2800, abs=130)
    assert split_of("m5", fractions, 1) == split_of("m5", {**fractions, "validation": 0.2}, 1)
