"""Bragg spots of frames: where they are, and how much is in them.

A frame is correlated with the probe. Maxima of the correlation that noise alone would hardly make
are spots; their places and intensities are then improved (`bragg_refinement`). All is done for many
frames at a time, on a CPU or a GPU alike.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch import Tensor

from diffractory.errors import InputError
from diffractory.experiment.bragg_background import find_background, highest
from diffractory.experiment.bragg_refinement import (
    Frames,
    Spots,
    Templates,
    counts_in,
    refine,
)

FINE = 8
"""Points along a pixel that a synthesized probe is drawn with."""

LEAST_SEEN = 0.5
"""Spots of which less than this is not masked are left out."""

BESIDE = 1.0
"""What is about a disk is a Gaussian wider than its radius by this, pixels. Narrower ones would
tell disks apart that overlap more, and take the blurred edges of small ones for spots."""

TIE = 1e-3
"""Disks that differ by less than this, as a fraction, may be told apart by their pixels' order."""

MISFIT = 0.1
"""How well background and disks of other spots are known, fraction of their electrons."""

ROUGHLY = 0.75
"""What part of the least intensity and significance a spot needs before it has its best place."""

CHUNK = {"cpu": 2**20, "cuda": 2**24}
"""Pixels that are gone through at a time: 16 and 256 frames of 256 x 256."""


@dataclass(frozen=True)
class Probe:
    """The direct beam without a specimen.

    Attributes
    ----------
    kernel
        Fraction of the beam in each pixel about its middle, shape (2 k + 1, 2 k + 1), its sum 1 and
        its centre of mass on the middle pixel, to within 0.05 pixel.
    radius
        Of the disk, pixels.
    """

    kernel: NDArray[np.float32]
    radius: float


def disk_probe(radius: float, blur: float = 0.5) -> Probe:
    """Return the probe of a round aperture.

    Parameters
    ----------
    radius
        Of the disk, pixels.
    blur
        Standard deviation of the Gaussian that the disk is blurred with, pixels.

    Raises
    ------
    InputError
        If the radius is not above 0, or the blur below 0.
    """
    if not (radius > 0 and blur >= 0):
        raise InputError(
            "a probe needs a radius above 0 and a blur of 0 pixels or more, "
            f"not {radius:g} and {blur:g}"
        )
    half = math.ceil(radius + 3 * blur)
    points = (np.arange((2 * half + 1) * FINE) + 0.5) / FINE - half - 0.5
    disk = (np.hypot(points[:, None], points) <= max(radius, 0.5 / FINE)).astype(np.float64)
    disk = ndimage.gaussian_filter(disk, blur * FINE, mode="constant")
    kernel = disk.reshape(2 * half + 1, FINE, 2 * half + 1, FINE).sum(axis=(1, 3))
    return Probe((kernel / kernel.sum()).astype(np.float32), radius)


@dataclass(frozen=True)
class Detection:
    """What counts as a spot.

    Attributes
    ----------
    min_intensity
        Least intensity, fraction of the frame's total. The speckle of an amorphous film is as
        bright as fainter spots, and as sure where electrons are many.
    significance
        Least significance, standard deviations: of a normal distribution that exceeds so many as
        rarely as the noise makes as many electrons in a disk.
    max_spots
        Most spots of a frame, the brightest.
    """

    min_intensity: float = 1e-3
    significance: float = 4.0
    max_spots: int = 200


class FoundSpots(NamedTuple):
    """Spots of n frames, those of frame i are offsets[i]:offsets[i+1], brightest first.

    Attributes
    ----------
    offsets
        Shape (n + 1,).
    row, column
        Pixels, the middles of pixels at whole numbers, shape (S,).
    intensity
        Sum over the disk without the background, unit of the frames, shape (S,).
    """

    offsets: NDArray[np.int64]
    row: NDArray[np.float32]
    column: NDArray[np.float32]
    intensity: NDArray[np.float32]


def find_spots(
    frames: NDArray[np.float32],
    probe: Probe,
    detection: Detection,
    mask: NDArray[np.bool_] | None = None,
    device: str = "cpu",
) -> FoundSpots:
    """Return the spots of frames.

    What is found in a frame does not depend on the other frames. Pixels that are NaN or infinite
    are taken for masked. A spot that is partly masked, or beyond the edge, counts for the whole of
    it if half of it is seen, and is left out otherwise.

    Parameters
    ----------
    frames
        Any unit, shape (n, rows, columns). The noise is measured in each frame itself.
    mask
        True where a pixel counts, shape (rows, columns).
    device
        `cpu` or `cuda`.

    Raises
    ------
    InputError
        If shapes do not go together, or the device is not there.
    """
    if frames.ndim != 3:
        raise InputError(f"frames must have the shape (n, rows, columns), not {frames.shape}")
    if mask is not None and mask.shape != frames.shape[1:]:
        raise InputError(
            f"a mask of {mask.shape[0]} x {mask.shape[1]} pixels does not go with frames of "
            f"{frames.shape[1]} x {frames.shape[2]}"
        )
    if device not in CHUNK or (device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"there is no device {device!r} here: use cpu")
    counting = np.ones(frames.shape[1:], dtype=bool) if mask is None else mask
    work = partial(
        _find_in,
        counting=torch.from_numpy(np.ascontiguousarray(counting)).to(device),
        probe=probe,
        templates=Templates.of(probe.kernel, device),
        detection=detection,
    )
    threads = torch.get_num_threads() if device == "cpu" else 1
    size = min(CHUNK[device] // max(1, counting.size), -(-len(frames) // threads))
    chunks = [frames[i : i + max(1, size)] for i in range(0, len(frames), max(1, size))]
    parts = [(np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.float32))]
    parts += _in_threads(work, chunks, threads) if len(chunks) > 1 else map(work, chunks)
    counts, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return FoundSpots(offsets, *np.ascontiguousarray(rows.T))


Part = tuple[NDArray[np.int64], NDArray[np.float32]]


def _in_threads(
    work: Callable[[NDArray[np.float32]], Part], chunks: list[NDArray[np.float32]], threads: int
) -> list[Part]:
    """Return what is found in chunks, each the work of one thread.

    Threads that share the work on one chunk wait for each other at each of hundreds of steps.
    """
    try:
        with ThreadPoolExecutor(threads, "spots", torch.set_num_threads, (1,)) as pool:
            return list(pool.map(work, chunks))
    finally:
        torch.set_num_threads(threads)


def _find_in(
    frames: NDArray[np.float32],
    counting: Tensor,
    probe: Probe,
    templates: Templates,
    detection: Detection,
) -> Part:
    """Return how many spots frames have, and their rows, columns and intensities, (S, 3)."""
    with torch.inference_mode():
        values = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32))
        values, good = values.to(counting.device), counting[None]
        if not values.sum().isfinite():
            good = good & values.isfinite()
        values = torch.where(good, values, 0)
        spots = _find(values, good.float(), probe, templates, detection)
        count = torch.bincount(spots.frame, minlength=len(frames))
        place = torch.stack([spots.row, spots.column], dim=1) - templates.margin + spots.offset
        found = torch.cat([place, spots.intensity[:, None]], dim=1)
        return count.cpu().numpy(), found.cpu().numpy()


def _find(
    values: Tensor, mask: Tensor, probe: Probe, templates: Templates, detection: Detection
) -> Spots:
    """Return the spots of a chunk in padded frames, brightest first, intensity in its unit."""
    shape = [fft.next_fast_len(n + 2 * templates.margin, real=True) for n in values.shape[-2:]]
    values, mask = (_padded(x, templates.margin, shape) for x in (values, mask))
    wave = templates.area * _kernel_wave(probe.kernel, shape, values)
    seen = torch.fft.irfft2(torch.fft.rfft2(mask) * wave, s=shape)
    waves = torch.fft.rfft2(values) * wave
    disks = torch.fft.irfft2(waves, s=shape)
    sharp = torch.fft.irfft2(waves * _sharpening(probe.radius + BESIDE, shape, values), s=shape)
    ground = find_background(values, mask, disks, probe.radius)
    gain = ground.gain[:, None, None]
    frames = Frames(values / gain, ground.level / gain, ground.shift / ground.gain, mask)
    least = detection.min_intensity * frames.values.sum(dim=(1, 2))
    least = least.clamp(min=1e-6)
    peaks = _peaks(sharp, probe.radius) & (seen >= LEAST_SEEN * templates.area)
    spots, significance = _candidates(disks / gain, peaks, seen, frames, ROUGHLY * least, templates)
    spots = spots.select(significance >= ROUGHLY * detection.significance)
    spots, patches = refine(frames, spots, templates)
    good = _significance(*counts_in(patches, templates.area)) >= detection.significance
    good &= (patches.seen >= LEAST_SEEN) & (spots.intensity >= least[spots.frame])
    spots = _brightest(spots.select(good), detection.max_spots)
    return replace(spots, intensity=spots.intensity * ground.gain[spots.frame])


def _padded(values: Tensor, margin: int, shape: list[int]) -> Tensor:
    rows, columns = values.shape[-2:]
    sides = (margin, shape[1] - columns - margin, margin, shape[0] - rows - margin)
    return torch.nn.functional.pad(values, sides)


def _kernel_wave(kernel: NDArray[np.float32], shape: list[int], like: Tensor) -> Tensor:
    """Return the conjugate Fourier transform of the kernel, its middle at (0, 0)."""
    placed = np.zeros(shape, dtype=np.float32)
    placed[: len(kernel), : len(kernel)] = kernel
    placed = np.roll(placed, -(len(kernel) // 2), axis=(0, 1))
    return torch.fft.rfft2(torch.from_numpy(placed).to(like)).conj()


def _sharpening(radius: float, shape: list[int], like: Tensor) -> Tensor:
    """Return the Fourier transform of what takes from each pixel the mean of those about it."""
    row, column = torch.fft.fftfreq(shape[0]).to(like), torch.fft.rfftfreq(shape[1]).to(like)
    squared = row[:, None].square() + column.square()
    return 1 - torch.exp(-2 * (math.pi * radius) ** 2 * squared)


def _peaks(values: Tensor, radius: float) -> Tensor:
    """Return where values are above 0 and the highest within a radius, shape of the values."""
    reach = max(1, round(radius))
    width = 2 * reach + 1
    # Of equal values the last counts: no two pixels within reach have the same rank.
    row, column = (torch.arange(n, device=values.device) % width for n in values.shape[-2:])
    values = values * (1 + TIE / width**2 * (row[:, None] * width + column))
    return (values > 0) & (values >= highest(highest(values, reach, 1), reach, 2))


def _candidates(
    disks: Tensor,
    peaks: Tensor,
    seen: Tensor,
    frames: Frames,
    least: Tensor,
    templates: Templates,
) -> tuple[Spots, Tensor]:
    """Return spots in the middles of pixels, and how significant they are.

    Parameters
    ----------
    disks, seen
        Sums over the disk about each pixel, of electrons and of pixels that are not masked.
    peaks
        Which pixels may be spots.
    least
        Electrons above the background that a disk needs, shape (n,).
    """
    excess = disks - frames.background * seen
    frame, row, column = (peaks & (excess > least[:, None, None])).nonzero().unbind(dim=1)
    covered = seen[frame if len(seen) > 1 else 0, row, column]
    unsure = covered * frames.background[frame, row, column]
    found = excess[frame, row, column]
    spots = Spots(
        frame=frame,
        row=row,
        column=column,
        offset=torch.zeros(len(frame), 2, device=found.device),
        intensity=found * templates.area / covered,
    )
    certain = covered * frames.shift[frame]
    return spots, _significance(found + unsure + certain, unsure, certain)


def _significance(found: Tensor, unsure: Tensor, certain: Tensor) -> Tensor:
    """Return how far electrons in disks are above the expected ones, standard deviations.

    The signed root of the likelihood ratio of Poisson counts (T.-P. Li, Y.-Q. Ma, Astrophys. J.
    272, 317 (1983), Eq. 17, in the limit of a background that is well known).

    Parameters
    ----------
    found
        Electrons, shape (S,).
    unsure, certain
        Expected ones, which are known to within `MISFIT` or exactly.
    """
    n = found.double().clamp(min=0)
    expected = ((1 + MISFIT) * unsure + certain).double().clamp(min=1e-9)
    ratio = 2 * (torch.xlogy(n, n / expected) - (n - expected))
    return ratio.clamp(min=0).sqrt() * (n - expected).sign()


def _brightest(spots: Spots, most: int) -> Spots:
    """Return the brightest spots of each frame, frame after frame."""
    order = torch.argsort(spots.intensity, descending=True, stable=True)
    order = order[torch.argsort(spots.frame[order], stable=True)]
    spots = spots.select(order)
    before = torch.searchsorted(spots.frame, spots.frame)
    return spots.select(torch.arange(len(order), device=before.device) - before < most)
