"""From what a model says of single positions to a map: pooling, median filter, abstention."""

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffractory.errors import InputError
from diffractory.experiment.preparing import SpotLists
from diffractory.models.pooling import log_probability, pool
from diffractory.store.scan_maps import CLASSIFIED, NOT_CONFIDENT
from diffractory.training.conventions import NEAR_DIRECT

SAME_SPOT = 0.02
"""Spots of neighbouring positions that are nearer than this are one reflection, 1/angstrom."""

N_GROUPS = 231
"""Numbers of space groups, 0 for none among them."""

STRIP = 4096
"""Positions whose spots are compared with their neighbours' at a time, about."""


@dataclass(frozen=True)
class MapSettings:
    """How a map is made of what a model says of single positions.

    Attributes
    ----------
    min_spots
        Positions with fewer diffracted spots are left out.
    median_filter
        Side of the square of positions whose median counts; 1: no filter.
    min_confidence
        Least difference of the two largest probabilities.
    pool
        Whether the positions of one grain are asked about together.
    """

    min_spots: int = 5
    median_filter: int = 5
    min_confidence: float = 0.005
    pool: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises
        ------
        InputError
            If a number is out of its range.
        """
        if self.min_spots < 1:
            raise InputError(f"a position needs at least 1 spot, not {self.min_spots}")
        if self.median_filter < 1 or self.median_filter % 2 == 0:
            raise InputError(
                f"a median filter has an odd number of positions along a side, such as 5, not "
                f"{self.median_filter}"
            )
        if not 0 <= self.min_confidence <= 1:
            raise InputError(f"a confidence is between 0 and 1, not {self.min_confidence:g}")


def decide(
    probability: NDArray[np.float32], state: NDArray[np.int8], settings: MapSettings
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]]:
    """Return the crystal system (-1: abstained), the confidence and the state of each position.

    Parameters
    ----------
    probability
        Of each crystal system, shape (R, C, 7).
    state
        `CLASSIFIED` for positions that count, else why they do not, shape (R, C).
    """
    counts = state == CLASSIFIED
    filtered = median_filter(probability, counts, settings.median_filter)
    ordered = np.sort(filtered, axis=-1)
    confidence = ordered[..., -1] - ordered[..., -2]
    unsure = counts & (confidence < settings.min_confidence)
    state = np.where(unsure, NOT_CONFIDENT, state).astype(np.int8)
    system = np.where(state == CLASSIFIED, filtered.argmax(axis=-1), -1).astype(np.int8)
    return system, confidence, state


@numba.njit(cache=True)
def median_filter(
    probability: NDArray[np.float32], counts: NDArray[np.bool_], size: int
) -> NDArray[np.float32]:
    """Return the median of each class over the neighbours that count; NaN where none is asked for.

    A median of the classes' numbers would find trigonal between tetragonal and hexagonal.

    Parameters
    ----------
    probability
        Shape (R, C, K).
    counts
        Positions that count, shape (R, C); the others neither have nor give a median.
    size
        Positions along a side, odd.
    """
    rows, columns, classes = probability.shape
    result = np.full(probability.shape, np.nan, dtype=np.float32)
    half = size // 2
    values = np.empty((classes, size * size), dtype=np.float32)
    for row in range(rows):
        for column in range(columns):
            if not counts[row, column]:
                continue
            n = 0
            for r in range(max(0, row - half), min(rows, row + half + 1)):
                for c in range(max(0, column - half), min(columns, column + half + 1)):
                    if counts[r, c]:
                        values[:, n] = probability[r, c]
                        n += 1
            for k in range(classes):
                result[row, column, k] = np.median(values[k, :n])
    return result


def grains(
    read: Callable[[NDArray[np.int64]], SpotLists],
    positions: NDArray[np.int64],
    counts: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the grain of each position: those that touch along a side and show the same spots.

    Parameters
    ----------
    read
        Returns the spots of some positions.
    positions
        As ``read`` takes them, shape (R, C).
    counts
        Positions that are looked at, shape (R, C); each of the others is a grain of its own.

    Returns
    -------
    Numbers from 0, shape (R, C).
    """
    rows, columns = positions.shape
    index = np.arange(positions.size).reshape(rows, columns)
    ends = []
    strip = max(1, STRIP // columns)
    for first in range(0, rows, strip):
        part = slice(first, first + strip + 1)  # the next strip's first row too
        local = np.arange(index[part].size).reshape(-1, columns)
        pairs = [(local[:strip, :-1], local[:strip, 1:]), (local[:-1], local[1:])]
        a, b = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
        inside = counts[part].ravel()
        both = inside[a] & inside[b]
        a, b = a[both], b[both]
        same = agree(*read(positions[part].ravel())[:3], a, b)
        ends.append(index[part].ravel()[np.stack([a[same], b[same]])])
    a, b = np.concatenate(ends, axis=1)
    links = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(index.size, index.size))
    return connected_components(links, directed=False)[1].reshape(rows, columns).astype(np.int64)


@numba.njit(cache=True)
def agree(
    offsets: NDArray[np.int64],
    qx: NDArray[np.float32],
    qy: NDArray[np.float32],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return whether patterns a[i] and b[i] each have most of their diffracted spots in the other.

    Parameters
    ----------
    offsets
        Spots of pattern p are offsets[p]:offsets[p+1], shape (P + 1,).
    qx, qy
        1/angstrom, shape (S,).
    """
    result = np.empty(len(a), dtype=np.bool_)
    for i in range(len(a)):
        result[i] = _most_found(offsets, qx, qy, a[i], b[i]) and _most_found(
            offsets, qx, qy, b[i], a[i]
        )
    return result


@numba.njit(cache=True)
def _most_found(
    offsets: NDArray[np.int64], qx: NDArray[np.float32], qy: NDArray[np.float32], a: int, b: int
) -> bool:
    """Return whether more than half of the diffracted spots of pattern a are in pattern b."""
    total = found = 0
    for s in range(offsets[a], offsets[a + 1]):
        if np.hypot(qx[s], qy[s]) < NEAR_DIRECT:
            continue
        total += 1
        for t in range(offsets[b], offsets[b + 1]):
            if np.hypot(qx[s] - qx[t], qy[s] - qy[t]) < SAME_SPOT:
                found += 1
                break
    return 2 * found > total


def pooled_systems(
    probability: NDArray[np.float32], grain: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return, for each position, the geometric mean of the probabilities of its grain.

    Neighbours in a grain show one view of it, and not views as independent as those of several zone
    axes: their number adds nothing, which is a power of 1 in `models.pooling.pool`.

    Parameters
    ----------
    probability
        Of N positions that count, shape (N, 7).
    grain
        Shape (N,).
    """
    order = np.argsort(grain, kind="stable")
    of_grain = pool(log_probability(probability[order]), grain[order], weight=1.0, power=1.0)
    return of_grain[np.unique(grain, return_inverse=True)[1]].astype(np.float32)


def pooled_groups(
    group: NDArray[np.int16], probability: NDArray[np.float32], grain: NDArray[np.int64]
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return, for each position, the three space groups of the highest mean over its grain.

    Parameters
    ----------
    group, probability
        The most probable of N positions that count, and how probable they are, shape (N, 3). All
        others count as 0 in the mean.
    grain
        Shape (N,).
    """
    _, grain, size = np.unique(grain, return_inverse=True, return_counts=True)
    keys, place = np.unique(grain[:, None] * N_GROUPS + group, return_inverse=True)
    mean = np.bincount(place.ravel(), weights=probability.ravel()) / size[keys // N_GROUPS]
    order = np.lexsort((keys, -mean, keys // N_GROUPS))
    of, number, mean = (keys // N_GROUPS)[order], (keys % N_GROUPS)[order], mean[order]
    rank = np.arange(len(of)) - np.searchsorted(of, of)
    best = np.zeros((len(size), 3), dtype=np.int16)
    how = np.zeros((len(size), 3), dtype=np.float32)
    told = rank < 3
    best[of[told], rank[told]] = number[told]
    how[of[told], rank[told]] = mean[told]
    return best[grain], how[grain]
