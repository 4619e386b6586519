"""Formation energies: against known ones, in any order, and NaN for what has none."""

import numpy as np
import pytest
from ase.build import bulk

from diffractory.evaluation.energies import (
    BATCH,
    elemental_energies,
    elemental_energy,
    formation_energies,
    is_plausible,
)
from diffractory.evaluation.structure_matching import comparers
from diffractory.simulate.crystal import ATOMIC_NUMBERS
from diffractory.structures.reading import Cell


def cell_of(atoms, scale=1.0):
    return Cell(scale * np.array(atoms.cell), atoms.get_scaled_positions(), atoms.numbers)


ROCK_SALT = cell_of(bulk("NaCl", "rocksalt", a=5.64))
MAGNESIA = cell_of(bulk("MgO", "rocksalt", a=4.21))
SILICON = cell_of(bulk("Si", "diamond", a=5.43))
LONELY = Cell(30 * np.eye(3), np.zeros((1, 3)), np.array([29], dtype=np.intc))


@pytest.fixture(scope="module")
def pool():
    with comparers(1) as pool:
        yield pool


def test_salts_are_as_stable_as_measured(pool):
    # Enthalpies of formation at 298 K: -411.2 and -601.6 kJ/mol (NIST-JANAF, 4th edition, 1998).
    # Functionals of this kind bind oxides too weakly, by up to half an eV per atom of oxygen.
    found = formation_energies([ROCK_SALT, MAGNESIA, SILICON, LONELY], pool)
    assert found[0] == pytest.approx(-411.2 / 96.485 / 2, abs=0.15)
    assert found[1] == pytest.approx(-601.6 / 96.485 / 2, abs=0.3)
    assert found[2] == pytest.approx(0, abs=0.01)
    assert found[3] > 1  # no bonds


def test_energies_do_not_depend_on_processes_or_on_what_has_none(pool):
    broken = [
        Cell(np.full((3, 3), np.nan), ROCK_SALT.positions, ROCK_SALT.numbers),
        Cell(ROCK_SALT.lattice, np.full((2, 3), np.inf), ROCK_SALT.numbers),
        Cell(ROCK_SALT.lattice / 5, ROCK_SALT.positions, ROCK_SALT.numbers),
        Cell(np.zeros((3, 3)), ROCK_SALT.positions, ROCK_SALT.numbers),
        Cell(SILICON.lattice, SILICON.positions, np.array([14, 99], dtype=np.intc)),  # Es
    ]
    good = [cell_of(bulk("NaCl", "rocksalt", a=5.64), 1 + k / 100) for k in range(BATCH)]
    cells = [broken[0], *good, *broken[1:]]
    one = formation_energies(cells, pool)
    with comparers(2) as others:
        two = formation_energies(cells, others)
    assert np.array_equal(one, two, equal_nan=True)
    assert np.flatnonzero(np.isnan(one)).tolist() == [0, *range(BATCH + 1, BATCH + 5)]
    # The lattice that is relaxed, or nearly, is the most stable.
    assert np.argmin(one[1 : BATCH + 1]) in (0, 1, 2)
    assert formation_energies([], pool).shape == (0,)


@pytest.mark.parametrize("symbol", ["Cu", "Br", "H", "Pa"])
def test_energies_of_elements_are_those_in_the_file(symbol):
    _, energy = elemental_energy(symbol)
    assert elemental_energies()[ATOMIC_NUMBERS[symbol]] == pytest.approx(energy, abs=2e-3)


def test_every_element_of_the_data_sets_has_an_energy():
    energies = elemental_energies()
    unknown = np.flatnonzero(np.isnan(energies[:95]))
    assert unknown.tolist() == [0, *(ATOMIC_NUMBERS[s] for s in ("At", "Rn", "Fr", "Ra"))]


def test_nonsense_is_not_plausible():
    assert is_plausible(ROCK_SALT)
    left_handed = Cell(ROCK_SALT.lattice[::-1], ROCK_SALT.positions, ROCK_SALT.numbers)
    assert is_plausible(left_handed)
    assert not is_plausible(Cell(ROCK_SALT.lattice * 0.2, ROCK_SALT.positions, ROCK_SALT.numbers))
    assert not is_plausible(Cell(np.eye(3) * np.nan, ROCK_SALT.positions, ROCK_SALT.numbers))
