"""Orientations of a crystal in the beam: zone axes and uniform random ones."""

import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.crystal import Crystal


def zone_axes(crystal: Crystal, laue: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the shortest lattice directions, one of each set that the Laue group makes equal.

    Parameters
    ----------
    laue
        Operations of the Laue group on fractional coordinates of the cell, shape (M, 3, 3).
    count
        Number of directions to return.

    Returns
    -------
    [uvw] with coprime indices, ordered by length, shape (count, 3).
    """
    height = 1 / np.linalg.norm(crystal.reciprocal, axis=1)
    # Start from the radius of a sphere with enough lattice points if all orbits were full.
    radius = (3 * crystal.volume * count * len(laue) / (4 * np.pi)) ** (1 / 3) + height.max()
    while True:
        axes = [np.arange(-n, n + 1) for n in np.floor(radius / height).astype(int)]
        uvw = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        length = np.linalg.norm(uvw @ crystal.cell, axis=1)
        keep = (length <= radius) & (np.gcd.reduce(uvw, axis=1) == 1)
        uvw, length = uvw[keep], length[keep]
        # Of each orbit, the member with the largest code stays: few minus signs, large u first.
        base = 2 * np.abs(uvw).max() + 1
        code = np.array([base**2, base, 1.0])
        orbit = uvw @ (code @ laue).T  # codes of the images, without the images; exact as floats
        representative = orbit.max(axis=1) == uvw @ code
        uvw, length = uvw[representative], length[representative]
        if len(uvw) >= count:
            order = np.lexsort((-(uvw @ code), np.round(length, 6)))
            return uvw[order[:count]]
        radius *= 1.3


def rotations_about(axis: int, angles: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return right-handed rotations about x, y or z (0, 1, 2) by angles in radian, (..., 3, 3)."""
    result = np.zeros((*np.shape(angles), 3, 3))
    j, k = (axis + 1) % 3, (axis + 2) % 3
    result[..., axis, axis] = 1
    result[..., j, j] = result[..., k, k] = np.cos(angles)
    result[..., k, j] = np.sin(angles)
    result[..., j, k] = -result[..., k, j]
    return result


def rotations_along(
    directions: NDArray[np.float64], angles: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return rotations that turn Cartesian directions into +z, then turn about z.

    Parameters
    ----------
    directions
        Shape (P, 3), of any length but zero.
    angles
        In-plane rotation in radian, shape (P,).

    Returns
    -------
    Shape (P, 3, 3).
    """
    z = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    nearest = np.eye(3)[np.abs(z).argmin(axis=1)]
    x = np.cross(nearest, z)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.cross(z, x)
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=1)


def proper_rotations(crystal: Crystal, laue: NDArray[np.int64]) -> tuple[NDArray[np.float64], bool]:
    """Return the rotations of the crystal's point group, and whether it has inversion.

    Parameters
    ----------
    laue
        Operations of the Laue group on fractional coordinates of the cell, shape (M, 3, 3).

    Returns
    -------
    In Cartesian axes, shape (M', 3, 3): half of the Laue group with inversion, less without.
    """
    proper = laue[np.linalg.det(laue) > 0]
    present = [rotation for rotation in proper if len(crystal.translations(rotation))]
    to_fractional = np.linalg.inv(crystal.cell.T)
    rotations = crystal.cell.T @ np.array(present) @ to_fractional
    return rotations, len(crystal.translations(-np.eye(3))) > 0


def to_fundamental_zone(
    rotations: NDArray[np.float64], symmetry: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return of each set of orientations that show one pattern the one that turns least.

    Orientations drawn uniformly become uniform in the fundamental zone.

    Parameters
    ----------
    rotations
        From crystal Cartesian to laboratory axes, shape (P, 3, 3).
    symmetry
        Proper rotations of the point group in Cartesian axes, shape (M, 3, 3).
    """
    equivalent = rotations[:, None] @ symmetry
    least = np.trace(equivalent, axis1=2, axis2=3).argmax(axis=1)
    return equivalent[np.arange(len(rotations)), least]


def random_rotations(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return rotations drawn uniformly from SO(3), shape (count, 3, 3).

    Unit quaternions from a normal distribution are uniform on their sphere. The first rotations
    drawn do not depend on `count`.
    """
    w, x, y, z = (q := rng.normal(size=(count, 4))).T / np.linalg.norm(q, axis=1)
    return np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], axis=1),
            np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], axis=1),
            np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], axis=1),
        ],
        axis=1,
    )
