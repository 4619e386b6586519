"""Structural augmentation: atoms counted, tensors recovered, distances by hand."""

from dataclasses import replace

import numpy as np
import pytest

from diffractory.augment.crystals import (
    displace,
    matched,
    morph,
    random_strain,
    remove_atoms,
    repeat,
    strain,
)
from diffractory.augment.mote2 import ORTHOGONAL, orthogonal_cell, primitive_cell
from diffractory.errors import InputError
from diffractory.simulate.crystal import ATOMIC_NUMBERS, Crystal, mean_square_displacement

MO, TE = ATOMIC_NUMBERS["Mo"], ATOMIC_NUMBERS["Te"]
TRICLINIC = Crystal(
    cell=np.array([[4.0, 0, 0], [1, 5, 0], [0.5, -1, 6]]),
    positions=np.array([[0.1, 0.2, 0.3], [0.7, 0.6, 0.9]]),
    numbers=np.array([MO, TE]),
)


def distances(crystal: Crystal) -> np.ndarray:
    """Return the shortest distance of each pair of atoms, angstrom."""
    delta = crystal.positions[:, None] - crystal.positions
    delta -= np.rint(delta)
    images = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
    return np.linalg.norm((delta[..., None, :] + images) @ crystal.cell, axis=-1).min(axis=-1)


def same_atoms(crystal: Crystal, other: Crystal) -> bool:
    """Whether each atom of one is an atom of the other, up to lattice vectors."""
    delta = crystal.positions[:, None] - other.positions
    delta -= np.rint(delta)
    is_same = np.abs(delta).max(axis=-1) < 1e-9
    is_same &= crystal.numbers[:, None] == other.numbers
    return bool((is_same.sum(axis=1) == 1).all() and (is_same.sum(axis=0) == 1).all())


def test_supercell_has_all_atoms_of_one_cell_and_then_those_of_the_next():
    supercell = repeat(TRICLINIC, (2, 1, 3))
    assert np.allclose(supercell.cell, TRICLINIC.cell * [[2], [1], [3]])
    cartesian = supercell.positions @ supercell.cell
    shifts = cartesian.reshape(6, 2, 3) - TRICLINIC.positions @ TRICLINIC.cell
    assert np.allclose(shifts[:, 0], shifts[:, 1])
    expected = [(i, 0, k) for i in range(2) for k in range(3)]
    assert np.allclose(shifts[:, 0], expected @ TRICLINIC.cell)
    assert supercell.numbers.tolist() == [MO, TE] * 6


@pytest.mark.parametrize(
    "matrix", [[[1, 0, 0], [1, 2, 0], [0, 0, 1]], [[1, -1, 0], [1, 1, 0], [0, 1, 2]]]
)
def test_supercell_of_a_matrix_is_the_same_crystal(matrix):
    supercell = repeat(TRICLINIC, matrix)
    assert len(supercell.numbers) == 2 * round(np.linalg.det(matrix))
    assert np.allclose(supercell.cell, matrix @ TRICLINIC.cell)
    # Every atom is on a site of the small cell, and no two are the same atom.
    small = supercell.positions @ matrix
    offset = small - np.tile(TRICLINIC.positions, (len(small) // 2, 1))
    assert np.abs(offset - np.rint(offset)).max() < 1e-9
    assert distances(supercell)[~np.eye(len(small), dtype=bool)].min() > 1


@pytest.mark.parametrize("nonsense", [(2, 0, 1), (1.5, 1, 1), [[1, 0, 0], [2, 0, 0], [0, 0, 1]]])
def test_what_gives_no_supercell_is_refused(nonsense):
    with pytest.raises(InputError, match="supercell"):
        repeat(TRICLINIC, nonsense)


def test_each_atom_keeps_its_occupancy_and_vibration():
    special = replace(
        TRICLINIC,
        occupancies=np.array([1.0, 0.5]),
        displacements=mean_square_displacement([0.1, 0.2]),
    )
    supercell = repeat(special, (3, 1, 1))
    assert supercell.occupancies.tolist() == [1, 0.5] * 3
    left = remove_atoms(supercell, {"Mo": 1}, np.random.default_rng(0))
    assert left.occupancies.tolist() == [0.5] * 3
    assert np.allclose(left.displacements, mean_square_displacement(0.2))


@pytest.mark.parametrize(
    ("fraction", "mo", "te"),
    [
        (0.2, 80, 160),
        (0.0, 100, 200),
        ({"Te": 0.13}, 100, 174),
        ({"Mo": 1, "default": 0.1}, 0, 180),
    ],
)
def test_vacancies_are_counted_exactly(fraction, mo, te):
    crystal = repeat(primitive_cell("2h"), (10, 10, 1))
    left = remove_atoms(crystal, fraction, np.random.default_rng(1))
    assert (left.numbers == MO).sum() == mo
    assert (left.numbers == TE).sum() == te
    assert len(crystal.numbers) == 300
    rows = {tuple(row) for row in crystal.positions.tolist()}
    assert len({tuple(row) for row in left.positions.tolist()} & rows) == mo + te


def test_every_atom_may_be_missing():
    crystal = repeat(TRICLINIC, (5, 1, 1))
    rng = np.random.default_rng(0)
    kept = [remove_atoms(crystal, 0.4, rng).positions[:, 0].round(6) for _ in range(200)]
    share = [np.isin(x, np.concatenate(kept)) for x in crystal.positions[:, 0].round(6)]
    assert all(share)
    counts = [sum(x in k for k in kept) for x in crystal.positions[:, 0].round(6)]
    assert np.abs(np.array(counts) / 200 - 0.6).max() < 0.15  # 4 standard deviations


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (1.2, "within 0 to 1"),
        ({"Te": -0.1}, "within 0 to 1"),
        (1.0, "no atom"),
        ({"Tee": 0.1}, "Tee"),
    ],
)
def test_impossible_vacancies_are_refused(fraction, message):
    with pytest.raises(InputError, match=message):
        remove_atoms(TRICLINIC, fraction, np.random.default_rng(0))


def test_strain_tensor_is_recovered_from_the_lattice():
    tensor = np.array([[0.05, 0.02, 0], [-0.01, -0.03, 0.04], [0, 0.01, 0.02]])
    strained = strain(TRICLINIC, tensor)
    assert np.allclose((np.linalg.inv(TRICLINIC.cell) @ strained.cell).T - np.eye(3), tensor)
    before, after = (c.positions @ c.cell for c in (TRICLINIC, strained))
    assert np.allclose(after, before + before @ tensor.T)


@pytest.mark.parametrize("in_plane", [True, False])
def test_random_strain_is_uniform_in_every_component(in_plane):
    rng = np.random.default_rng(0)
    tensors = np.array([random_strain(0.1, in_plane, rng) for _ in range(4000)])
    assert np.array_equal(tensors, np.swapaxes(tensors, 1, 2))
    drawn = tensors[:, :2, :2] if in_plane else tensors
    if in_plane:
        assert not tensors[:, 2].any()
    assert np.abs(drawn).max() <= 0.1
    assert np.allclose(drawn.mean(axis=0), 0, atol=0.004)
    assert np.allclose(drawn.std(axis=0), 0.1 / np.sqrt(3), rtol=0.05)
    assert abs(np.corrcoef(drawn[:, 0, 0], drawn[:, 0, 1])[0, 1]) < 0.06


def test_thermal_displacements_have_the_variance_of_the_debye_waller_factor():
    crystal = repeat(TRICLINIC, (30, 20, 10))
    moved = displace(crystal, {"Mo": 0.4, "Te": 1.2}, np.random.default_rng(0))
    distance = (moved.positions - crystal.positions) @ crystal.cell
    for number, b in ((MO, 0.4), (TE, 1.2)):
        variance = distance[crystal.numbers == number].var(axis=0)
        assert np.allclose(variance, b / (8 * np.pi**2), rtol=0.08)  # 4 standard deviations
    assert np.array_equal(moved.cell, crystal.cell)


def test_pairs_are_found_whatever_the_order_the_images_and_the_origin():
    crystal = repeat(TRICLINIC, (2, 2, 1))
    rng = np.random.default_rng(3)
    order = rng.permutation(len(crystal.numbers))
    other = replace(
        displace(crystal, 0.3, rng),
        cell=1.02 * crystal.cell,
    )
    moved = replace(
        other,
        positions=other.positions[order] + rng.integers(-2, 3, (len(order), 3)) + [0.3, 0.1, 0.4],
        numbers=other.numbers[order],
    )
    found = matched(crystal, moved)
    assert np.array_equal(found.numbers, crystal.numbers)
    distance = (found.positions - crystal.positions) @ crystal.cell
    assert np.abs(distance).max() < 0.5
    assert np.allclose(distance.mean(axis=0), 0)
    # The supercell repeats itself: pairs may be those of a cell further on.
    assert np.allclose(np.sort(distances(found), axis=None), np.sort(distances(other), axis=None))


def test_morph_ends_at_the_crystals_and_passes_half_way():
    start, end = orthogonal_cell("2h"), orthogonal_cell("1t")
    target = matched(start, end)
    assert np.allclose(morph(start, target, 0.0).positions, start.positions)
    last = morph(start, target, 1.0)
    assert np.allclose(last.cell, end.cell)
    assert np.allclose(np.sort(distances(last), axis=None), np.sort(distances(end), axis=None))
    half = morph(start, target, 0.5)
    assert np.allclose(2 * half.positions, start.positions + target.positions)
    # One layer of Te glides; no atom goes further than to the next hollow site.
    cell = (start.cell + end.cell) / 2
    assert np.linalg.norm((target.positions - start.positions) @ cell, axis=1).max() < 1.8
    back = matched(end, start)
    way = [((a.positions - b.positions) @ cell) ** 2 for a, b in ((target, start), (back, end))]
    assert np.isclose(way[0].sum(), way[1].sum())


def test_crystals_of_other_content_are_refused():
    with pytest.raises(InputError, match="equal content"):
        matched(primitive_cell("2h"), orthogonal_cell("1t"))
    with pytest.raises(InputError, match="same atoms"):
        morph(primitive_cell("2h"), orthogonal_cell("1t"), 0.5)


def test_orthogonal_cells_are_the_same_crystals_in_the_same_orientation():
    for phase in ("2h", "1t"):
        cell = orthogonal_cell(phase)
        assert np.allclose(cell.cell, np.diag(np.diag(cell.cell)))
        assert same_atoms(cell, repeat(primitive_cell(phase), ORTHOGONAL[phase]))
        assert sorted(cell.numbers.tolist()) == [MO] * 2 + [TE] * 4
        assert 3.4 < cell.cell[0, 0] < 3.6
        assert 6.0 < cell.cell[1, 1] < 6.4
        nearest = np.sort(distances(cell)[cell.numbers == MO][:, cell.numbers == TE], axis=1)
        assert 2.6 < nearest.min() < nearest.max() < 4.7
    with pytest.raises(InputError, match="3r"):
        primitive_cell("3r")


def test_json_is_read_back():
    again = Crystal.from_json(TRICLINIC.to_json())
    assert np.array_equal(again.cell, TRICLINIC.cell)
    assert np.array_equal(again.positions, TRICLINIC.positions)
    assert np.array_equal(again.numbers, TRICLINIC.numbers)
