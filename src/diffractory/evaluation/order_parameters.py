"""How much the neighbours of an atom look like known motifs: local structure order parameters.

N. E. R. Zimmermann & A. Jain, RSC Adv. 10, 6063 (2020), with the parameters of pymatgen's
``LocalStructOrderParams`` that matminer's preset ``ops`` asks for, in compiled code.
"""

import numba
import numpy as np
from numpy.typing import NDArray

MOST_NEIGHBOURS = 24
"""Largest coordination number of the fingerprint."""

MOTIFS = (1, 5, 3, 5, 3, 3, 2, 2, 3, 3, 3, 4) + (0,) * 12
"""Motifs of each coordination number from 1."""

START = np.concatenate([[0], np.cumsum(np.array(MOTIFS) + 1)])
"""Where each coordination number starts in the fingerprint: its weight, then its motifs."""

ANY, SOUTH = np.inf, 0.75 * np.pi

POLAR = np.array(
    [
        # CN, motif, south pole from (rad), width there, angle (units of pi), offset, width,
        # multiple of the azimuth, largest azimuth (rad)
        (2, 0, ANY, 0, 0.5, 0, 15.15, 0, ANY),  # L-shaped
        (2, 1, ANY, 0, 0.5802777777777778, 0, 13.95, 0, ANY),  # water-like
        (2, 2, ANY, 0, 0.666666666667, 0, 13.25, 0, ANY),  # bent by 120 degrees
        (2, 3, ANY, 0, 0.833333333333333, 0, 12.45, 0, ANY),  # bent by 150 degrees
        (2, 4, ANY, 0, 1, 0, 8.667, 0, ANY),  # linear
        (3, 0, ANY, 0, 0.66666666667, 0, 17.5, 1, ANY),  # trigonal planar
        (3, 1, ANY, 0, 0.6081734479693927, 0, 18.33, 1.5, ANY),  # trigonal non-coplanar
        (3, 2, ANY, 0, 0.5, 0, 15.5, 1, ANY),  # T-shaped
        (4, 0, SOUTH, 13.5, 0.5, 0, 17.7, 1, ANY),  # square co-planar
        (4, 1, ANY, 0, 0.6081734479693927, 0, 18.5, 1.5, ANY),  # tetrahedral
        (4, 2, SOUTH, 11.5, 0.5, 0, 27, 2, SOUTH),  # rectangular see-saw-like
        (4, 3, SOUTH, 12.75, 0.5, 0, 15.75, 1.5, ANY),  # see-saw-like
        (4, 4, ANY, 0, 0.5, 0, 15.5, 1.5, ANY),  # trigonal pyramidal
        (5, 0, ANY, 0, 0.6, 0.2, 19.333, 1, ANY),  # pentagonal planar
        (5, 1, ANY, 0, 0.5, 0, 14.9, 2, ANY),  # square pyramidal
        (5, 2, SOUTH, 12, 0.5, 0, 16.6, 1.5, ANY),  # trigonal bipyramidal
        (6, 0, 2.6179938779914944, 7.5, 0.5, 0.16666667, 25, 1, ANY),  # hexagonal planar
        (6, 1, SOUTH, 15, 0.5, 0, 18, 2, ANY),  # octahedral
        (6, 2, ANY, 0, 0.5, 0, 13.8, 2.5, ANY),  # pentagonal pyramidal
        (7, 0, ANY, 0, 0.5, 0, 12.5, 3, ANY),  # hexagonal pyramidal
        (7, 1, SOUTH, 12.5, 0.5, 0, 14.75, 2.5, ANY),  # pentagonal bipyramidal
        (8, 1, SOUTH, 14.1, 0.5, 0, 13.6, 3, ANY),  # hexagonal bipyramidal
    ]
)
"""Motifs that are seen with one neighbour at the north pole and a second on the prime meridian."""

AXIAL = 1e-12
"""Sine of the angle to the pole below which a neighbour has no azimuth."""


@numba.njit(cache=True)
def motifs(directions: NDArray[np.float64], ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the order parameters of the motifs of n neighbours.

    Parameters
    ----------
    directions
        Unit vectors to the neighbours, shape (n, 3), n <= `MOST_NEIGHBOURS`.
    ranks
        Ascending ranks of the neighbours by weight, the same for equal weights, shape (n,).
    """
    n = len(directions)
    values = np.zeros(START[n] - START[n - 1] - 1)
    if n > 12:
        return values
    cosines = np.clip(directions @ directions.T, -1.0, 1.0)
    if n == 1:
        values[0] = 1.0
    if 9 <= n <= 12:
        values[-3:] = bond_order(cosines)
    if n <= 8 or n == 12:
        angles = np.arccos(cosines)
        for pole in range(n):
            azimuths, axial = _azimuths(directions, cosines[pole], pole)
            for row in range(len(POLAR)):
                if POLAR[row, 0] == n:
                    motif = int(POLAR[row, 1])
                    value = _polar(pole, angles[pole], azimuths, axial, POLAR[row])
                    values[motif] = max(values[motif], value)
            if n == 8:
                values[0] += _body_centred(pole, angles[pole], azimuths, axial, ranks)
            if n == 12:
                value = _cuboctahedral(pole, angles[pole], azimuths, axial)
                values[0] = max(values[0], value)
    return values


@numba.njit(cache=True)
def bond_order(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return q_2, q_4 and q_6 (P. J. Steinhardt et al., Phys. Rev. B 28, 784 (1983)), shape (3,).

    By the addition theorem, q_l^2 is the mean of the Legendre polynomials P_l of all ``cosines``
    between two of the n directions, shape (n, n).
    """
    x = cosines**2
    p2 = (3 * x - 1) / 2
    p4 = (35 * x**2 - 30 * x + 3) / 8
    p6 = (231 * x**3 - 315 * x**2 + 105 * x - 5) / 16
    means = np.array([p2.mean(), p4.mean(), p6.mean()])
    return np.sqrt(np.maximum(means, 0.0))


@numba.njit(cache=True)
def _azimuths(
    directions: NDArray[np.float64], cosines: NDArray[np.float64], pole: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the angles between meridians of neighbours (n, n), and who has no meridian (n,)."""
    n = len(directions)
    meridians = np.zeros((n, 3))
    axial = np.ones(n, dtype=np.bool_)
    for k in range(n):
        across = directions[k] - cosines[k] * directions[pole]
        sine = np.sqrt((across**2).sum())
        if k != pole and sine >= AXIAL:
            axial[k] = False
            meridians[k] = across / sine
    return np.arccos(np.clip(meridians @ meridians.T, -1.0, 1.0)), axial


@numba.njit(cache=True)
def _gauss(x: float) -> float:
    return float(np.exp(-0.5 * x * x))


@numba.njit(cache=True)
def _polar(
    pole: int,
    angles: NDArray[np.float64],
    azimuths: NDArray[np.float64],
    axial: NDArray[np.bool_],
    motif: NDArray[np.float64],
) -> float:
    """Return the order parameter of a motif of `POLAR`, the best over the prime meridians."""
    south, south_width, angle, offset, width, multiple, largest = motif[2:]
    fits = np.exp(-0.5 * (width * (np.abs(angles / np.pi - angle) - offset)) ** 2)
    best = 0.0
    for k in range(len(angles)):
        if k == pole:
            continue
        total, count = 0.0, 0
        if angles[k] < south:
            total, count = fits[k], 1
        for m in range(len(angles)):
            if m in (pole, k) or axial[k]:
                continue
            if angles[m] >= south:
                total += _gauss(south_width * (angles[m] / np.pi - 1))
                count += 1
            elif angles[k] < south and not axial[m] and azimuths[k, m] < largest:
                total += fits[m] * np.cos(multiple * azimuths[k, m]) ** 2
                count += 1
        if count:
            best = max(best, total / count)
    return best


@numba.njit(cache=True)
def _body_centred(
    pole: int,
    angles: NDArray[np.float64],
    azimuths: NDArray[np.float64],
    axial: NDArray[np.bool_],
    ranks: NDArray[np.int64],
) -> float:
    """Return what one pole adds (B. Peters, J. Chem. Phys. 131, 244103 (2009)).

    Of two neighbours only the one of greater weight is the pole, by pymatgen's definition, which
    leaves it to rounding errors if their weights are equal; here each is then by half.
    """
    south, south_width, south_weight = 2.5261129449194057, 15.0, 6.0
    n = len(angles)
    total = 0.0
    for k in range(n):
        if k == pole or ranks[k] < ranks[pole]:
            continue
        part = 0.0
        if angles[k] >= south:
            part = south_weight * _gauss(south_width * (angles[k] / np.pi - 1))
        else:
            sign = 1 if angles[k] > np.pi / 2 else -1
            for m in range(n):
                if m in (pole, k) or axial[k] or axial[m]:
                    continue
                height = (angles[m] - np.pi / 2) / np.arcsin(1 / 3)
                part += sign * np.cos(3 * azimuths[k, m]) * height * _gauss(height) / _gauss(1.0)
        total += part / 2 if ranks[k] == ranks[pole] else part
    return total / (0.5 * n * (6 + (n - 2) * (n - 3)))


@numba.njit(cache=True)
def _cuboctahedral(
    pole: int,
    angles: NDArray[np.float64],
    azimuths: NDArray[np.float64],
    axial: NDArray[np.bool_],
) -> float:
    """Return the order parameter of the cuboctahedron, the best over the prime meridians."""
    south, south_width, south_weight = 2.792526803190927, 28.75, 1.8
    ring = (1.3089969389957472, 1.8325957145940461)
    best = 0.0
    for k in range(len(angles)):
        if k == pole:
            continue
        total, weight = 0.0, 0.0
        if angles[k] >= south:
            total = south_weight * _gauss(south_width * (angles[k] / np.pi - 1))
            weight = south_weight
        for m in range(len(angles)):
            if m in (pole, k) or axial[k] or axial[m]:
                continue
            if angles[m] >= south or not ring[0] < angles[k] < ring[1]:
                continue
            azimuth, height = azimuths[k, m], angles[m] / np.pi
            off = _gauss(0.0556 * (np.cos(azimuth - np.pi / 2) - 0.81649658))
            if ring[0] < angles[m] < ring[1]:
                total += np.cos(azimuth) ** 2 * _gauss(25.5 * (height - 0.5))
                weight += 1
            elif angles[m] < ring[0]:
                total += off * _gauss(31.25 * (height - 1 / 3))
                weight += 1
            elif angles[m] > ring[1]:
                total += off * _gauss(31.25 * (height - 2 / 3))
                weight += 1
        if weight > 0:
            best = max(best, total / weight)
    return best
