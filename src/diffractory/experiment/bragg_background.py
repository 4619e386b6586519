"""What lies under Bragg spots: the background of a frame, and the noise of its pixels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PASSES = 8
"""Times that the background is found from what spots leave free. The first pass takes spots for
background, which raises both it and the noise, so that each pass finds weaker spots."""

OUTSIDE = 3.0
"""A disk this many standard deviations above the background is left out of it."""

WHOLE_FRAME = 0.02
"""Weight of the whole frame's mean, in cells, in the background of a place."""

CONTRAST = 1.2
"""A disk is left out of the background only if it is brighter by this factor than what is all
around it: a halo is not to be mistaken for spots."""

AROUND = 2
"""Cells to each side that a halo fills and a spot does not."""

FAR = 5.0
"""Standard deviations beyond which cells have no part in the background of a place."""

LEAST_GAIN = 1e-7
"""Smallest unit of counts that is told apart from none, fraction of a frame's total."""

MOST_SHIFT = 400.0
"""Most electrons that a pixel is shifted by (see `Background`)."""


@dataclass(frozen=True)
class Background:
    """Background and noise of n frames.

    The variance of a pixel is taken for ``gain * (mean + shift)``: Poisson noise of electrons that
    count for `gain` each, and read-out noise, as the counts of `shift` more would have. What is
    read from a pixel plus `shift` is then nearly a Poisson variable, in units of `gain` (D. L.
    Snyder, A. M. Hammoud, R. L. White, J. Opt. Soc. Am. A 10, 1014 (1993)).

    Attributes
    ----------
    level
        Mean of each pixel without spots, unit of the frames, shape (n, rows, columns).
    gain, shift
        Unit of the frames, shape (n,).
    """

    level: Tensor
    gain: Tensor
    shift: Tensor


def find_background(frames: Tensor, mask: Tensor, disks: Tensor, radius: float) -> Background:
    """Return the background of frames from where there is no spot.

    Frames are divided into cells. The background is a mean of the cells near by, with the weights
    of a Gaussian, but of those alone in which no disk stands out.

    Parameters
    ----------
    frames
        Zero where masked, shape (n, rows, columns).
    mask
        1 where a pixel counts, else 0, shape (1 or n, rows, columns).
    disks
        Sum over the disk about each pixel, shape of the frames.
    radius
        Of the disks, pixels.
    """
    side = max(4, round(radius))
    area = math.pi * radius**2
    square = frames.square()
    total, square, cube, count = (_sums(x, side) for x in (frames, square, square * frames, mask))
    brightest = _cells(disks, side).amax(dim=2).amax(dim=-1)
    around = _opened(brightest).clamp(min=0)
    blur = [_gaussian(n, (4 + radius) / side, frames) for n in total.shape[-2:]]
    prior = WHOLE_FRAME * side**2
    free = (count > 0).to(frames).expand_as(total)
    for _ in range(PASSES):
        weight = free * count
        mean = _total(free * total) / _total(weight).clamp(min=1)
        level = (_spread(free * total, blur) + prior * mean) / (_spread(weight, blur) + prior)
        squares = square - 2 * level * total + level**2 * count
        cubes = cube - 3 * level * square + 3 * level**2 * total - level**3 * count
        sums = [_total(x) for x in (free * squares, free * cubes, weight * level, weight, total)]
        gain, shift = _noise(*sums)
        limit = area * level + OUTSIDE * (area * gain * (level.clamp(min=0) + shift)).sqrt()
        stands_out = (brightest > limit + OUTSIDE * gain) & (
            brightest > CONTRAST * around + OUTSIDE * (gain * around).sqrt()
        )
        free = (~stands_out & (count > 0)).to(frames)
    fine = [_between(n, side, frames) for n in frames.shape[-2:]]
    level = (fine[0] @ level @ fine[1].mT).clamp(min=0)
    return Background(level, gain[:, 0, 0], shift[:, 0, 0])


def _noise(
    squares: Tensor, cubes: Tensor, expected: Tensor, pixels: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gain and shift of frames from sums of deviations to powers, shape (n, 1, 1) each.

    The third power tells electrons from read-out noise: for a mean of m electrons it is
    ``gain**3 m`` and 0, where the square is ``gain**2 m`` and the variance of the noise.
    """
    least = (LEAST_GAIN * total).clamp(min=1e-30)
    pixels, squares = pixels.clamp(min=1), squares.clamp(min=0)
    # Of the cubes of read-out noise, the sum has this standard deviation.
    chance = (15 * (squares / pixels) ** 3 * pixels).sqrt()
    cubes = (cubes - OUTSIDE * chance).clamp(min=0)
    # Below its standard deviation a mean tells nothing, and noise is taken for read-out noise.
    known = (expected > squares.sqrt()) & (expected > 0)
    mean = torch.where(known, expected, 1)
    gain = torch.where(known, torch.minimum((cubes / mean).sqrt(), squares / mean), 0)
    readout = (squares - gain * expected).clamp(min=0) / pixels
    gain = gain.maximum((readout / MOST_SHIFT).sqrt()).maximum(least)
    return gain, readout / gain


def _cells(values: Tensor, side: int) -> Tensor:
    """Return values as (n, cell rows, side, cell columns, side), with zeros at the end."""
    n, rows, columns = values.shape
    padded = torch.nn.functional.pad(values, (0, -columns % side, 0, -rows % side))
    return padded.view(n, padded.shape[1] // side, side, padded.shape[2] // side, side)


def _sums(values: Tensor, side: int) -> Tensor:
    return _cells(values, side).sum(dim=-1).sum(dim=2)


def _total(values: Tensor) -> Tensor:
    return values.sum(dim=(-2, -1), keepdim=True)


def _spread(values: Tensor, blur: list[Tensor]) -> Tensor:
    return blur[0] @ values @ blur[1]


def _gaussian(n: int, deviation: float, like: Tensor) -> Tensor:
    """Return the weights of cells for cells, shape (n, n), 1 for the cell itself."""
    place = torch.arange(n).to(like)
    squared = ((place[:, None] - place) / deviation).square()
    # No weights that are almost 0: a processor is many times slower with the smallest numbers.
    return torch.where(squared < FAR**2, torch.exp(-0.5 * squared), 0)


def _between(pixels: int, side: int, like: Tensor) -> Tensor:
    """Return the weights of cells in pixels, linear between their middles, (pixels, cells)."""
    cells = -(-pixels // side)
    place = ((torch.arange(pixels).to(like) + 0.5) / side - 0.5).clamp(0, cells - 1)
    return (1 - (place[:, None] - torch.arange(cells).to(like)).abs()).clamp(min=0)


def _opened(values: Tensor) -> Tensor:
    """Return values without peaks narrower than `AROUND` (a grey opening)."""
    for sign in (-1, 1):
        for dim in (1, 2):
            values = sign * highest(sign * values, AROUND, dim)
    return values


def highest(values: Tensor, reach: int, dim: int) -> Tensor:
    """Return the highest of the values up to a reach away along one axis, shape of the values."""
    n = values.shape[dim]
    pad = [0, 0] * (2 - dim) + [reach, reach]
    # Of 1, 2, 4 ... neighbours, each from two of the step before.
    result, width = torch.nn.functional.pad(values, pad, value=-torch.inf), 1
    while width < 2 * reach + 1:
        step = min(width, 2 * reach + 1 - width)
        size = result.shape[dim] - step
        result = torch.maximum(result.narrow(dim, 0, size), result.narrow(dim, step, size))
        width += step
    return result.narrow(dim, 0, n)
