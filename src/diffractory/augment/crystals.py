"""What happens to crystals: pure functions of a crystal, parameters and draws.

None changes the crystal that it is given. Atoms keep their order, but for those that are removed.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from diffractory.errors import InputError
from diffractory.simulate.crystal import ATOMIC_NUMBERS, IDENTITY, Crystal

PerElement = float | Mapping[str, float]
"""One number for all atoms; or numbers by element, and ``default`` (else 0) for all others."""


def per_atom(values: PerElement, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the value of each atom by its atomic number, shape (N,).

    Raises
    ------
    InputError
        If a key is no element.
    """
    if not isinstance(values, Mapping):
        return np.full(len(numbers), float(values))
    if unknown := set(values) - set(ATOMIC_NUMBERS) - {"default"}:
        raise InputError(f"{min(unknown)} is no element: give element symbols, or default")
    table = np.full(len(ATOMIC_NUMBERS) + 1, float(values.get("default", 0.0)))
    for element in values.keys() - {"default"}:
        table[ATOMIC_NUMBERS[element]] = values[element]
    return table[numbers]


def select(crystal: Crystal, atoms: NDArray[np.int64]) -> Crystal:
    """Return the crystal with these atoms, in this order, in the same cell."""
    occupancies, displacements = crystal.occupancies, crystal.displacements
    return replace(
        crystal,
        positions=crystal.positions[atoms],
        numbers=crystal.numbers[atoms],
        occupancies=occupancies[atoms] if occupancies.ndim else occupancies,
        displacements=displacements[atoms] if displacements.ndim == 3 else displacements,
    )


def repeat(crystal: Crystal, supercell: ArrayLike) -> Crystal:
    """Return a supercell: all atoms of one cell, then all atoms of the next.

    Parameters
    ----------
    supercell
        Cells along each lattice vector, shape (3,); or the new lattice vectors as rows in units of
        the old ones, shape (3, 3).

    Raises
    ------
    InputError
        If they are not whole numbers, or span no cell.
    """
    given = np.asarray(supercell)
    matrix = np.rint(np.diag(given) if given.ndim == 1 else given).astype(np.int64)
    count = round(abs(np.linalg.det(matrix)))
    if (
        matrix.shape != (3, 3)
        or not count
        or not np.array_equal(matrix[matrix != 0], given[given != 0])
    ):
        raise InputError(f"{given.tolist()} gives no supercell: give three positive whole numbers")
    sides = matrix.clip(max=0).sum(axis=0), matrix.clip(min=0).sum(axis=0)
    points = np.stack(
        np.meshgrid(*map(np.arange, sides[0], sides[1] + 1), indexing="ij"), axis=-1
    ).reshape(-1, 3)
    inverse = np.linalg.inv(matrix)
    points = points[((points @ inverse + 1e-9) // 1 == 0).all(axis=1)]
    atoms = np.tile(np.arange(len(crystal.numbers)), count)
    positions = (crystal.positions @ inverse + (points @ inverse)[:, None]).reshape(-1, 3)
    return replace(select(crystal, atoms), cell=matrix @ crystal.cell, positions=positions)


def remove_atoms(crystal: Crystal, fraction: PerElement, rng: np.random.Generator) -> Crystal:
    """Make vacancies: of each element, take exactly the rounded fraction of its atoms away.

    Raises
    ------
    InputError
        If a fraction is not within 0 to 1, or no atom would be left.
    """
    fractions = per_atom(fraction, crystal.numbers)
    if not ((fractions >= 0) & (fractions <= 1)).all():
        raise InputError(f"a fraction of vacancies of {fraction} is not within 0 to 1")
    kept = np.ones(len(crystal.numbers), dtype=bool)
    for number in np.unique(crystal.numbers):
        atoms = np.flatnonzero(crystal.numbers == number)
        removed = round(fractions[atoms[0]] * len(atoms))
        kept[rng.choice(atoms, removed, replace=False, shuffle=False)] = False
    if not kept.any():
        raise InputError(f"vacancies of {fraction} leave no atom: lower the fraction")
    return select(crystal, np.flatnonzero(kept))


def strain(crystal: Crystal, tensor: ArrayLike) -> Crystal:
    """Move every point r to (1 + e) r: the lattice is strained, fractional coordinates stay.

    Parameters
    ----------
    tensor
        e in Cartesian axes, shape (3, 3); its antisymmetric part turns the crystal.
    """
    return replace(crystal, cell=crystal.cell @ (IDENTITY + np.asarray(tensor)).T)


def random_strain(limit: float, in_plane: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a symmetric strain tensor, shape (3, 3), with uniform components within +-limit.

    In plane, the components along z are 0.
    """
    components = np.tril(rng.uniform(-limit, limit, (3, 3)))
    if in_plane:
        components[2] = 0
    return components + np.tril(components, -1).T


def displace(crystal: Crystal, debye_waller: PerElement, rng: np.random.Generator) -> Crystal:
    """Displace atoms as heat does: each axis Gaussian, with the variance U = B / (8 pi^2).

    The mean square displacements that the crystal has for its form factors stay: set those to 0 if
    they mean the same motion.

    Parameters
    ----------
    debye_waller
        B, square angstrom.
    """
    deviation = np.sqrt(per_atom(debye_waller, crystal.numbers) / (8 * np.pi**2))
    return moved(crystal, deviation[:, None] * rng.standard_normal(crystal.positions.shape))


def moved(crystal: Crystal, distances: NDArray[np.float64]) -> Crystal:
    """Add Cartesian distances to all atoms, angstrom, shape (N, 3)."""
    return replace(crystal, positions=crystal.positions + distances @ np.linalg.inv(crystal.cell))


def matched(crystal: Crystal, other: Crystal) -> Crystal:
    """Return another crystal of equal content as the place where each atom of the first one goes.

    Atoms of each element are paired so that the sum of the squared distances under periodic
    boundary conditions is least (Kuhn, Nav. Res. Logist. Q. 2, 83 (1955)), after the rigid shift
    that makes it least of all that put atoms of the rarest element on each other.

    Returns
    -------
    The other crystal with its atoms in the order of the first one, each in the image nearest to its
    partner.

    Raises
    ------
    InputError
        If the crystals have not the same number of atoms of each element.
    """
    if not np.array_equal(np.sort(crystal.numbers), np.sort(other.numbers)):
        raise InputError(
            f"a crystal of {len(crystal.numbers)} atoms cannot become one of {len(other.numbers)} "
            "atoms or of other elements: give supercells of equal content"
        )
    cell = (crystal.cell + other.cell) / 2
    elements, counts = np.unique(crystal.numbers, return_counts=True)
    rarest = elements[counts.argmin()]
    first = crystal.positions[crystal.numbers == rarest][0]
    best = np.inf
    for start in other.positions[other.numbers == rarest]:
        order, path = _pair(crystal, other, first - start, cell)
        # The mean distance is a rigid shift, and without it the pairs may be others.
        shift = first - start - path.mean(axis=0)
        order, path = _pair(crystal, other, shift, cell)
        square = float(((path @ cell) ** 2).sum())
        if square < best - 1e-9:
            best, found = square, (order, path)
    order, path = found
    return replace(select(other, order), positions=crystal.positions + path)


def _pair(
    crystal: Crystal, other: Crystal, shift: NDArray[np.float64], cell: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the partner of each atom, and the way to it in fractional coordinates, (N, 3)."""
    path = (other.positions + shift)[None] - crystal.positions[:, None]
    path -= np.rint(path)
    squares = ((path @ cell) ** 2).sum(axis=-1)
    squares[crystal.numbers[:, None] != other.numbers] = 1e6  # an atom stays of its element
    atoms, partners = linear_sum_assignment(squares)
    return partners, path[atoms, partners]


def morph(crystal: Crystal, other: Crystal, fraction: float) -> Crystal:
    """Return the crystal this fraction of the straight way to another one.

    Lattice vectors and fractional coordinates are interpolated.

    Parameters
    ----------
    other
        From `matched`: the same atoms in the same order.
    fraction
        From 0 (``crystal``) to 1 (``other``).

    Raises
    ------
    InputError
        If the atoms are not the same.
    """
    if not np.array_equal(crystal.numbers, other.numbers):
        raise InputError(
            "a crystal can only become one with the same atoms: morph it before the steps that "
            "repeat it or remove atoms"
        )
    return replace(
        crystal,
        cell=(1 - fraction) * crystal.cell + fraction * other.cell,
        positions=(1 - fraction) * crystal.positions + fraction * other.positions,
    )
