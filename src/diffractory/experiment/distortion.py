"""Elliptical distortion of a scan of many grains, from the rings that its spots form."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage

SECTORS, FILLED = 18, 12
"""A ring has spots in so many of the sectors of 10 degree (g and -g are in one)."""

LARGEST = 0.06
"""Of the distortions looked for."""

BIN = 0.0025
"""Of the logarithm of distances, in which rings are looked for."""

NEAR = 4
"""So many of these from a ring, a spot may belong to it."""

RINGS = 8
"""Rings used at most."""

SHARP = 0.8
"""Standard deviation of the spots of a ring, as a share of that of evenly spread ones."""

STEPS = 5
"""Of the least squares; each chooses the spots on rings anew."""

SIGNIFICANT = 4.0
"""Standard errors from which on a distortion is taken for real."""


class Ellipse(NamedTuple):
    """How circles are distorted: r is multiplied by 1 + a cos(2 phi) + b sin(2 phi).

    phi counts from +column to +row.

    Attributes
    ----------
    strain
        a and b, shape (2,).
    error
        Standard error of both.
    """

    strain: NDArray[np.float64]
    error: float

    @property
    def undo(self) -> NDArray[np.float64]:
        """Return the matrix, shape (2, 2), from measured to undistorted (row, column) offsets.

        It keeps areas. Identity if the distortion is not significant.
        """
        if not np.hypot(*self.strain) > SIGNIFICANT * self.error:
            return np.eye(2)
        return _undo(self.strain)


NONE = Ellipse(np.zeros(2), np.inf)
"""Where nothing can be told."""


def measure_ellipse(offsets: NDArray[np.float64]) -> Ellipse:
    """Return the distortion that spots on rings tell; `NONE` if there are no rings.

    The lattice of a single grain may be oblique by itself: only spots all around tell. First the
    distortion is looked for that makes the histogram of distances sharpest, then refined by least
    squares together with the radii of the rings.

    Parameters
    ----------
    offsets
        Rows and columns of spots from the direct beam, without the direct beam, shape (N, 2).
    """
    whole, *halves = (
        _fit(part) for part in (offsets, offsets[: len(offsets) // 2], offsets[len(offsets) // 2 :])
    )
    if any(np.isinf(half.error) for half in halves):
        return NONE
    # Where there are no rings, each half finds a distortion of its own.
    apart = np.hypot(*(halves[0].strain - halves[1].strain)) / 2
    return Ellipse(whole.strain, max(whole.error, float(apart)))


def _fit(offsets: NDArray[np.float64]) -> Ellipse:
    if len(offsets) < SECTORS:
        return NONE
    ellipse = Ellipse(_sharpest(offsets), np.inf)
    for _ in range(STEPS):
        ellipse = _refined(offsets, ellipse.strain)
        if np.isinf(ellipse.error):
            break
    return ellipse


def _undo(strain: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b = strain
    return linalg.expm(np.array([[a, -b], [-b, -a]]))


def _polar(offsets: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    row, column = offsets.T
    return np.log(np.hypot(row, column)), np.arctan2(row, column)


def _sharpest(offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a and b of a grid for which the histogram of distances has the largest squares."""
    distance, angle = _polar(offsets)
    grid = np.linspace(-LARGEST, LARGEST, 25)
    strains = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    strains = strains[np.hypot(*strains.T) <= LARGEST]
    wave = np.stack([np.cos(2 * angle), np.sin(2 * angle)])
    cell = ((distance - strains @ wave - distance.min() + LARGEST) / (2 * BIN)).astype(int)
    size = cell.max() + 1
    flat = (cell + size * np.arange(len(strains))[:, None]).ravel()
    counts = np.bincount(flat, minlength=size * len(strains)).reshape(-1, size)
    sharpness = (ndimage.gaussian_filter1d(counts.astype(float), 1, axis=1) ** 2).sum(axis=1)
    return strains[sharpness.argmax()]


def _refined(offsets: NDArray[np.float64], strain: NDArray[np.float64]) -> Ellipse:
    """Return the distortion by least squares over the spots of the rings that there are."""
    distance, angle = _polar(offsets @ _undo(strain).T)
    ring = _rings(distance, angle)
    used = ring >= 0
    if not used.any():
        return NONE
    number = np.unique(ring[used], return_inverse=True)[1]
    wave = np.stack([np.cos(2 * angle[used]), np.sin(2 * angle[used])], axis=1)
    # Taking the mean of each ring off solves for its radius.
    count = np.bincount(number)

    def centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values - (np.bincount(number, values) / count)[number]

    wave = np.stack([centred(wave[:, 0]), centred(wave[:, 1])], axis=1)
    rest = centred(distance[used])
    change, *_ = np.linalg.lstsq(wave, rest, rcond=None)
    spread = np.sqrt(((rest - wave @ change) ** 2).mean())
    error = spread * np.sqrt(np.linalg.inv(wave.T @ wave).diagonal().max())
    return Ellipse(strain + change, float(error))


def _rings(distance: NDArray[np.float64], angle: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the ring of each spot by the logarithm of its distance; -1 if it is on none."""
    cell = ((distance - distance.min()) / BIN).astype(int) + 2 * NEAR
    counts = np.bincount(cell, minlength=cell.max() + 2 * NEAR)
    counts = ndimage.gaussian_filter1d(counts.astype(float), 1.5)
    peaks = np.flatnonzero(
        (counts == ndimage.maximum_filter1d(counts, 2 * NEAR + 1)) & (counts > 0)
    )
    peaks = peaks[np.argsort(-counts[peaks], kind="stable")[:RINGS]]
    ring = np.full(len(distance), -1)
    sector = (angle % np.pi / np.pi * SECTORS).astype(int) % SECTORS
    evenly = (2 * NEAR + 1) * BIN / np.sqrt(12)
    for number, peak in enumerate(peaks):
        near = abs(cell - peak) <= NEAR
        if len(np.unique(sector[near])) >= FILLED and np.std(distance[near]) < SHARP * evenly:
            ring[near] = number
    return ring
