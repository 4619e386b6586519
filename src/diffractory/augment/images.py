"""What a detector and its beam do to images: pure functions of an image, a parameter and draws.

Images are float32, the direct beam on their middle. Parameter 0 changes nothing, but for `poisson`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.augment.ranges import draw
from diffractory.store import InputError, generator

EXACT_BELOW = 100.0
"""Means below which Poisson counts are drawn exactly; above, within 2e-5 in total variation."""


@dataclass(frozen=True)
class Image:
    """An image and its scale.

    Attributes
    ----------
    pixels
        Shape (rows, columns), float32; after `poisson` in electrons, before in any unit.
    pixel_size
        In 1/angstrom.
    counted
        Whether the values are electrons.
    """

    pixels: NDArray[np.float32]
    pixel_size: float
    counted: bool = False

    @property
    def q(self) -> NDArray[np.float64]:
        """Distance of the middle of each pixel from the direct beam, 1/angstrom."""
        rows, columns = ((np.arange(n) - (n - 1) / 2) * self.pixel_size for n in self.pixels.shape)
        return np.hypot(rows[:, None], columns)


def shift_beam(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    """Move the image by normal draws of this standard deviation per axis, 1/angstrom."""
    shift = rng.normal(0, deviation / image.pixel_size, 2)
    return replace(image, pixels=_resampled(image.pixels, np.eye(2), shift))


def distort(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    """Stretch the image along a random axis and shrink it across, to an ellipse of equal area.

    The ratio of the axes of what was a circle has a logarithm of this standard deviation.
    """
    stretch, angle = math.exp(rng.normal(0, deviation) / 2), rng.uniform(0, np.pi)
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back = axes @ np.diag([1 / stretch, stretch]) @ axes.T
    return replace(image, pixels=_resampled(image.pixels, back, np.zeros(2)))


def blur(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    """Spread each point as a Gaussian of this standard deviation, 1/angstrom; draws nothing.

    What falls off the edges is lost.
    """
    rows, columns = (_blurring(n, deviation / image.pixel_size) for n in image.pixels.shape)
    blurred: NDArray[np.float32] = np.matmul(rows @ image.pixels, columns.T)
    return replace(image, pixels=blurred)


def bin_pixels(image: Image, side: float, rng: np.random.Generator) -> Image:
    """Add up squares of ``side`` by ``side`` pixels; draws nothing.

    Raises
    ------
    InputError
        If the squares do not fill the image: the direct beam would not be on the middle any more.
    """
    n = int(side) or 1
    rows, columns = image.pixels.shape
    if rows % n or columns % n:
        raise InputError(
            f"an image of {rows} x {columns} pixels has no whole number of squares of {n} x "
            f"{n}: choose a divisor for bin"
        )
    values = image.pixels.reshape(rows // n, n, columns // n, n).sum(axis=(1, 3))
    return replace(image, pixels=values, pixel_size=image.pixel_size * n)


def add_background(image: Image, share: float, width: float, rng: np.random.Generator) -> Image:
    """Add a Gaussian about the direct beam, as of inelastic scattering; draws nothing.

    Parameters
    ----------
    share
        Its sum relative to that of the image.
    width
        Its standard deviation, 1/angstrom.
    """
    halo = np.exp(-0.5 * (image.q / width) ** 2)
    halo *= share * image.pixels.sum(dtype=np.float64) / halo.sum()
    return replace(image, pixels=image.pixels + halo.astype(np.float32))


def add_relative_noise(image: Image, level: float, rng: np.random.Generator) -> Image:
    """Add normal noise to each pixel, in proportion to its value.

    Parameters
    ----------
    level
        Standard deviation relative to the value.
    """
    noise = rng.standard_normal(image.pixels.shape, dtype=np.float32)
    return replace(image, pixels=image.pixels * (1 + np.float32(level) * noise))


def count_electrons(image: Image, dose: float, rng: np.random.Generator) -> Image:
    """Return Poisson counts, of which the sum over the image is expected to be ``dose``.

    Negative values count as 0.
    """
    mean = np.maximum(image.pixels, 0).astype(np.float64)
    mean *= dose / max(mean.sum(), np.finfo(float).tiny)
    noise = rng.standard_normal(mean.shape, dtype=np.float32)
    values = _many_counts(mean, noise)
    few = mean < EXACT_BELOW
    values[few] = rng.poisson(mean[few])
    return replace(image, pixels=values, counted=True)


def add_readout_noise(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    """Add normal noise of this standard deviation to each pixel, electrons.

    Raises
    ------
    InputError
        If the values are no electrons.
    """
    _need_counts(image, "readout")
    noise = rng.standard_normal(image.pixels.shape, dtype=np.float32)
    return replace(image, pixels=image.pixels + np.float32(deviation) * noise)


def saturate(image: Image, most: float, rng: np.random.Generator) -> Image:
    """Clip at the most electrons that a pixel counts, or at nothing for 0; draws nothing.

    Raises
    ------
    InputError
        If the values are no electrons.
    """
    _need_counts(image, "saturate")
    return replace(image, pixels=np.minimum(image.pixels, most or np.inf, dtype=np.float32))


def kill_pixels(image: Image, fraction: float, rng: np.random.Generator) -> Image:
    """Set each pixel to 0 with the probability ``fraction``."""
    dead = rng.random(image.pixels.shape, dtype=np.float32) < fraction
    return replace(image, pixels=np.where(dead, np.float32(0), image.pixels))


def _need_counts(image: Image, name: str) -> None:
    if not image.counted:
        raise InputError(f"{name} is in electrons: put poisson before it in the list")


Step = Callable[[Image, float, np.random.Generator], Image]

STEPS: dict[str, Step] = {
    "centre_shift": shift_beam,
    "ellipse": distort,
    "point_spread": blur,
    "bin": bin_pixels,
    "relative_noise": add_relative_noise,
    "poisson": count_electrons,
    "readout": add_readout_noise,
    "saturate": saturate,
    "dead_pixels": kill_pixels,
}
"""What a step of a list is called; `background` has two parameters and is not among them."""


def detect(
    image: Image, steps: Sequence[Mapping[str, Any]], seed: int, item: str
) -> tuple[Image, dict[str, float]]:
    """Apply the steps of a list, one after the other.

    Parameters
    ----------
    steps
        Mappings of one name, a key of `STEPS` or ``background``, to its parameter: a number, or a
        list of two that it is drawn between; of ``poisson``, its logarithm. ``background`` has
        the keys ``share`` and ``width``.
    seed
        Global seed.
    item
        Name of the image, which the draws belong to.

    Returns
    -------
    The image, and the parameters that were drawn, by name.

    Raises
    ------
    InputError
        If a step cannot be applied.
    """
    drawn = {}
    for position, step in enumerate(steps):
        ((name, value),) = step.items()
        rng = generator(seed, f"detect/{position}/{name}", item)
        if name == "background":
            share = drawn["background"] = draw(value["share"], rng)
            image = add_background(image, share, value["width"], rng)
        else:
            parameter = draw(value, rng, logarithmic=name == "poisson")
            if isinstance(value, list):
                drawn[name] = parameter
            image = STEPS[name](image, parameter, rng)
    return image, drawn


def without_noise(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the steps of a list that draw nothing and add nothing: those for a reference."""
    quiet = ("point_spread", "bin")
    return [step for step in steps if next(iter(step)) in quiet]


@lru_cache(maxsize=8)
def _blurring(n: int, deviation: float) -> NDArray[np.float32]:
    """Return the matrix that spreads n points as Gaussians (in pixels), shape (n, n)."""
    if deviation == 0:
        return np.eye(n, dtype=np.float32)
    edges = np.arange(n + 1) - 0.5
    scale = 1 / (deviation * math.sqrt(2))
    below = np.array(
        [[math.erf(x) for x in row] for row in (edges[:, None] - np.arange(n)) * scale]
    )
    return (np.diff(below, axis=0) / 2).astype(np.float32)


@numba.njit(cache=True)
def _many_counts(mean: NDArray[np.float64], noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return Poisson counts of large means from normal draws, by a Cornish-Fisher expansion.

    To order 1/sqrt(mean), with the variance 1/12 of rounding taken off.
    """
    counts = np.empty(mean.shape, dtype=np.float32)
    for i in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            m, z = mean[i, j], np.float64(noise[i, j])
            root = np.sqrt(m) + 1e-300
            x = m + root * z + (z * z - 1) / 6 - (z**3 + 2 * z) / (72 * root)
            counts[i, j] = np.floor(x + 0.5)
    return counts


@numba.njit(cache=True)
def _resampled(
    values: NDArray[np.float32], back: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Move an image by linear interpolation; what comes from outside is 0.

    Parameters
    ----------
    back
        Takes (row, column) about the middle to where they come from, shape (2, 2).
    shift
        Rows and columns that the image moves by.
    """
    rows, columns = values.shape
    result = np.zeros_like(values)
    for i in range(rows):
        for j in range(columns):
            y, x = i - shift[0] - (rows - 1) / 2, j - shift[1] - (columns - 1) / 2
            r = back[0, 0] * y + back[0, 1] * x + (rows - 1) / 2
            c = back[1, 0] * y + back[1, 1] * x + (columns - 1) / 2
            top, left = int(np.floor(r)), int(np.floor(c))
            u, v = r - top, c - left
            for di in range(2):
                for dj in range(2):
                    k, m = top + di, left + dj
                    if 0 <= k < rows and 0 <= m < columns:
                        weight = (u if di else 1 - u) * (v if dj else 1 - v)
                        result[i, j] += np.float32(weight) * values[k, m]
    return result
