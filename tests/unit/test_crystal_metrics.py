"""Measures of generated crystals by hand, and against pymatgen, SMACT and SciPy."""

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from smact.screening import smact_validity

from diffractory.evaluation.crystal_geometry import finite
from diffractory.evaluation.crystal_metrics import (
    densities,
    element_counts,
    nearest,
    valid_composition,
    valid_structure,
)
from diffractory.evaluation.crystal_scores import (
    covered,
    estimated_mean,
    estimated_wasserstein,
    rms_with_misses,
    wasserstein,
)
from diffractory.structures.reading import Cell


def cell(lattice, positions, numbers):
    lattice = np.asarray(lattice, dtype=np.float64)
    if lattice.ndim == 1:
        lattice = np.diag(lattice)
    return Cell(
        lattice, np.reshape(positions, (-1, 3)).astype(np.float64), np.array(numbers, dtype=np.intc)
    )


def of(formula):
    """A cell of nothing but its composition."""
    elements = [
        element.Z for element, count in Composition(formula).items() for _ in range(int(count))
    ]
    return cell([5, 5, 5], np.zeros((len(elements), 3)), elements)


SALT = cell([4, 4, 4], [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17])
ODD = {
    "nan": SALT._replace(positions=np.full((2, 3), np.nan)),
    "nan lattice": SALT._replace(lattice=np.full((3, 3), np.nan)),
    "infinite": SALT._replace(lattice=np.diag([np.inf, 4, 4])),
    "flat": SALT._replace(lattice=np.ones((3, 3))),
    "tiny": SALT._replace(lattice=np.eye(3) * 0.4),
    "huge": SALT._replace(lattice=np.eye(3) * 1e6),
    "needle": SALT._replace(lattice=np.diag([1e4, 1e-7, 1e4])),
    "empty": cell([4, 4, 4], [], []),
    "one place": SALT._replace(positions=np.zeros((2, 3))),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_crystals_are_not_valid(name):
    assert valid_structure([SALT, ODD[name], SALT]).tolist() == [True, False, True]


def test_finite_and_counts():
    cells = [SALT, *ODD.values()]
    assert finite(cells).tolist() == [True] + [False] * 3 + [True] * 6
    assert element_counts(cells).tolist() == [2] * 8 + [0, 2]
    assert valid_structure([]).shape == valid_composition([]).shape == densities([]).shape == (0,)


def test_atoms_may_not_be_closer_than_half_an_angstrom():
    def apart(distance):
        # across the boundary of the cell
        return cell([5, 6, 7], [[0.98, 0.5, 0.5], [0.98 + distance / 5 - 1, 0.5, 0.5]], [6, 6])

    assert valid_structure([apart(0.499), apart(0.501)]).tolist() == [False, True]


def test_an_atom_may_be_close_to_its_own_image():
    assert valid_structure([cell([0.45, 5, 5], [0, 0, 0], [6])]).all()


def test_closest_atoms_in_skewed_cells_are_those_of_pymatgen():
    rng = np.random.default_rng(0)
    cells, expected = [], []
    for _ in range(200):
        lattice = rng.normal(size=(3, 3)) * 3 + np.eye(3)
        lattice[1] += rng.integers(-3, 4) * lattice[0]
        one = cell(lattice, rng.random((4, 3)), [6] * 4)
        distances = Structure(Lattice(lattice), one.numbers, one.positions).distance_matrix
        closest = distances[np.triu_indices(4, 1)].min()
        cells.append(one)
        expected.append(closest >= 0.5 and one.volume >= 0.1)
    assert 0.2 < np.mean(expected) < 0.9
    assert valid_structure(cells).tolist() == expected


def test_compositions_by_hand():
    formulas = ["NaCl", "NaCl2", "Fe", "CuZn", "SrTiO3", "KO2", "He2", "XeF2", "ArO", "ClNa"]
    found = dict(zip(formulas, valid_composition([of(f) for f in formulas]), strict=True))
    assert found["NaCl"]
    assert found["ClNa"]
    assert not found["NaCl2"]
    assert found["Fe"]  # an element
    assert found["CuZn"]  # an alloy
    assert found["SrTiO3"]
    assert not found["ArO"]  # argon has no electronegativity


def test_compositions_are_those_of_smact():
    rng = np.random.default_rng(1)
    cells, expected = [], []
    while len(cells) < 400:
        numbers = rng.choice(rng.integers(1, 104, rng.integers(1, 5)), rng.integers(1, 9))
        one = cell([5, 5, 5], np.zeros((len(numbers), 3)), numbers)
        composition = Composition({int(z): int((numbers == z).sum()) for z in set(numbers)})
        cells.append(one)
        expected.append(smact_validity(composition, oxidation_states_set="smact14"))
    assert 0.3 < np.mean(expected) < 0.9
    assert valid_composition(cells).tolist() == expected


def test_a_network_may_say_any_number():
    cells = [of("C")._replace(numbers=np.array([z], dtype=np.intc)) for z in (-1, 0, 104, 119)]
    assert not valid_composition(cells).any()
    assert np.isnan(densities([cells[0], cells[1], cells[3]])).all()


def test_densities_are_those_of_pymatgen():
    structure = Structure(Lattice.from_parameters(3, 4, 5, 80, 95, 100), ["Sr", "O"], [[0] * 3] * 2)
    one = Cell(structure.lattice.matrix, structure.frac_coords, np.array([38, 8], dtype=np.intc))
    assert densities([one])[0] == pytest.approx(structure.density, rel=1e-9)
    assert np.isnan(densities([ODD["nan lattice"], ODD["flat"]])).all()


def test_nearest_passes_over_crystals_without_fingerprint():
    rng = np.random.default_rng(2)
    rows, others = rng.normal(size=(700, 5)), rng.normal(size=(40, 5))
    expected = cdist(rows, others[1:]).min(axis=1)
    others[0] = np.nan
    rows[3, 2], expected[3] = np.nan, np.nan
    assert np.allclose(nearest(rows, others), expected, rtol=1e-12, equal_nan=True)
    assert np.isnan(nearest(rows, others[:1])).all()
    assert nearest(others, others)[1:].tolist() == [0.0] * 39


def test_covered_by_hand():
    structure = np.array([0.1, 0.2, 0.3, np.nan])
    composition = np.array([4.0, 4.1, 1.0, np.nan])
    assert covered(structure, composition, 0.2, 4.0).tolist() == [True, False, False, False]


def test_misses_count_at_the_tolerance():
    assert rms_with_misses(np.array([0.1, np.nan]), 0.5).tolist() == [0.1, 0.5]


def test_wasserstein_distances_are_those_of_scipy():
    rng = np.random.default_rng(3)
    for sizes in ((1, 1), (5, 9), (300, 200)):
        first, second = rng.normal(size=sizes[0]), rng.normal(1, 2, size=sizes[1])
        assert wasserstein(first, second) == pytest.approx(wasserstein_distance(first, second))
    assert wasserstein(np.array([0.0, np.nan, 1.0]), np.array([5.0])) == pytest.approx(4.5)
    assert np.isnan(wasserstein(np.array([np.nan]), np.array([1.0])))


def test_wasserstein_interval():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=400), rng.normal(3, 1, size=500)
    value, low, high, n = estimated_wasserstein(first, second, 0)
    assert low < value < high
    # The difference of two means of 400 and 500, standard error sqrt(1/400 + 1/500).
    assert high - low == pytest.approx(2 * 1.96 * 0.067, rel=0.2)
    assert n == 400
    assert estimated_wasserstein(first[::-1], second, 0).value == pytest.approx(value)
    assert np.isnan(estimated_wasserstein(first[:0], second, 0)[:3]).all()


def test_means_say_what_they_are_over():
    assert estimated_mean(np.array([1.0, np.nan, 3.0]), 0)[::3] == (2.0, 2)
    share = estimated_mean(np.array([True, False, False, False]), 0)
    assert share.value == 0.25
    assert 0 <= share.low < 0.25 < share.high <= 1
    assert share == estimated_mean(np.array([True, False, False, False]), 0)
    assert np.isnan(estimated_mean(np.array([np.nan]), 0)[:3]).all()
