"""Fingerprints against matminer's, and what must not change them."""

import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matminer.featurizers.composition.composite import ElementProperty
from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.core import Lattice, Structure
from test_crystal_metrics import ODD, SALT, cell

from diffractory.evaluation.crystal_geometry import reduced_basis, voronoi_faces
from diffractory.evaluation.fingerprints import _magpie_scale, fingerprints
from diffractory.evaluation.order_parameters import MOTIFS, bond_order, motifs
from diffractory.structures.reading import Cell

DATA = Path(os.environ.get("DIFFRACTORY_DATA", Path(__file__).parents[2] / "shared" / "data"))

FCC = [[1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]]
CUBOCTAHEDRON = np.array(FCC + (-np.array(FCC)).tolist()) / np.sqrt(2)
CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / np.sqrt(3)
OCTAHEDRON = np.concatenate([np.eye(3), -np.eye(3)])
TETRAHEDRON = CUBE[[0, 3, 5, 6]]


def of_structure(structure):
    numbers = np.array([site.specie.Z for site in structure], dtype=np.intc)
    return Cell(structure.lattice.matrix, structure.frac_coords, numbers)


def distorted(structure, seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=0.01, size=(len(structure), 3))
    lattice = structure.lattice.matrix @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3)))
    return Structure(lattice, structure.species, structure.frac_coords + noise)


def known_structures():
    """Crystals of many kinds, high and low symmetry."""
    names = ["NaCl", "CsCl", "ZnS", "Al2O3", "TiO2", "CaF2", "MoS2", "FeS2"]
    prototypes = {
        entry["tags"]["mineral"] + entry["tags"]["pearson"]: entry["snl"].structure
        for entry in AFLOW_PROTOTYPE_LIBRARY
        if entry["snl"].structure.composition.reduced_formula in names
        and len(entry["snl"].structure) <= 8
    }
    found = [prototypes[name] for name in sorted(prototypes)][:8]
    found += [distorted(structure, seed) for seed, structure in enumerate(found[:6])]
    if DATA.is_dir():
        for name in ("perov_5", "carbon_24"):
            table = pd.read_csv(DATA / name / "test.csv").sample(30, random_state=0)
            structures = (Structure.from_str(text, fmt="cif") for text in table["cif"])
            found += [one for one in structures if len(one) <= 10][:6]
        found += [Structure.from_file(DATA / "mote2" / "CONTCAR_2H")]
    return found


def test_structures_are_those_of_matminer():
    reference = CrystalNNFingerprint.from_preset("ops")
    structures = known_structures()
    expected = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for structure in structures:
            sites = [reference.featurize(structure, n) for n in range(len(structure))]
            expected.append(np.mean(sites, axis=0))
    found = fingerprints([of_structure(structure) for structure in structures], 1).structure
    assert len(structures) > 8
    assert np.abs(found - expected).max() < 1e-6


def test_compositions_are_those_of_matminer():
    reference = ElementProperty.from_preset("magpie", impute_nan=False)
    structures = [
        Structure(Lattice.cubic(4 + k), elements, np.random.default_rng(k).random((k + 1, 3)))
        for k, elements in enumerate([["C"], ["Na", "Cl"], ["U", "O", "O"], ["He", "O", "Ar", "F"]])
    ]
    mean, deviation = _magpie_scale()
    expected = [reference.featurize(structure.composition) for structure in structures]
    expected = np.nan_to_num((np.array(expected) - mean) / deviation)
    found = fingerprints([of_structure(structure) for structure in structures], 1)
    assert np.isfinite(found.structure).all()
    assert np.abs(found.composition - expected).max() < 1e-9


@pytest.mark.parametrize("name", [*ODD, "no element", "no radius"])
def test_odd_crystals_have_no_fingerprint(name):
    others = {"no element": [0, 17], "no radius": [97, 17]}
    odd = ODD.get(name) or SALT._replace(numbers=np.array(others[name], dtype=np.intc))
    found = fingerprints([SALT, odd, SALT], 1)
    for rows in found:
        assert np.isfinite(rows).all(axis=1).tolist() == [True, False, True]
        assert np.array_equal(rows[0], rows[2])
        assert np.isnan(rows[1]).all()


def test_atoms_far_apart_and_alone_have_a_fingerprint():
    """The search goes on until the Voronoi cell is closed."""
    lonely = fingerprints([cell([12, 13, 14], [0, 0, 0], [6])], 1).structure
    assert np.abs(lonely).max() == 0  # no bond at all
    layer = fingerprints([cell([2.5, 2.5, 20], [0, 0, 0.1], [6])], 1).structure
    assert np.isfinite(layer).all()


def test_no_crystals_at_all():
    assert fingerprints([], 2).structure.shape == (0, 61)
    assert fingerprints([ODD["nan"]], 2).composition.shape == (1, 132)


PEROVSKITE = cell(
    [[4, 0.1, 0], [0.2, 4.1, 0.1], [0, 0, 3.9]],
    [[0, 0, 0], [0.5, 0.51, 0.5], [0.5, 0.5, 0.02], [0.5, 0.01, 0.5], [0, 0.5, 0.5]],
    [38, 22, 8, 8, 8],
)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_description_of_a_crystal_does_not_matter(seed):
    """Rotation, origin, order of the atoms, basis of the lattice, supercell."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(5)
    lattice, positions, numbers = PEROVSKITE
    basis = np.eye(3) + np.triu(rng.integers(-2, 3, (3, 3)), 1)
    moved = positions[order] + rng.random(3)
    other = Cell(basis @ lattice @ rotation, moved @ np.linalg.inv(basis), numbers[order])
    doubled = Cell(
        np.diag([1, 2, 1]) @ lattice,
        np.concatenate([positions, positions + np.array([0, 1, 0])]) / np.array([1, 2, 1]),
        np.tile(numbers, 2),
    )
    found = fingerprints([PEROVSKITE, other, doubled], 1)
    for rows in found:
        assert np.abs(rows - rows[0]).max() < 1e-7


def test_neither_neighbours_in_the_list_nor_threads_matter():
    cells = [PEROVSKITE, SALT, cell([3, 3, 3], [0, 0, 0], [26])] * 30
    together = fingerprints(cells, 3).structure
    assert np.array_equal(together, fingerprints(cells, 1).structure)
    assert np.array_equal(together[:3], fingerprints(cells[:3], 1).structure)


def parameters(directions):
    return motifs(directions, np.zeros(len(directions), dtype=np.int64))


def test_perfect_motifs():
    assert parameters(TETRAHEDRON)[1] == pytest.approx(1, abs=1e-3)
    assert parameters(OCTAHEDRON)[1] == pytest.approx(1)
    assert parameters(CUBOCTAHEDRON)[0] == pytest.approx(1, abs=2e-3)
    assert parameters(np.array([[1.0, 0, 0], [-1, 0, 0]]))[4] == pytest.approx(1)
    assert parameters(CUBE)[0] > 0.9
    assert [len(parameters(np.eye(3)[[0] * n])) for n in range(1, 25)] == list(MOTIFS)


def test_bond_order_of_fcc_is_the_published():
    """W. Lechner & C. Dellago, J. Chem. Phys. 129, 114707 (2008), table I."""
    q2, q4, q6 = bond_order(CUBOCTAHEDRON @ CUBOCTAHEDRON.T)
    assert (q2, q4, q6) == pytest.approx((0, 0.190941, 0.574524), abs=1e-6)


def test_voronoi_cell_of_a_cube():
    found = voronoi_faces(2.0 * OCTAHEDRON, np.full(6, 2.0))
    assert np.allclose(found, [[4 * np.pi / 6, 4.0]] * 6)
    assert np.isnan(voronoi_faces(2.0 * OCTAHEDRON[:5], np.full(5, 2.0))).all()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_reduced_basis_is_one_of_the_same_lattice(seed):
    rng = np.random.default_rng(seed)
    lattice = rng.normal(size=(3, 3)) * rng.uniform(0.1, 20, (3, 1))
    lattice[2] += rng.integers(-50, 50) * lattice[0]
    steps = reduced_basis(lattice) @ np.linalg.inv(lattice)
    assert np.abs(steps - np.round(steps)).max() < 1e-6
    assert abs(abs(np.linalg.det(steps)) - 1) < 1e-6
