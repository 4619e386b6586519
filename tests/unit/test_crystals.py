"""Reduced cells of the same crystal are the same, and sets share no more than they say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from diffractory.store import InputError
from diffractory.store.provenance import read_record
from diffractory.structures.cleaning import clean_structures, to_json
from diffractory.structures.crystals import (
    disjoint_split,
    prepare_crystals,
    published_split,
    reduced_crystal,
)
from diffractory.structures.reading import Cell, Rejected

CLEANING = {
    "symprec": 0.01,
    "max_sites": 40,
    "min_volume": 5.0,
    "max_volume": 5000.0,
    "min_distance": 0.7,
    "duplicates": {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0},
}
SETTINGS = {"max_sites": 6, "split": "random", "test": 0.25, "validation": 0.25}


def cell_of(structure):
    numbers = np.array([site.specie.Z for site in structure], dtype=np.intc)
    return Cell(structure.lattice.matrix, structure.frac_coords, numbers)


def salt(a, symbols="NaCl"):
    elements = (symbols[:2], symbols[2:])
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), elements, [[0, 0, 0], [0.5] * 3])


def columns(structure, max_sites=20):
    row = reduced_crystal(max_sites, to_json(cell_of(structure)), 0.01).row
    return row["lattice"].reshape(3, 3), row["positions"].reshape(-1, 3), row["numbers"]


CHIRAL = Structure(
    Lattice.from_parameters(4.1, 4.9, 5.6, 81, 77, 95),
    ["O", "Si", "Ca", "Al"],
    [[0.02, 0.05, 0.01], [0.31, 0.13, 0.2], [0.1, 0.42, 0.33], [0.67, 0.58, 0.71]],
)
"""Its mirror image is another crystal."""


def nearest(lattice, positions, numbers):
    """Vectors from the oxygen atom to the nearest of each other element, by atomic number."""
    steps = np.indices((7, 7, 7)).reshape(3, -1).T - 3
    images = (positions - positions[numbers == 8] + steps[:, None]) @ lattice
    best = np.linalg.norm(images, axis=2).argmin(axis=0)
    vectors = images[best, np.arange(len(numbers))]
    return vectors[np.argsort(numbers)][1:]


moves = st.fixed_dictionaries({
    "matrix": st.lists(st.integers(-2, 2), min_size=9, max_size=9).map(
        lambda m: np.reshape(m, (3, 3))
    ).filter(lambda m: 0 < abs(round(np.linalg.det(m))) < 3),
    "rotation": st.integers(0, 2**32 - 1),
    "shift": st.tuples(*[st.floats(-3, 3)] * 3),
})  # fmt: skip


@given(move=moves)
@settings(max_examples=40, deadline=None)
def test_equal_crystals_get_equal_cells(move):
    moved = CHIRAL.copy()
    moved.translate_sites(range(4), move["shift"], to_unit_cell=False)
    moved.make_supercell(move["matrix"].tolist(), to_unit_cell=False)
    turn = Rotation.random(rng=move["rotation"]).as_matrix()
    moved = Structure(moved.lattice.matrix @ turn, moved.species, moved.frac_coords)
    lattice, positions, numbers = columns(moved)
    expected, sites, _ = columns(CHIRAL)
    np.testing.assert_allclose(lattice @ lattice.T, expected @ expected.T, atol=1e-6)
    assert numbers.tolist() == [8, 13, 14, 20]
    assert np.all((positions.astype(np.float32) >= 0) & (positions.astype(np.float32) < 1))
    a, b, c = lattice
    assert a[1] == a[2] == b[2] == 0
    assert min(a[0], b[1], c[2]) > 0  # right-handed
    # The same distances, and the same handedness.
    found, wanted = nearest(lattice, positions, numbers), nearest(expected, sites, numbers)
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-5)
    assert np.linalg.det(found) == pytest.approx(np.linalg.det(wanted), abs=1e-5)
    assert abs(np.linalg.det(found)) > 1


def test_cells_are_primitive_and_reduced():
    lattice, positions, numbers = columns(salt(5.64))
    lengths = np.linalg.norm(lattice, axis=1)
    np.testing.assert_allclose(lengths, 5.64 / 2**0.5, rtol=1e-9)
    assert np.linalg.det(lattice) == pytest.approx(5.64**3 / 4)
    cosines = lattice @ lattice.T / lengths**2
    np.testing.assert_allclose(cosines[np.triu_indices(3, 1)], 0.5, atol=1e-9)
    assert numbers.tolist() == [11, 17]
    np.testing.assert_allclose((positions[1] - positions[0]) % 1, 0.5, atol=1e-9)


def test_coordinates_just_below_a_lattice_point_are_zero():
    crystal = Structure(Lattice.cubic(4), ["Cs", "Cl"], [[-1e-17, -1e-9, 1 - 1e-12], [0.5] * 3])
    _, positions, _ = columns(crystal)
    assert (positions.astype(np.float32) < 1).all()


def test_too_many_sites_of_the_primitive_cell():
    big = salt(5.64) * (2, 1, 1)
    assert len(big) == 16
    assert len(columns(big, max_sites=2)[2]) == 2
    outcome = reduced_crystal(1, to_json(cell_of(big)), 0.01)
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.detail) == ("too_many_sites", "2 sites, more than 1")


def prepared(folder: Path, crystals, name="crystals", seed=0, processes=1, **changes):
    """Clean and prepare named structures; return both tables and the record."""
    contents = [to_json(cell_of(structure)).encode() for structure in crystals.values()]
    retrieved = pd.DataFrame(
        {"material_id": list(crystals), "source": "test", "format": "json", "content": contents}
    )
    retrieved.to_parquet(folder / "retrieved.parquet")
    clean = [folder / end for end in ("cleaned.parquet", "rejected.parquet", "cleaned.run.json")]
    clean_structures(folder / "retrieved.parquet", *clean, CLEANING, 0.5, 0, 1)
    paths = [folder / f"{name}{end}" for end in (".parquet", ".rejected.parquet", ".run.json")]
    prepare_crystals(clean[0], *paths, SETTINGS | changes, 0.5, seed, processes)
    return pd.read_parquet(paths[0]), pd.read_parquet(paths[1]), read_record(paths[2])


TWINS = {f"twin{n}": salt(5.64 + 0.01 * n) for n in range(6)}


def test_stage(tmp_path):
    crystals = {
        **TWINS,
        "chiral": CHIRAL,
        "big": Structure.from_spacegroup(
            "P1", Lattice.from_parameters(7, 8, 9, 90, 95, 90), ["C"] * 7,
            np.random.default_rng(0).random((7, 3)).tolist()),
    }  # fmt: skip
    table, rejected, record = prepared(tmp_path, crystals)
    assert list(table.columns) == [
        "material_id", "source", "formula", "n_sites", "space_group", "prototype",
        "duplicate_group", "split", "disjoint_split", "lattice", "positions", "numbers",
    ]  # fmt: skip
    assert table["material_id"].tolist() == [*TWINS, "chiral"]
    assert rejected[["material_id", "reason"]].to_numpy().tolist() == [["big", "too_many_sites"]]
    assert table["n_sites"].tolist() == [2] * 6 + [4]
    lengths = table[["lattice", "positions", "numbers"]].map(len)
    assert (lengths["lattice"] == 9).all()
    assert (lengths["positions"] == 3 * table["n_sites"]).all()
    assert (lengths["numbers"] == table["n_sites"]).all()
    facts = record["facts"]
    assert (facts["accepted"], facts["rejected"]) == (7, {"too_many_sites": 1})
    assert (facts["duplicate_groups"], facts["unique_fraction"]) == (2, round(2 / 7, 4))
    assert sum(table["disjoint_split"] != "") == 2
    assert facts["disjoint_split"]["left out"] == 5
    test = table["split"] == "test"
    twins = table["duplicate_group"] == "twin0"
    in_train = (twins & (table["split"] == "train")).any()
    assert facts["test_with_duplicate_in_train"] == (twins & test).sum() * in_train


def test_same_bytes_from_any_number_of_processes(tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        prepared(tmp_path, {**TWINS, "chiral": CHIRAL}, name, processes=processes)
    for end in (".parquet", ".rejected.parquet"):
        assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"two{end}").read_bytes()


def test_nothing_left_is_said(tmp_path):
    with pytest.raises(InputError, match=r"too_many_sites 6 times .*none is left"):
        prepared(tmp_path, TWINS, max_sites=1)


# --- the published kind of split --------------------------------------------------------------


def by(split, sources, seed=0):
    table = pd.DataFrame({
        "material_id": [f"m{n}" for n in range(len(sources))], "source": sources})  # fmt: skip
    return published_split(table, {**SETTINGS, "split": split, "test": 0.2}, seed)


def shares(split):
    return pd.Series(split).value_counts(normalize=True).to_dict()


@pytest.mark.parametrize("split", ["random", "file"])
def test_random_split_has_its_fractions(split):
    found = by(split, ["perovskites"] * 4000)
    assert shares(found) == pytest.approx(
        {"train": 0.55, "validation": 0.25, "test": 0.2}, abs=0.02
    )
    assert by(split, ["perovskites"] * 10) == found[:10]
    assert by(split, ["perovskites"] * 100, seed=1) != found[:100]


def test_files_are_sets():
    for folder in ("mp_20/", ""):
        sources = [f"structure_table:{folder}{name}.csv" for name in ("test", "train", "val")]
        assert by("file", sources) == ["test", "train", "validation"]


@pytest.mark.parametrize("name", ["train", "val"])
def test_one_file_beside_test_gives_train_and_validation(name):
    sources = ["structure_table:a/test.csv"] * 100 + [f"structure_table:a/{name}.csv"] * 4000
    found = by("file", sources)
    assert found[:100] == ["test"] * 100
    wanted = {"train": 0.55 / 0.8, "validation": 0.25 / 0.8}
    assert shares(found[100:]) == pytest.approx(wanted, abs=0.02)


@pytest.mark.parametrize(
    "names", [["mine.csv", "test.csv"], ["train.csv", "val.csv"], ["test.csv"], ["mine.parquet"]]
)
def test_files_of_other_names_are_refused(names):
    with pytest.raises(
        InputError, match="do not say what set they are: name them train, val, test"
    ):
        by("file", [f"structure_table:a/{name}" for name in names])


# --- the disjoint split -----------------------------------------------------------------------


def crystals(rows):
    """A table from (duplicate group, prototype, formula, atomic numbers)."""
    table = pd.DataFrame(rows, columns=["duplicate_group", "prototype", "formula", "numbers"])
    return table.assign(numbers=[np.array(numbers) for numbers in table["numbers"]])


def sides(table, seed=0):
    return disjoint_split(table, {"test": 0.2, "validation": 0.2}, seed)


rows = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 25), st.integers(0, 25)).map(
        lambda r: (f"m{r[0]}", f"p{r[1]}", f"f{r[2]}", [r[2] % 20 + 1, 50])
    ),
    min_size=3,
    max_size=60,
)


@given(rows=rows, seed=st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_sets_share_nothing_that_they_are_disjoint_in(rows, seed):
    table = crystals(rows)
    side, kinds = sides(table, seed)
    table["chemical_system"] = [str(sorted(set(z.tolist()))) for z in table["numbers"]]
    used = table[np.array(side) != ""].assign(side=[s for s in side if s])
    assert not used["duplicate_group"].duplicated().any()
    for kind in kinds:
        assert len(used[[kind, "side"]].drop_duplicates()) == used[kind].nunique()
    if kinds[0] != "prototype":  # nothing but duplicates is left out
        assert len(used) == table["duplicate_group"].nunique()


def test_prototypes_and_formulas():
    table = crystals([(f"m{n}", f"p{n % 40}", f"f{n % 333}", [n % 90 + 1]) for n in range(400)])
    side, kinds = sides(table)
    assert kinds == ["prototype", "formula"]
    counts = pd.Series(side).value_counts()
    assert counts["test"] == pytest.approx(80, abs=10)
    assert counts["validation"] == pytest.approx(80, abs=20)
    assert 0 < counts[""] < 60  # what has its formula in another set


def test_perovskites_are_apart_in_chemical_systems():
    table = crystals([
        (f"m{n}", "p", f"f{n}", [n % 100 + 1, 8, 8, 8]) for n in range(300)])  # fmt: skip
    side, kinds = sides(table)
    assert kinds == ["chemical_system"]
    assert pd.Series(side).value_counts().to_dict() == {"train": 180, "validation": 60, "test": 60}


def test_carbon_is_apart_in_prototypes():
    table = crystals([(f"m{n // 2}", f"p{n % 50}", "C", [6] * 4) for n in range(400)])
    side, kinds = sides(table)
    assert kinds == ["prototype"]
    counts = pd.Series(side).value_counts()
    assert counts[""] == 200  # second ones of pairs of duplicates
    assert {counts["test"], counts["validation"]} == {40}


def test_one_structure_type_of_one_composition():
    table = crystals([(f"m{n}", "p", "C", [6]) for n in range(50)])
    side, kinds = sides(table)
    assert kinds == ["duplicate_group"]
    assert pd.Series(side).value_counts().to_dict() == {"train": 30, "validation": 10, "test": 10}
