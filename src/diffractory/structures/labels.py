"""Labels of a crystal: symmetry, prototype, dimensionality; and the neighbours they need."""

from collections import Counter
from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import numpy as np
import spglib
from ase.data import covalent_radii
from numpy.typing import NDArray
from pymatgen.optimization.neighbors import find_points_in_spheres
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffractory.structures.reading import Cell, Rejected

BOND_TOLERANCE = 0.45
"""Angstrom by which a bond may exceed the sum of covalent radii, as in Open Babel (O'Boyle et al.,
J. Cheminform. 3, 33 (2011)) after Meng & Lewis, J. Comput. Chem. 12, 891 (1991)."""

LAST_SPACE_GROUP = {
    "triclinic": 2,
    "monoclinic": 15,
    "orthorhombic": 74,
    "tetragonal": 142,
    "trigonal": 167,
    "hexagonal": 194,
    "cubic": 230,
}
"""Number of the last space group of each crystal system (International Tables, volume A)."""

FAMILY = {"triclinic": "a", "trigonal": "h"}
"""Letter of the crystal family in Pearson symbols, where it is not the system's initial."""


class Symmetry(NamedTuple):
    """What spglib finds out about a crystal.

    Attributes
    ----------
    space_group
        International number, 1 to 230.
    crystal_system
        One of seven; trigonal and hexagonal by the number of the space group.
    point_group
        Hermann-Mauguin symbol.
    prototype
        See `prototype`.
    conventional
        The standardized conventional cell, not idealized: only the basis changes.
    primitive
        A Niggli-reduced primitive cell, not idealized, sites sorted by atomic number.
    laue_rotations
        See `laue_rotations`.
    """

    space_group: int
    crystal_system: str
    point_group: str
    prototype: str
    conventional: Cell
    primitive: Cell
    laue_rotations: NDArray[np.int8]


def find_symmetry(cell: Cell, symprec: float) -> Symmetry:
    """Label a crystal with spglib (Togo et al., Sci. Technol. Adv. Mater. Meth. 4, 2384822 (2024)).

    Parameters
    ----------
    cell
        Any cell of the crystal.
    symprec
        Distance tolerance in angstrom.

    Raises
    ------
    Rejected
        If spglib finds no symmetry.
    """
    crystal: Any = cell  # spglib takes arrays, but does not say so in its types
    try:
        dataset = spglib.get_symmetry_dataset(crystal, symprec=symprec)
    except spglib.SpglibError as error:
        raise Rejected("symmetry_not_found", str(error)) from error
    if dataset is None:
        raise Rejected("symmetry_not_found", f"spglib finds no symmetry at {symprec} angstrom")
    number, centring = dataset.number, dataset.international[0]
    system = next(name for name, last in LAST_SPACE_GROUP.items() if number <= last)
    _, first = np.unique(dataset.mapping_to_primitive, return_index=True)
    primitive = Cell(cell.lattice, cell.positions[first], cell.numbers[first])
    conventional = _conventional(primitive, dataset)
    return Symmetry(
        number,
        system,
        dataset.pointgroup,
        prototype(
            cell.numbers,
            dataset.crystallographic_orbits,
            len(conventional.numbers) / len(cell.numbers),
            number,
            FAMILY.get(system, system[0]) + centring,
        ),
        conventional,
        niggli_reduced(primitive, dataset.primitive_lattice),
        laue_rotations(dataset.hall_number),
    )


def _conventional(primitive: Cell, dataset: spglib.SpglibDataset) -> Cell:
    """Return the conventional cell, from sites of a primitive one given in the input basis.

    The transformation of spglib takes fractional coordinates to the standard basis, and columns of
    basis vectors the inverse way. As in ``spglib.standardize_cell(no_idealize=True)``, which would
    search for the symmetry again, the origin stays where it is.
    """
    transformation = np.array(dataset.transformation_matrix)
    lattice = np.linalg.inv(transformation).T @ primitive.lattice
    positions = primitive.positions @ transformation.T
    centrings = _lattice_points(dataset.hall_number)
    positions = (positions[:, None] + centrings).reshape(-1, 3) % 1.0
    return Cell(lattice, positions, np.repeat(primitive.numbers, len(centrings)))


@lru_cache
def _operations(hall_number: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Return rotations (M, 3, 3) and translations (M, 3) of a space group in standard setting."""
    operations: Any = spglib.get_symmetry_from_database(hall_number)
    return operations["rotations"].astype(np.int8), operations["translations"]


def _lattice_points(hall_number: int) -> NDArray[np.float64]:
    """Return the translations that centre the conventional cell, shape (M, 3)."""
    rotations, translations = _operations(hall_number)
    return translations[(rotations == np.eye(3)).all(axis=(1, 2))]


def prototype(
    numbers: NDArray[np.intc],
    orbits: NDArray[np.intc],
    scale: float,
    space_group: int,
    bravais: str,
) -> str:
    """Name the structure type, such as ``AB_cF8_225_4_4`` for rock salt.

    Anonymous formula, Pearson symbol, number of the space group, and for each species the
    multiplicities of its orbits in the conventional cell (``4x2.8``: two of four sites, one of
    eight). AFLOW (Mehl et al., Comput. Mater. Sci. 136, S1 (2017)) has Wyckoff letters instead;
    these depend on the choice of origin, multiplicities do not. The label is then the coarser one.

    Parameters
    ----------
    numbers
        Atomic numbers of the sites of any cell, shape (N,).
    orbits
        Index of the orbit of each site, shape (N,).
    scale
        Sites of the conventional cell per site of this one.
    space_group
        International number.
    bravais
        Symbol of the Bravais lattice, such as ``cF``.
    """
    _, first, sizes = np.unique(orbits, return_index=True, return_counts=True)
    multiplicities: dict[int, list[int]] = {}
    for number, size in zip(numbers[first], sizes, strict=True):
        multiplicities.setdefault(int(number), []).append(round(float(size) * scale))
    # Species are ordered by what they do in the structure: names must not matter.
    species = sorted((sum(sizes), sorted(sizes)) for sizes in multiplicities.values())
    unit = gcd(*(total for total, _ in species))
    formula = "".join(
        chr(ord("A") + index) + (str(total // unit) if total > unit else "")
        for index, (total, _) in enumerate(species)
    )
    # As in AFLOW, a rhombohedral lattice counts the sites of its primitive cell.
    sites = sum(total for total, _ in species) // (3 if bravais == "hR" else 1)
    orbit_names = (
        ".".join(f"{size}x{n}" if n > 1 else str(size) for size, n in Counter(sizes).items())
        for _, sizes in species
    )
    pearson = f"{bravais[0]}{bravais[1].replace('A', 'C')}{sites}"
    return f"{formula}_{pearson}_{space_group}_{'_'.join(orbit_names)}"


@lru_cache
def laue_rotations(hall_number: int) -> NDArray[np.int8]:
    """Return the rotations of the Laue class, shape (M, 3, 3), in lexicographic order.

    They act on fractional coordinates (columns) of the conventional cell in the setting of this
    Hall number, which is that of `Symmetry.conventional`.
    """
    rotations, _ = _operations(hall_number)
    return np.unique(np.concatenate([rotations, -rotations]), axis=0)


def niggli_reduced(cell: Cell, lattice: NDArray[np.float64]) -> Cell:
    """Express the sites in the Niggli-reduced basis of ``lattice``, sorted by atomic number."""
    reduced = spglib.niggli_reduce(lattice)
    lattice = np.ascontiguousarray(lattice if reduced is None else reduced)
    positions = cell.positions @ cell.lattice @ np.linalg.inv(lattice) % 1.0
    order = np.argsort(cell.numbers, kind="stable")
    return Cell(lattice, positions[order], cell.numbers[order])


class Neighbours(NamedTuple):
    """Pairs of sites that are close; each pair is listed from both sides.

    Attributes
    ----------
    first, second
        Indices of the sites, shape (M,).
    image
        Lattice translation of the second site in the basis of the lattice, shape (M, 3).
    distance
        In angstrom, shape (M,).
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    image: NDArray[np.float64]
    distance: NDArray[np.float64]


def find_neighbours(cell: Cell, min_distance: float) -> Neighbours:
    """Find all pairs of sites that are bonded, or closer than ``min_distance`` (angstrom).

    Two sites are bonded if their distance is below the sum of their covalent radii (Cordero et al.,
    Dalton Trans. 2008, 2832) plus `BOND_TOLERANCE`.
    """
    # A reduced basis needs few images, however skewed the basis of the file is.
    cell = niggli_reduced(cell, cell.lattice)
    radii = covalent_radii[cell.numbers]
    cartesian = np.ascontiguousarray(cell.positions @ cell.lattice)
    longest = max(min_distance, 2 * radii.max() + BOND_TOLERANCE)
    periodic = np.ones(3, dtype=np.int64)
    pairs = Neighbours(
        *find_points_in_spheres(cartesian, cartesian, longest, periodic, cell.lattice, 1e-8)
    )
    bond = radii[pairs.first] + radii[pairs.second] + BOND_TOLERANCE
    itself = (pairs.first == pairs.second) & ~pairs.image.any(axis=1)
    kept = (pairs.distance < np.maximum(bond, min_distance)) & ~itself
    return Neighbours(*(values[kept] for values in pairs))


def dimensionality(bonds: Neighbours, n_sites: int) -> int:
    """Return 0 for molecules, 1 for chains, 2 for layers, 3 for networks, from the bonds of a cell.

    It is the rank of `walk_spread`, of the connected part where this is largest (Larsen et al.,
    Phys. Rev. Mater. 3, 034003 (2019)).
    """
    return int(np.linalg.matrix_rank(walk_spread(bonds, n_sites), 1e-6, hermitian=True).max())


def walk_spread(bonds: Neighbours, n_sites: int) -> NDArray[np.float64]:
    """Return what spans the lattice translations along closed walks in the periodic bond graph.

    Each site gets the position (in lattice units) that shortens the bonds most, in the sense of
    least squares; where walks close without translation, nothing is left of the bonds.

    Returns
    -------
    Sum of the outer products of the bonds that are left, for each of the P connected parts, shape
    (P, 3, 3), in the basis of ``bonds.image``.
    """
    i, j, image, _ = bonds
    adjacency = coo_array((np.ones(len(i)), (i, j)), shape=(n_sites, n_sites))
    n_parts, part = connected_components(adjacency, directed=False)
    laplacian = np.diag(np.bincount(i, minlength=n_sites)) - adjacency.toarray()
    leaving = np.zeros((n_sites, 3))
    np.add.at(leaving, i, image)
    # The Laplacian leaves each part free to move as a whole; the added term holds it in place.
    position = np.linalg.solve(laplacian + (part[:, None] == part), leaving)
    rest = image + position[j] - position[i]
    spread = np.zeros((n_parts, 3, 3))
    np.add.at(spread, part[i], rest[:, :, None] * rest[:, None, :])
    return spread
