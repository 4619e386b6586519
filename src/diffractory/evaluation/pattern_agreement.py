"""How well a layer explains a pattern: the R-factor after the best rotation, scale and B."""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.02
"""Farthest that a spot may be from where a layer has it, 1/angstrom."""

SCALES = 0.05
"""Largest relative error of the calibration of a pattern that is looked for."""

DEBYE_WALLER = (-1.0, 2.0)
"""Least and greatest B of a pattern, beyond that of the layer's, that is looked for, square
angstrom."""

ANCHORS = 6
"""Brightest spots of a layer that are laid on those of a pattern in turn."""


class Spots(NamedTuple):
    """Spots of P patterns, flat; those of pattern p are offsets[p]:offsets[p + 1].

    Attributes
    ----------
    offsets
        Shape (P + 1,).
    q
        q_x + i q_y, 1/angstrom, shape (S,).
    amplitude
        Root of the intensity, any unit, shape (S,).
    """

    offsets: NDArray[np.int64]
    q: NDArray[np.complex128]
    amplitude: NDArray[np.float64]


class Agreement(NamedTuple):
    """The best agreement of each pair, shape (N,) each.

    Attributes
    ----------
    r_factor
        0 where all amplitudes agree, 1 and more where none does.
    rotation
        Angle by which the layer has to be turned in its plane, degree.
    scale
        Factor by which the spots of the layer have to be moved away from the direct beam.
    mirrored
        Whether the layer lies on its other side.
    debye_waller
        B by which amplitudes of the layer have to fall off further, square angstrom.
    """

    r_factor: NDArray[np.float64]
    rotation: NDArray[np.float64]
    scale: NDArray[np.float64]
    mirrored: NDArray[np.bool_]
    debye_waller: NDArray[np.float64]


def agreement(
    observed: Spots,
    layers: Spots,
    cells: NDArray[np.float64],
    pairs: NDArray[np.int64],
    q_max: float,
) -> Agreement:
    """Return how well each layer of some pairs explains its pattern.

    Each of the brightest spots of a layer is laid on every spot of the pattern that is about as far
    from the direct beam, the layer on either side. Spots within `TOLERANCE` of one of the layer
    belong together, and the turn and scale that fit these best in the sense of least squares are
    tried too. The R-factor is

        R = sum |A_o - k A_c| / sum A_o

    over the spots of both, with A = 0 where one of them has none: the conventional R1 of
    crystallography for amplitudes, with what only one of both has counted. The amplitudes A_c of
    the layer fall off by a further exp(-B q^2 / 4), with B from the straight line of
    ln(A_o / A_c) over q^2 (A. J. C. Wilson, Nature 150, 152 (1942)) that is weighted by A_o^2. B
    and k, of least squares, are of the spots that belong together, so that a spot that is missing
    costs no more than itself.

    Parameters
    ----------
    observed
        Patterns to explain, O of them.
    layers
        Calculated patterns, L of them, of crystals that are not turned: a along q_x.
    cells
        In-plane lattice vectors as rows, angstrom, shape (L, 2, 2).
    pairs
        Indices of a pattern and a layer, shape (N, 2).
    q_max
        Half the side of the square that the patterns reach over, 1/angstrom.
    """
    found = _agreements(*observed, *layers, cells, pairs, q_max)
    return Agreement(
        found[:, 0], np.degrees(found[:, 1]), found[:, 2], found[:, 3] > 0, found[:, 4]
    )


@numba.njit(cache=True, parallel=True)
def _agreements(
    offsets: NDArray[np.int64],
    q: NDArray[np.complex128],
    amplitude: NDArray[np.float64],
    layer_offsets: NDArray[np.int64],
    layer_q: NDArray[np.complex128],
    layer_amplitude: NDArray[np.float64],
    cells: NDArray[np.float64],
    pairs: NDArray[np.int64],
    q_max: float,
) -> NDArray[np.float64]:
    result = np.empty((len(pairs), 5))
    for n in numba.prange(len(pairs)):
        o, c = pairs[n]
        some = slice(offsets[o], offsets[o + 1])
        theirs = slice(layer_offsets[c], layer_offsets[c + 1])
        result[n] = _best(
            q[some], amplitude[some], layer_q[theirs], layer_amplitude[theirs], cells[c], q_max
        )
    return result


@numba.njit(cache=True)
def _best(
    q: NDArray[np.complex128],
    amplitude: NDArray[np.float64],
    layer_q: NDArray[np.complex128],
    layer_amplitude: NDArray[np.float64],
    cell: NDArray[np.float64],
    q_max: float,
) -> NDArray[np.float64]:
    """Return R-factor, turn (radian), scale, whether mirrored and B, of the best placement."""
    best = np.array([np.inf, 0.0, 1.0, 0.0, 0.0])
    order = np.argsort(-layer_amplitude, kind="mergesort")[:ANCHORS]
    for side in range(2):
        # A mirror across the a axis.
        placed = np.conj(layer_q) if side else layer_q
        table = _table(placed, cell, side)
        for s in order:
            for t in range(len(q)):
                if abs(abs(q[t]) / abs(placed[s]) - 1) > SCALES:
                    continue
                turn = q[t] / placed[s]
                for _ in range(2):
                    turn = _try(
                        q, amplitude, placed, layer_amplitude, cell, side, table, turn, best, q_max
                    )
    return best


@numba.njit(cache=True)
def _lattice(q: complex, cell: NDArray[np.float64], side: int) -> tuple[float, float]:
    """Return h and k of a place in the reciprocal plane of a layer."""
    y = -q.imag if side else q.imag
    return q.real * cell[0, 0] + y * cell[0, 1], q.real * cell[1, 0] + y * cell[1, 1]


@numba.njit(cache=True)
def _table(
    placed: NDArray[np.complex128], cell: NDArray[np.float64], side: int
) -> NDArray[np.int64]:
    """Return the spot at each (h, k), -1 where there is none; negative ones count from behind."""
    most = 0
    for s in range(len(placed)):
        h, k = _lattice(placed[s], cell, side)
        most = max(most, abs(round(h)), abs(round(k)))
    table = np.full((2 * most + 1, 2 * most + 1), -1)
    for s in range(len(placed)):
        h, k = _lattice(placed[s], cell, side)
        table[round(h), round(k)] = s
    return table


@numba.njit(cache=True)
def _try(
    q: NDArray[np.complex128],
    amplitude: NDArray[np.float64],
    placed: NDArray[np.complex128],
    layer_amplitude: NDArray[np.float64],
    cell: NDArray[np.float64],
    side: int,
    table: NDArray[np.int64],
    turn: complex,
    best: NDArray[np.float64],
    q_max: float,
) -> complex:
    """Look whether a placement is better than the best, and return what fits its pairs best."""
    most = (len(table) - 1) // 2
    partner = np.full(len(q), -1)
    taken = np.zeros(len(placed), dtype=np.bool_)
    moment, weight = 0.0 + 0.0j, 0.0
    for t in range(len(q)):
        h, k = _lattice(q[t] / turn, cell, side)
        h, k = round(h), round(k)
        if abs(h) > most or abs(k) > most or table[h, k] < 0:
            continue
        s = table[h, k]
        if abs(q[t] - turn * placed[s]) > TOLERANCE:
            continue
        partner[t], taken[s] = s, True
        moment += q[t] * np.conj(placed[s])
        weight += abs(placed[s]) ** 2
    debye_waller = _wilson(q, amplitude, layer_amplitude, partner)
    calculated = layer_amplitude * np.exp(-debye_waller * np.abs(turn * placed) ** 2 / 4)
    products, squares = 0.0, 0.0
    for t in range(len(q)):
        if partner[t] >= 0:
            products += amplitude[t] * calculated[partner[t]]
            squares += calculated[partner[t]] ** 2
    factor = products / squares if squares else 0.0
    difference = 0.0
    for t in range(len(q)):
        theirs = calculated[partner[t]] if partner[t] >= 0 else 0.0
        difference += abs(amplitude[t] - factor * theirs)
    for s in range(len(placed)):
        there = turn * placed[s]
        if not taken[s] and max(abs(there.real), abs(there.imag)) <= q_max:
            difference += factor * calculated[s]
    r = difference / amplitude.sum()
    if r < best[0]:
        best[0], best[1], best[2], best[3] = r, np.angle(turn), abs(turn), side
        best[4] = debye_waller
    return moment / weight if weight else turn


@numba.njit(cache=True)
def _wilson(
    q: NDArray[np.complex128],
    amplitude: NDArray[np.float64],
    layer_amplitude: NDArray[np.float64],
    partner: NDArray[np.int64],
) -> float:
    """Return B of the spots that have a partner, square angstrom; 0 if all are as far out."""
    both = partner >= 0
    a, b = amplitude[both], layer_amplitude[partner[both]]
    q2 = np.abs(q[both]) ** 2
    counted = (a > 0) & (b > 0)
    if not counted.any():
        return 0.0
    a, b, q2 = a[counted], b[counted], q2[counted]
    weight = a**2 / (a**2).sum()
    away = q2 - (weight * q2).sum()
    variance = (weight * away**2).sum()
    if variance < 1e-9:
        return 0.0
    slope = (weight * away * np.log(a / b)).sum() / variance
    return min(max(-4 * slope, DEBYE_WALLER[0]), DEBYE_WALLER[1])
