"""From the pixels of an image to those that the networks read."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from diffractory.errors import InputError

LEAST_COVER = 0.9
"""Share of the pixels of a grid that an image must reach; the others take its nearest value."""


class BadImageError(Exception):
    """An image that cannot be used.

    Attributes
    ----------
    reason
        One word: ``unreadable``, ``shape``, ``not_finite``, ``too_small`` or ``dark``.
    detail
        In words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Grid:
    """The pixels that networks read, the direct beam on ((rows - 1) / 2, (columns - 1) / 2).

    Attributes
    ----------
    shape
        Rows (along +q_y) and columns (along +q_x).
    pixel_size
        In 1/angstrom.
    beam_stop
        Pixels whose middle is nearer than this to the direct beam are dark, 1/angstrom.
    """

    shape: tuple[int, int]
    pixel_size: float
    beam_stop: float

    @cached_property
    def q(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return q_y of the rows and q_x of the columns, 1/angstrom."""
        rows, columns = (np.arange(n, dtype=float) - (n - 1) / 2 for n in self.shape)
        return rows * self.pixel_size, columns * self.pixel_size

    @cached_property
    def lit(self) -> NDArray[np.bool_]:
        """Return which pixels are not under the beam stop, shape (rows, columns)."""
        qy, qx = self.q
        return np.hypot(qy[:, None], qx) >= self.beam_stop

    def normalized(self, image: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return an image of this shape, dark under the beam stop and of mean 1 elsewhere.

        Raises
        ------
        BadImageError
            If its mean is not above 0.
        """
        mean = image[self.lit].mean(dtype=np.float64)
        if not mean > 0:
            raise BadImageError("dark", f"the mean outside of the beam stop is {mean:.3g}")
        return np.where(self.lit, image / mean, 0).astype(np.float32)


@dataclass(frozen=True)
class Geometry:
    """How images were taken.

    Attributes
    ----------
    pixel_size
        In 1/angstrom; None for images that are on the grid of the networks already.
    centre
        Row and column of the direct beam, from 0; None to find it in each image.
    rotation
        Angle from the +q_x axis of the networks to that of the image, degree, from +q_x to +q_y.
    background
        What the camera adds to each pixel, in the unit of the image.
    """

    pixel_size: float | None = None
    centre: tuple[float, float] | None = None
    rotation: float = 0.0
    background: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what does not go together.

        Raises
        ------
        InputError
            If the pixel size is not above 0, or missing although there is a centre or a rotation.
        """
        if self.pixel_size is None and (self.centre is not None or self.rotation):
            raise InputError("a centre or a rotation needs the pixel size, in 1/angstrom, too")
        if self.pixel_size is not None and self.pixel_size <= 0:
            raise InputError(f"a pixel size must be above 0 1/angstrom, not {self.pixel_size}")


def to_grid(image: NDArray[np.floating], geometry: Geometry, grid: Grid) -> NDArray[np.float32]:
    """Return an image as the networks read it, shape (rows, columns) of the grid.

    A pixel of the grid is the mean of the image over its area, with cubic splines between the
    pixels of the image.

    Parameters
    ----------
    image
        Any unit, shape (any, any).

    Raises
    ------
    BadImageError
        If the image has another shape than the grid and no pixel size is given, does not reach
        over the grid, has values that are not finite, or nothing outside of the beam stop.
    """
    if not np.isfinite(image).all():
        bad = np.count_nonzero(~np.isfinite(image))
        raise BadImageError("not_finite", f"{bad} pixels are NaN or infinite")
    values = image.astype(np.float32) - np.float32(geometry.background)
    if geometry.pixel_size is None:
        if image.shape != grid.shape:
            raise BadImageError(
                "shape", f"{_by(image.shape)} pixels, not {_by(grid.shape)}, and no pixel size"
            )
        return grid.normalized(values)
    centre = np.array(geometry.centre or find_centre(values))
    ratio = grid.pixel_size / geometry.pixel_size
    cos, sin = np.cos(np.radians(geometry.rotation)), np.sin(np.radians(geometry.rotation))
    # Rows and columns of the image from those of the grid, both from the direct beam.
    to_image = ratio * np.array([[cos, -sin], [sin, cos]])
    _check_cover(to_image, centre, image.shape, grid)
    # So many points along a pixel of the grid that no pixel of the image is passed over.
    fine = int(np.ceil(ratio))
    shape = [n * fine for n in grid.shape]
    points = ndimage.affine_transform(
        values,
        to_image / fine,
        offset=centre - to_image @ ((np.array(shape) - 1) / (2 * fine)),
        output_shape=shape,
        mode="nearest",
    )
    rows, columns = grid.shape
    return grid.normalized(points.reshape(rows, fine, columns, fine).mean(axis=(1, 3)))


def _check_cover(
    to_image: NDArray[np.float64], centre: NDArray[np.float64], shape: tuple[int, ...], grid: Grid
) -> None:
    rows, columns = (values / grid.pixel_size for values in grid.q)
    along = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    places = along @ to_image.T + centre
    cover = ((places >= -0.5) & (places <= np.array(shape) - 0.5)).all(axis=-1).mean()
    if cover < LEAST_COVER:
        raise BadImageError(
            "too_small",
            f"reaches {cover:.0%} of the {_by(grid.shape)} pixels of {grid.pixel_size:g} "
            f"1/angstrom about the direct beam at row {centre[0]:.1f}, column {centre[1]:.1f}",
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def find_centre(image: NDArray[np.floating]) -> tuple[float, float]:
    """Return row and column of the best centre of inversion, to a part of a pixel.

    I(q) = I(-q) for a flat Ewald sphere, so the image is most like its own by half a turn about the
    direct beam: there the correlation of both, a convolution of the image with itself, is largest.

    Raises
    ------
    BadImageError
        If the image is the same everywhere.
    """
    deviation = image - image.mean(dtype=np.float64).astype(np.float32)
    if not deviation.any():
        raise BadImageError("dark", "all pixels have one value")
    shape = [fft.next_fast_len(2 * n + 1, real=True) for n in image.shape]
    likeness = fft.irfft2(fft.rfft2(deviation, shape) ** 2, shape)
    peak = np.unravel_index(likeness.argmax(), likeness.shape)
    row, column = (_vertex(likeness, peak, axis) / 2 for axis in (0, 1))
    return row, column


def _vertex(values: NDArray[np.floating], peak: tuple[Any, ...], axis: int) -> float:
    """Return where the parabola through a peak and its two neighbours has its vertex."""
    line = np.take(values, peak[1 - axis], axis=1 - axis).astype(np.float64)
    left, middle, right = line[peak[axis] - 1], line[peak[axis]], line[(peak[axis] + 1) % len(line)]
    return float(peak[axis] + 0.5 * (left - right) / (left - 2 * middle + right))
