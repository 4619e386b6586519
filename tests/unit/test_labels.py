import numpy as np
import pytest
import spglib
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from diffractory.structures.labels import (
    dimensionality,
    find_neighbours,
    find_symmetry,
)
from diffractory.structures.reading import Cell, Rejected

SYMPREC = 0.01


def crystal(space_group, lattice, species, coordinates):
    return Structure.from_spacegroup(space_group, lattice, species, coordinates)


def cell_of(structure):
    numbers = np.array([site.specie.Z for site in structure], dtype=np.intc)
    return Cell(structure.lattice.matrix, structure.frac_coords, numbers)


def symmetry_of(structure):
    return find_symmetry(cell_of(structure), SYMPREC)


def dimension_of(structure):
    cell = cell_of(structure)
    return dimensionality(find_neighbours(cell, 0.5), len(cell.numbers))


NACL = crystal(225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
DIAMOND = crystal(227, Lattice.cubic(3.567), ["C"], [[0, 0, 0]])
RUTILE = crystal(
    136, Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.3053, 0.3053, 0]]
)
QUARTZ_COORDINATES = [[0.4697, 0, 0], [0.4135, 0.2669, 0.1191]]
QUARTZ = crystal(152, Lattice.hexagonal(4.916, 5.405), ["Si", "O"], [
    [0.4697, 0, 1 / 3], [0.4135, 0.2669, 0.1191 + 1 / 3]])  # fmt: skip
LEFT_QUARTZ = Structure(QUARTZ.lattice, QUARTZ.species, -QUARTZ.frac_coords)
CORUNDUM = crystal(
    167, Lattice.hexagonal(4.759, 12.991), ["Al", "O"], [[0, 0, 0.3522], [0.3063, 0, 0.25]]
)
PEROVSKITE = crystal(
    221, Lattice.cubic(3.905), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
)
GRAPHITE = crystal(
    194, Lattice.hexagonal(2.464, 6.711), ["C", "C"], [[0, 0, 0.25], [1 / 3, 2 / 3, 0.25]]
)
MOS2 = crystal(
    194, Lattice.hexagonal(3.16, 12.30), ["Mo", "S"], [[1 / 3, 2 / 3, 0.25], [1 / 3, 2 / 3, 0.621]]
)
SELENIUM = crystal(152, Lattice.hexagonal(4.366, 4.954), ["Se"], [[0.2254, 0, 1 / 3]])
IODINE = crystal(64, Lattice.orthorhombic(7.136, 4.686, 9.784), ["I"], [[0, 0.1543, 0.1174]])
CARBON_DIOXIDE = crystal(
    205, Lattice.cubic(5.624), ["C", "O"], [[0, 0, 0], [0.1185, 0.1185, 0.1185]]
)


@pytest.mark.parametrize(
    ("structure", "number", "system", "point_group", "prototype"),
    [
        (NACL, 225, "cubic", "m-3m", "AB_cF8_225_4_4"),
        (DIAMOND, 227, "cubic", "m-3m", "A_cF8_227_8"),
        (RUTILE, 136, "tetragonal", "4/mmm", "AB2_tP6_136_2_4"),
        (QUARTZ, 152, "trigonal", "32", "AB2_hP9_152_3_6"),
        (LEFT_QUARTZ, 154, "trigonal", "32", "AB2_hP9_154_3_6"),
        (CORUNDUM, 167, "trigonal", "-3m", "A2B3_hR10_167_12_18"),
        (PEROVSKITE, 221, "cubic", "m-3m", "ABC3_cP5_221_1_1_3"),
        (GRAPHITE, 194, "hexagonal", "6/mmm", "A_hP4_194_2x2"),
        (IODINE, 64, "orthorhombic", "mmm", "A_oC8_64_8"),
    ],
)
def test_labels_of_known_crystals(structure, number, system, point_group, prototype):
    found = symmetry_of(structure)
    assert found.space_group == number
    assert found.crystal_system == system
    assert found.point_group == point_group
    assert found.prototype == prototype


@pytest.mark.parametrize(
    ("structure", "parameters"),
    [
        (NACL, (5.64, 5.64, 5.64, 90, 90, 90)),
        (RUTILE, (4.594, 4.594, 2.959, 90, 90, 90)),
        (QUARTZ, (4.916, 4.916, 5.405, 90, 90, 120)),
        (LEFT_QUARTZ, (4.916, 4.916, 5.405, 90, 90, 120)),
    ],
)
def test_conventional_cell_of_primitive_input(structure, parameters):
    conventional = symmetry_of(structure.get_primitive_structure()).conventional
    assert Lattice(conventional.lattice).parameters == pytest.approx(parameters, abs=1e-6)
    assert len(conventional.numbers) == len(structure)


@pytest.mark.parametrize(
    "structure",
    [NACL, DIAMOND, RUTILE, QUARTZ, CORUNDUM, IODINE, SELENIUM],
    ids=lambda s: s.reduced_formula,
)
def test_conventional_cell_is_that_of_spglib_and_the_same_crystal(structure):
    given = cell_of(structure.get_primitive_structure())
    shifted = Cell(given.lattice, given.positions + np.array([0.123, 0.456, 0.789]), given.numbers)
    conventional = find_symmetry(shifted, SYMPREC).conventional
    lattice, positions, numbers = spglib.standardize_cell(
        shifted, no_idealize=True, symprec=SYMPREC
    )
    np.testing.assert_allclose(conventional.lattice, lattice, atol=1e-9)
    assert np.linalg.det(conventional.lattice) > 0
    for x, z in zip(positions, numbers, strict=True):
        step = conventional.positions[conventional.numbers == z] - x
        assert np.abs(step - np.round(step)).max(axis=1).min() < 1e-6
    # Distances to the neighbours are those of the input: the crystal was not moved or strained.
    before, after = (np.sort(find_neighbours(c, 1.0).distance) for c in (given, conventional))
    scale = len(conventional.numbers) // len(given.numbers)
    np.testing.assert_allclose(after, np.sort(np.repeat(before, scale)), atol=1e-9)


# Space group, lattice, order of the Laue class: the eleven classes, then groups without inversion.
LAUE_CLASSES = [
    (2, Lattice.from_parameters(5, 6, 7, 80, 95, 103), 2),
    (14, Lattice.monoclinic(5, 6, 7, 103), 4),
    (62, Lattice.orthorhombic(5, 6, 7), 8),
    (88, Lattice.tetragonal(6, 9), 8),
    (123, Lattice.tetragonal(6, 9), 16),
    (148, Lattice.hexagonal(7, 9), 6),
    (166, Lattice.hexagonal(7, 9), 12),
    (176, Lattice.hexagonal(7, 9), 12),
    (194, Lattice.hexagonal(7, 9), 24),
    (205, Lattice.cubic(8), 24),
    (225, Lattice.cubic(9), 48),
    (1, Lattice.from_parameters(5, 6, 7, 80, 95, 103), 2),
    (152, Lattice.hexagonal(7, 9), 12),
    (216, Lattice.cubic(9), 48),
]


@pytest.mark.parametrize(("number", "lattice", "order"), LAUE_CLASSES)
def test_laue_rotations(number, lattice, order):
    species = ["C", "N", "O"] if number == 1 else ["C"]  # one atom alone has an inversion centre
    positions = [[0.11, 0.23, 0.37], [0.31, 0.42, 0.05], [0.73, 0.55, 0.81]][: len(species)]
    symmetry = symmetry_of(crystal(number, lattice, species, positions))
    assert symmetry.space_group == number
    rotations = symmetry.laue_rotations.astype(float)
    assert len(rotations) == order
    metric = symmetry.conventional.lattice @ symmetry.conventional.lattice.T
    assert np.abs(rotations.transpose(0, 2, 1) @ metric @ rotations - metric).max() < 1e-6
    found = {r.tobytes() for r in symmetry.laue_rotations}
    assert {(-r).tobytes() for r in symmetry.laue_rotations} == found
    operations = spglib.get_symmetry(symmetry.conventional, symprec=SYMPREC)["rotations"]
    assert {r.astype(np.int8).tobytes() for r in operations} <= found


def test_prototype_does_not_depend_on_names_or_order_of_sites():
    swapped = NACL.copy()
    swapped.replace_species({"Na": "Cl", "Cl": "Na"})
    mixed = Structure(PEROVSKITE.lattice, ["Ti", "Sr", "O", "O", "O"], PEROVSKITE.frac_coords)
    assert symmetry_of(swapped).prototype == symmetry_of(NACL).prototype
    assert symmetry_of(mixed).prototype == symmetry_of(PEROVSKITE).prototype
    reversed_sites = Structure.from_sites(list(RUTILE)[::-1])
    assert symmetry_of(reversed_sites).prototype == symmetry_of(RUTILE).prototype


@pytest.mark.parametrize("structure", [RUTILE, QUARTZ, NACL], ids=lambda s: s.reduced_formula)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_labels_do_not_depend_on_the_cell(structure, data):
    step = st.integers(-2, 2)
    lower = [[1, 0, 0], [data.draw(step), 1, 0], [data.draw(step), data.draw(step), 1]]
    multiple = data.draw(st.sampled_from([[1, 1, 1], [2, 1, 1], [1, 1, 2]]))
    other = structure.get_primitive_structure()
    other = other.make_supercell(np.array(lower) @ np.diag(multiple), in_place=False)
    shift = [data.draw(st.floats(0, 1)) for _ in range(3)]
    other.translate_sites(range(len(other)), shift)
    found, expected = symmetry_of(other), symmetry_of(structure)
    assert found.prototype == expected.prototype
    assert found.conventional.volume == pytest.approx(expected.conventional.volume)
    assert len(found.primitive.numbers) == len(expected.primitive.numbers)
    assert dimension_of(other) == dimension_of(structure)


@pytest.mark.parametrize(
    ("structure", "dimension"),
    [
        (GRAPHITE, 2),
        (DIAMOND, 3),
        (NACL, 3),
        (MOS2, 2),
        (SELENIUM, 1),
        (IODINE, 0),
        (CARBON_DIOXIDE, 0),
        (Structure(Lattice.cubic(12), ["Ar"], [[0, 0, 0]]), 0),
        (Structure(Lattice.orthorhombic(2.3, 12, 12), ["Cu"], [[0, 0, 0]]), 1),
    ],
    ids=["graphite", "diamond", "NaCl", "MoS2", "Se", "I2", "CO2", "Ar", "Cu chain"],
)
def test_dimensionality(structure, dimension):
    assert dimension_of(structure) == dimension


def test_dimensionality_is_that_of_the_largest_part():
    chain_and_atom = Structure(
        Lattice.orthorhombic(2.3, 12, 12), ["Cu", "He"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    assert dimension_of(chain_and_atom) == 1
    # Chains along different axes that do not touch: each is of dimension 1, not 2 or 3 together.
    crossed = Structure(
        Lattice.tetragonal(2.3, 14),
        ["Cu", "Cu"],
        [[0, 0, 0], [0, 0, 0.5]],
    ).make_supercell([[5, 0, 0], [0, 5, 0], [0, 0, 1]], in_place=False)
    kept = [
        site
        for site in crossed
        if (site.frac_coords[2] < 0.25 and abs(site.frac_coords[1]) < 0.01)
        or (site.frac_coords[2] > 0.25 and abs(site.frac_coords[0]) < 0.01)
    ]
    assert len(kept) == 10
    assert dimension_of(Structure.from_sites(kept)) == 1


def test_symmetry_not_found_is_named():
    # Closer than the tolerance: spglib gives up.
    cell = Cell(
        np.eye(3) * 4, np.array([[0, 0, 0], [0.001, 0, 0]]), np.array([6, 6], dtype=np.intc)
    )
    with pytest.raises(Rejected) as error:
        find_symmetry(cell, 0.1)
    assert error.value.reason == "symmetry_not_found"
