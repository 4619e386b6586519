"""Points of the reciprocal lattice in a sphere."""

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.crystal import Crystal


def index_bounds(crystal: Crystal, g_max: float) -> NDArray[np.int64]:
    """Return the largest |h|, |k|, |l| of reflections with |g| <= g_max, shape (3,)."""
    return np.floor(g_max * np.linalg.norm(crystal.cell, axis=1) + 1e-9).astype(np.int64)


def reflections(crystal: Crystal, g_max: float) -> NDArray[np.int64]:
    """Return hkl of all reflections with |g| <= g_max that the lattice allows, shape (G, 3).

    They ascend in h, then k, then l.
    """
    bounds = index_bounds(crystal, g_max)
    metric = crystal.reciprocal @ crystal.reciprocal.T
    half, _ = half_sphere(*sphere_rows(metric, bounds, g_max), bounds, metric)
    hkl = np.concatenate([-half[half[:, 0] > 0][::-1], half])
    translations = crystal.lattice_translations()
    if len(translations) == 1:
        return hkl
    phases = hkl @ translations.T
    return hkl[(np.abs(phases - np.rint(phases)) < 1e-6).all(axis=1)]


@numba.njit(cache=True)
def sphere_rows(
    metric: NDArray[np.float64], bounds: NDArray[np.int64], g_max: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first l of each row (h, k) with |g| <= g_max, and where the row starts in a list.

    Half of the sphere, h >= 0, says all: the sum over atoms at -g is the conjugate of that at g.
    """
    rows = (bounds[0] + 1) * (2 * bounds[1] + 1)
    first = np.zeros(rows, dtype=np.int64)
    offsets = np.zeros(rows + 1, dtype=np.int64)
    for row in range(rows):
        h, k = row // (2 * bounds[1] + 1), row % (2 * bounds[1] + 1) - bounds[1]
        # g^2 = c l^2 + 2 b l + a
        a = metric[0, 0] * h * h + metric[1, 1] * k * k + 2 * metric[0, 1] * h * k
        b, c = metric[0, 2] * h + metric[1, 2] * k, metric[2, 2]
        square = b * b - c * (a - g_max**2)
        offsets[row + 1] = offsets[row]
        if square >= 0:
            low = int(np.ceil((-b - np.sqrt(square)) / c - 1e-9))
            high = int(np.floor((-b + np.sqrt(square)) / c + 1e-9))
            first[row] = low
            offsets[row + 1] += max(high - low + 1, 0)
    return first, offsets


@numba.njit(cache=True)
def half_sphere(
    first: NDArray[np.int64],
    offsets: NDArray[np.int64],
    bounds: NDArray[np.int64],
    metric: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return hkl, shape (G, 3), and |g|, 1/angstrom, of the list that `sphere_rows` describes."""
    hkl = np.empty((offsets[-1], 3), dtype=np.int64)
    g = np.empty(offsets[-1])
    for row in range(len(first)):
        h, k = row // (2 * bounds[1] + 1), row % (2 * bounds[1] + 1) - bounds[1]
        for i in range(offsets[row], offsets[row + 1]):
            l = first[row] + i - offsets[row]
            hkl[i, 0], hkl[i, 1], hkl[i, 2] = h, k, l
            square = metric[0, 0] * h * h + metric[1, 1] * k * k + metric[2, 2] * l * l
            square += 2 * (metric[0, 1] * h * k + metric[0, 2] * h * l + metric[1, 2] * k * l)
            g[i] = np.sqrt(max(square, 0.0))
    return hkl, g
