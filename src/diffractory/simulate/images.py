"""Detector images of spot lists."""

import math
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.store import InputError, Patterns

STRIPS = 16
"""Strips that the part of a disk in a pixel at its edge is cut into."""


@dataclass(frozen=True)
class Detector:
    """A flat detector, its middle on the direct beam.

    The direct beam falls on ((rows - 1) / 2, (columns - 1) / 2), columns count along +q_x and rows
    along +q_y.

    Attributes
    ----------
    shape
        Rows and columns.
    pixel_size
        In 1/angstrom.
    spot
        `disk`, as of a convergent beam, or `gaussian`.
    radius
        Of a disk (the convergence semi-angle over the wavelength), or standard deviation of a
        Gaussian, 1/angstrom.
    beam_stop
        Pixels whose middle is nearer than this to the direct beam are dark, 1/angstrom; 0 for none.
    """

    shape: tuple[int, int]
    pixel_size: float
    spot: Literal["disk", "gaussian"]
    radius: float
    beam_stop: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises
        ------
        InputError
            If a size is not positive, or the kind of spot is unknown.
        """
        if min(self.shape) < 1 or self.pixel_size <= 0 or self.radius <= 0 or self.beam_stop < 0:
            raise InputError(
                "a detector needs a shape, pixel size and spot radius above 0, and a beam stop "
                f"of 0 or more: got {self}"
            )
        if self.spot not in ("disk", "gaussian"):
            raise InputError(f"spots are drawn as disk or gaussian, not as {self.spot!r}")


def render_images(patterns: Patterns, detector: Detector) -> NDArray[np.float32]:
    """Return the images of P patterns, shape (P, rows, columns), fraction of the incident beam.

    Each spot adds its intensity to the sum of its image, or what of it falls on the detector. Spots
    that overlap add up without interference.
    """
    images = np.zeros((len(patterns), *detector.shape), dtype=np.float32)
    middle = (np.array(detector.shape) - 1) / 2
    row = patterns.qy / detector.pixel_size + middle[0]
    column = patterns.qx / detector.pixel_size + middle[1]
    radius = detector.radius / detector.pixel_size
    draw = _draw_disks if detector.spot == "disk" else _draw_gaussians
    draw(images, patterns.offsets, row, column, patterns.intensity, radius)
    if detector.beam_stop:
        y, x = (np.arange(n) - m for n, m in zip(detector.shape, middle, strict=True))
        images[:, np.hypot(y[:, None], x) * detector.pixel_size < detector.beam_stop] = 0
    return images


@numba.njit(cache=True, parallel=True)
def _draw_disks(
    images: NDArray[np.float32],
    offsets: NDArray[np.int64],
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    intensity: NDArray[np.float32],
    radius: float,
) -> None:
    """Add disks (in pixels), with pixels at the edge weighted by their covered area."""
    _, rows, columns = images.shape
    size = int(2 * radius) + 3
    for p in numba.prange(len(images)):
        cover = np.empty((size, size))
        for spot in range(offsets[p], offsets[p + 1]):
            top = int(np.floor(row[spot] - radius + 0.5))
            left = int(np.floor(column[spot] - radius + 0.5))
            total = 0.0
            for i in range(size):
                for j in range(size):
                    cover[i, j] = _covered(top + i - row[spot], left + j - column[spot], radius)
                    total += cover[i, j]
            for i in range(max(0, -top), min(size, rows - top)):
                for j in range(max(0, -left), min(size, columns - left)):
                    if cover[i, j] > 0:
                        images[p, top + i, left + j] += intensity[spot] * cover[i, j] / total


@numba.njit(cache=True)
def _covered(y: float, x: float, radius: float) -> float:
    """Return how much of the unit pixel around (y, x) a disk about the origin covers."""
    distance = np.sqrt(x * x + y * y)
    if distance >= radius + 0.7072:
        return 0.0
    if distance <= radius - 0.7072:
        return 1.0
    low, high = max(y - 0.5, -radius), min(y + 0.5, radius)
    if high <= low:
        return 0.0
    total = 0.0
    for strip in range(STRIPS):
        v = low + (strip + 0.5) / STRIPS * (high - low)
        half = np.sqrt(radius * radius - v * v)
        total += max(min(x + 0.5, half) - max(x - 0.5, -half), 0.0)
    return total / STRIPS * (high - low)


@numba.njit(cache=True, parallel=True)
def _draw_gaussians(
    images: NDArray[np.float32],
    offsets: NDArray[np.int64],
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    intensity: NDArray[np.float32],
    deviation: float,
) -> None:
    """Add Gaussians (in pixels), integrated over each pixel, out to 6 standard deviations."""
    _, rows, columns = images.shape
    reach = int(np.ceil(6 * deviation)) + 1
    size = 2 * reach + 1
    for p in numba.prange(len(images)):
        along = np.empty((2, size))
        for spot in range(offsets[p], offsets[p + 1]):
            top, left = int(np.rint(row[spot])) - reach, int(np.rint(column[spot])) - reach
            for i in range(size):
                along[0, i] = _gaussian_pixel(top + i - row[spot], deviation)
                along[1, i] = _gaussian_pixel(left + i - column[spot], deviation)
            for i in range(max(0, -top), min(size, rows - top)):
                for j in range(max(0, -left), min(size, columns - left)):
                    images[p, top + i, left + j] += intensity[spot] * along[0, i] * along[1, j]


@numba.njit(cache=True)
def _gaussian_pixel(x: float, deviation: float) -> float:
    """Return the integral of a normal distribution over the unit interval around x."""
    scale = 1 / (deviation * math.sqrt(2))
    return 0.5 * (math.erf((x + 0.5) * scale) - math.erf((x - 0.5) * scale))
