"""Crystals of any origin as flat arrays, and distances between their atoms, in compiled code."""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.structures.reading import Cell

MIN_VOLUME = 0.1
"""A cell with less is none, cubic angstrom (T. Xie et al., ICLR 2022)."""

MAX_LENGTH = 1e4
"""A cell with a longer lattice vector is none, angstrom."""

COINCIDENT = 1e-8
"""Sites that are closer are at one place, angstrom."""

MOST_IMAGES = 1_000_000
"""Images of a cell beyond which it is far too small or flat to go on."""

MOST_STEPS = 10_000
"""Steps of the reduction of a basis; one that takes more is left as it is then."""

OPEN = 1e5
"""A face of a Voronoi cell that reaches half as far is not closed, angstrom."""


class Packed(NamedTuple):
    """Those of M crystals that have a proper cell, U of them, with N atoms in all.

    Attributes
    ----------
    usable
        Which of the M they are, shape (M,).
    lattices
        Rows are lattice vectors, angstrom, shape (U, 3, 3).
    positions
        Fractional coordinates, shape (N, 3).
    numbers
        Atomic numbers, shape (N,).
    offsets
        Atoms of crystal u are offsets[u]:offsets[u + 1], shape (U + 1,).
    """

    usable: NDArray[np.bool_]
    lattices: NDArray[np.float64]
    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]
    offsets: NDArray[np.int64]


def finite(cells: Sequence[Cell]) -> NDArray[np.bool_]:
    """Tell which crystals hold no NaN or infinity, shape (M,)."""
    return np.array(
        [np.isfinite(cell.lattice).all() and np.isfinite(cell.positions).all() for cell in cells],
        dtype=np.bool_,
    )


def pack(cells: Sequence[Cell]) -> Packed:
    """Return the crystals that have atoms, finite numbers and a cell of sensible size."""
    usable = finite(cells) & np.array([len(cell.numbers) > 0 for cell in cells], dtype=np.bool_)
    for m in np.flatnonzero(usable).tolist():
        cell = cells[m]
        usable[m] = cell.volume >= MIN_VOLUME and np.abs(cell.lattice).max() <= MAX_LENGTH
    kept = [cells[m] for m in np.flatnonzero(usable).tolist()]
    offsets = np.concatenate([[0], np.cumsum([len(cell.numbers) for cell in kept], dtype=np.int64)])
    return Packed(
        usable,
        np.array([cell.lattice for cell in kept], dtype=np.float64).reshape(-1, 3, 3),
        np.concatenate([np.empty((0, 3)), *(cell.positions for cell in kept)]),
        np.concatenate([np.empty(0, np.int64), *(cell.numbers for cell in kept)]).astype(np.int64),
        offsets,
    )


def elongation(packed: Packed) -> NDArray[np.float64]:
    """Return the longest vector of a reduced basis over the cube root of the volume, shape (U,)."""
    return np.array(
        [
            np.linalg.norm(reduced_basis(lattice), axis=1).max()
            / np.cbrt(abs(np.linalg.det(lattice)))
            for lattice in packed.lattices
        ]
    )


def closest_pairs(packed: Packed, reach: float) -> NDArray[np.float64]:
    """Return the least distance of two atoms of each crystal, but at most ``reach``, shape (U,).

    Lengths are in angstrom. An atom and its own image are no pair. It is 0 for a cell so flat that
    it has more than `MOST_IMAGES` images in reach.
    """
    return _closest_pairs(packed.lattices, packed.positions, packed.offsets, reach)


@numba.njit(cache=True)
def _closest_pairs(
    lattices: NDArray[np.float64],
    positions: NDArray[np.float64],
    offsets: NDArray[np.int64],
    reach: float,
) -> NDArray[np.float64]:
    result = np.empty(len(lattices))
    for u in range(len(lattices)):
        result[u] = _closest_pair(lattices[u], positions[offsets[u] : offsets[u + 1]], reach)
    return result


@numba.njit(cache=True)
def _closest_pair(
    lattice: NDArray[np.float64], positions: NDArray[np.float64], reach: float
) -> float:
    basis = reduced_basis(lattice)
    sites = wrapped(positions, lattice, basis)
    steps = image_steps(basis, reach)
    if len(steps) == 0:
        return 0.0
    least = reach
    for p in range(len(sites)):
        for q in range(p):
            for s in range(len(steps)):
                squared = 0.0
                for axis in range(3):
                    squared += (sites[p, axis] - sites[q, axis] + steps[s, axis]) ** 2
                least = min(least, np.sqrt(squared))
    return float(least)


@numba.njit(cache=True)
def dot(u: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    """Return the scalar product of two vectors of three numbers."""
    return float(u[0] * v[0] + u[1] * v[1] + u[2] * v[2])


@numba.njit(cache=True)
def cross(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the vector product of two vectors of three numbers."""
    return np.array(
        [
            u[1] * v[2] - u[2] * v[1],
            u[2] * v[0] - u[0] * v[2],
            u[0] * v[1] - u[1] * v[0],
        ]
    )


@numba.njit(cache=True)
def reduced_basis(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a basis of the same lattice with vectors that are nearly as short as can be, (3, 3).

    Selling's reduction: of four vectors with sum zero, as long as two of them include an acute
    angle, one is turned round and added to the other two (E. Selling, J. reine angew. Math. 77,
    143 (1874)).
    """
    four = np.empty((4, 3))
    four[:3] = lattice
    four[3] = -(lattice[0] + lattice[1] + lattice[2])
    for _ in range(MOST_STEPS):
        acute = False
        for i in range(4):
            for j in range(i):
                product = dot(four[i], four[j])
                if product > 1e-9 * (dot(four[i], four[i]) + dot(four[j], four[j])):
                    acute = True
                    for k in range(4):
                        if k not in (i, j):
                            four[k] += four[i]
                    four[i] *= -1
        if not acute:
            break
    lengths = np.array([dot(v, v) for v in four])
    return four[np.argsort(lengths)[:3]]


@numba.njit(cache=True)
def _reciprocal(basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the reciprocal basis as rows, without 2 pi, 1/angstrom, (3, 3)."""
    rows = np.empty((3, 3))
    for axis in range(3):
        rows[axis] = cross(basis[(axis + 1) % 3], basis[(axis + 2) % 3])
    return rows / dot(basis[0], rows[0])


@numba.njit(cache=True)
def wrapped(
    positions: NDArray[np.float64], lattice: NDArray[np.float64], basis: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return fractional positions (N, 3) as Cartesian ones within the cell of another basis."""
    reciprocal = _reciprocal(basis)
    sites = np.zeros((len(positions), 3))
    for n in range(len(positions)):
        x, y, z = positions[n]
        place = x * lattice[0] + y * lattice[1] + z * lattice[2]
        for axis in range(3):
            fraction = dot(place, reciprocal[axis])
            sites[n] += (fraction - np.floor(fraction)) * basis[axis]
    return sites


@numba.njit(cache=True)
def image_steps(basis: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Return lattice vectors (S, 3), all between sites of the cell at 0 and images in reach.

    ``reach`` is in angstrom. None is returned if there are more than `MOST_IMAGES`.
    """
    # An image within reach differs by less than this in each fractional coordinate.
    reciprocal = _reciprocal(basis)
    n = np.empty(3, dtype=np.int64)
    count = 1.0
    for axis in range(3):
        most = reach * np.sqrt(dot(reciprocal[axis], reciprocal[axis]))
        count *= 2 * most + 3
        if count > MOST_IMAGES:
            return np.empty((0, 3))
        n[axis] = int(most) + 1
    steps = np.empty((int(count) + 1, 3))
    s = 0
    for i in range(-n[0], n[0] + 1):
        for j in range(-n[1], n[1] + 1):
            for k in range(-n[2], n[2] + 1):
                steps[s] = i * basis[0] + j * basis[1] + k * basis[2]
                s += 1
    return steps[:s]


@numba.njit(cache=True)
def neighbours(
    sites: NDArray[np.float64], basis: NDArray[np.float64], site: int, reach: float, most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return what is within reach of a site, nearest first: vectors (n, 3), distances, sites (n,).

    Lengths are in angstrom. A row of NaN is returned if there are more than ``most``, or if another
    site is at the same place.

    Parameters
    ----------
    sites
        Cartesian coordinates within the cell of ``basis``, as `wrapped` returns them, shape (N, 3).
    """
    steps = image_steps(basis, reach)
    nothing = np.full((1, 3), np.nan), np.full(1, np.nan), np.zeros(1, dtype=np.int64)
    if len(steps) == 0:
        return nothing
    vectors, distances = np.empty((most + 1, 3)), np.empty(most)
    which = np.empty(most, dtype=np.int64)
    n = 0
    for q in range(len(sites)):
        for s in range(len(steps)):
            for axis in range(3):
                vectors[n, axis] = sites[q, axis] - sites[site, axis] + steps[s, axis]
            distance = np.sqrt(dot(vectors[n], vectors[n]))
            if distance > reach or (q == site and distance < COINCIDENT):
                continue
            if n == most or distance < COINCIDENT:
                return nothing
            distances[n], which[n] = distance, q
            n += 1
    order = np.argsort(distances[:n])
    return vectors[order], distances[order], which[order]


@numba.njit(cache=True)
def voronoi_faces(
    vectors: NDArray[np.float64], distances: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return solid angle (sr) and area (square angstrom) of each neighbour's face, shape (n, 2).

    Both are zero where the Voronoi cell of the site at the origin has no face, and all is NaN if
    the cell is not closed.

    Parameters
    ----------
    vectors, distances
        To the neighbours, nearest first, shapes (n, 3) and (n,), angstrom.
    """
    faces = np.zeros((len(vectors), 2))
    for i in range(len(vectors)):
        corners = _face(vectors, distances, i)
        for k in range(len(corners)):
            if dot(corners[k], corners[k]) > OPEN**2 / 4:
                return np.full((len(vectors), 2), np.nan)
        # A fan of triangles; the solid angle after A. Van Oosterom & J. Strackee, IEEE Trans.
        # Biomed. Eng. BME-30, 125 (1983).
        for k in range(1, len(corners) - 1):
            a, b, c = corners[0], corners[k], corners[k + 1]
            la, lb, lc = np.sqrt(dot(a, a)), np.sqrt(dot(b, b)), np.sqrt(dot(c, c))
            below = la * lb * lc + dot(a, b) * lc + dot(a, c) * lb + dot(b, c) * la
            volume = abs(dot(a, cross(b, c)))
            faces[i, 0] += 2 * np.arctan2(volume, below)
            faces[i, 1] += volume / distances[i]
    return faces


@numba.njit(cache=True)
def _face(
    vectors: NDArray[np.float64], distances: NDArray[np.float64], i: int
) -> NDArray[np.float64]:
    """Return the corners (K, 3) of the face between the site at the origin and neighbour ``i``.

    A large square on the plane halfway to it is cut by the planes halfway to the others.
    """
    axis = np.zeros(3)
    axis[np.argmin(np.abs(vectors[i]))] = OPEN
    u = cross(vectors[i], axis) / distances[i]
    v = cross(vectors[i], u) / distances[i]
    corners = np.empty((4, 3))
    for k in range(3):
        corners[:, k] = vectors[i, k] / 2
        corners[0, k] += u[k]
        corners[1, k] += v[k]
        corners[2, k] -= u[k]
        corners[3, k] -= v[k]
    for j in range(len(vectors)):
        farthest = 0.0
        for k in range(len(corners)):
            farthest = max(farthest, dot(corners[k], corners[k]))
        if distances[j] ** 2 / 4 > farthest:
            break  # neither this plane nor one farther away reaches what is left of the face
        if j != i:
            corners = _cut(corners, vectors[j], distances[j] ** 2 / 2)
    return corners


@numba.njit(cache=True)
def _cut(
    corners: NDArray[np.float64], normal: NDArray[np.float64], height: float
) -> NDArray[np.float64]:
    """Return the part of a convex polygon (K, 3) where the product with ``normal`` is smaller."""
    count = len(corners)
    beyond = np.empty(count)
    outside = False
    for k in range(count):
        beyond[k] = dot(corners[k], normal) - height
        outside |= beyond[k] > 0
    if not outside:
        return corners
    kept = np.empty((2 * count, 3))
    n = 0
    for k in range(count):
        following = (k + 1) % count
        if beyond[k] <= 0:
            kept[n] = corners[k]
            n += 1
        if (beyond[k] <= 0) != (beyond[following] <= 0):
            share = beyond[k] / (beyond[k] - beyond[following])
            for axis in range(3):
                step = corners[following, axis] - corners[k, axis]
                kept[n, axis] = corners[k, axis] + share * step
            n += 1
    return kept[:n] if n > 2 else kept[:0]
