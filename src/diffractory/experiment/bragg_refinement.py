"""Places and intensities of Bragg spots to a part of a pixel, all spots of many frames at once.

A disk of few electrons is placed better by its edge than by its centroid: its electrons say where
it is by where they are not. So each spot gets the mean of the places that it may have, weighted
with the likelihood of its electrons (the estimate of least mean squared error). Where disks
overlap, each pixel is shared among them, as in expectation maximization (A. P. Dempster,
N. M. Laird, D. B. Rubin, J. R. Stat. Soc. B 39, 1 (1977)).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PASSES = 3
"""Times that places and intensities are improved. A spot can move by a pixel in each."""

STEPS = 8
"""Places per pixel at which likelihoods are taken, along each axis."""

LEVELS = (-1.5, -0.5, 0.5)
"""Backgrounds for which likelihoods are prepared: powers of ten, in units of a disk's height. If
less were taken for possible, the few electrons in the tails of a disk would tell its place."""

ENOUGH = 60.0
"""Electrons of a spot beyond which its likelihood is that of so many: narrower ones would fall
between two places. Its mean stays where it is."""

LEAST_DIVISOR = 0.1
"""Least fraction of a spot that anything is divided by."""

EDGE = 0.02
"""Pixels under less of a template than this belong to no disk, relative to its highest."""


@dataclass(frozen=True)
class Templates:
    """A probe at places in and about a pixel, T places, P pixels in a patch.

    Attributes
    ----------
    reach
        Pixels from the middle of a patch to its edge.
    place
        Row and column from the middle of the patch, pixels, shape (T, 2).
    values
        Fraction of the probe in each pixel, shape (T, P).
    area
        Pixels that a disk with sharp edges, of as much noise, would have.
    """

    reach: int
    place: Tensor
    values: Tensor
    area: float

    @classmethod
    def of(cls, kernel: NDArray[np.float32], device: str) -> "Templates":
        """Return the templates of a probe, shape (2 k + 1, 2 k + 1), its sum 1."""
        reach = len(kernel) // 2 + 1
        at = np.linspace(-1, 1, 2 * STEPS + 1)
        # Weights of the kernel's pixels in those of the patch, (place, patch, kernel).
        pixels = np.arange(-reach, reach + 1)
        distance = pixels[:, None] - pixels[1:-1] - at[:, None, None]
        weight = _cubic(distance)
        values = np.einsum("aij,jk,blk->abil", weight, kernel, weight, optimize=True).clip(0)
        values = values.reshape(len(at) ** 2, -1)
        values[values < EDGE * values.max(axis=1, keepdims=True)] = 0
        values /= values.sum(axis=1, keepdims=True)
        place = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1).reshape(-1, 2)
        return cls(
            reach,
            torch.from_numpy(place.astype(np.float32)).to(device),
            torch.from_numpy(values.astype(np.float32)).to(device),
            float(1 / np.square(kernel, dtype=np.float64).sum()),
        )

    @property
    def margin(self) -> int:
        """Return how far from the edges of frames `refine` may look, pixels."""
        return self.reach + PASSES + 1

    def nearest(self, offset: Tensor) -> Tensor:
        """Return the index of the templates nearest to offsets, (S, 2), of at most a pixel."""
        steps = ((offset.clamp(-1, 1) + 1) * STEPS).round().long()
        return steps[:, 0] * (2 * STEPS + 1) + steps[:, 1]


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of cubic convolution (R. G. Keys, IEEE Trans. ASSP 29, 1153 (1981))."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


@dataclass(frozen=True)
class Frames:
    """Frames in electrons, with `Templates.margin` pixels that do not count about them.

    Attributes
    ----------
    values, background
        Electrons, zero where masked, and their mean without spots, shape (n, rows, columns).
    shift
        Electrons that stand for the read-out noise of a pixel (`Background`), shape (n,).
    mask
        1 where a pixel counts, else 0, shape (1 or n, rows, columns).
    """

    values: Tensor
    background: Tensor
    shift: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Spots:
    """S spots in padded frames.

    Attributes
    ----------
    frame, row, column
        Where the pixel is that the place is counted from, int64, shape (S,).
    offset
        Row and column from there, pixels, shape (S, 2).
    intensity
        Electrons, shape (S,).
    """

    frame: Tensor
    row: Tensor
    column: Tensor
    offset: Tensor
    intensity: Tensor

    def select(self, which: Tensor) -> "Spots":
        """Return some of the spots."""
        return Spots(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def anchored(self) -> "Spots":
        """Return the spots with places counted from the nearest pixel."""
        step = self.offset.round()
        row, column = (self.row + step[:, 0].long(), self.column + step[:, 1].long())
        return replace(self, row=row, column=column, offset=self.offset - step)


@dataclass(frozen=True)
class Patches:
    """The pixels about S spots, shape (S, P) but for the last.

    Attributes
    ----------
    values
        Electrons, with those that stand for read-out noise; zero where masked.
    background, shift
        As in `Frames`, zero where masked.
    template
        Fraction of the spot in each pixel.
    others
        Electrons of other spots.
    share
        What part of all spots' electrons is the spot's.
    mask
        1 where a pixel counts, else 0.
    seen
        Fraction of the spot that is not masked, shape (S,).
    """

    values: Tensor
    background: Tensor
    shift: Tensor
    template: Tensor
    others: Tensor
    share: Tensor
    mask: Tensor
    seen: Tensor


def _cut(frames: Frames, spots: Spots, templates: Templates) -> Patches:
    """Return the pixels about spots, which are anchored."""
    n, rows, columns = frames.values.shape
    along = torch.arange(-templates.reach, templates.reach + 1, device=spots.row.device)
    pixel = (spots.row * columns + spots.column)[:, None]
    pixel = pixel + (along[:, None] * columns + along).flatten()
    of_frame = pixel + (spots.frame * (rows * columns))[:, None]
    template = templates.values[templates.nearest(spots.offset)]
    own = spots.intensity[:, None] * template
    drawn = torch.zeros(n * rows * columns, device=own.device)
    total = drawn.index_add_(0, of_frame.flatten(), own.flatten())[of_frame]
    mask = frames.mask.reshape(-1)[pixel if len(frames.mask) == 1 else of_frame]
    shift = frames.shift[spots.frame][:, None] * mask
    return Patches(
        values=frames.values.view(-1)[of_frame] + shift,
        background=frames.background.view(-1)[of_frame] * mask,
        shift=shift,
        template=template,
        others=(total - own).clamp(min=0) * mask,
        share=own / total.clamp(min=1e-30),
        mask=mask,
        seen=(template * mask).sum(dim=1),
    )


def refine(frames: Frames, spots: Spots, templates: Templates) -> tuple[Spots, Patches]:
    """Return the spots at their best places with their intensities, and the pixels about them."""
    likelihoods = [(templates.values * templates.area + 10**level).log() for level in LEVELS]
    for _ in range(PASSES):
        spots = spots.anchored()
        patches = _cut(frames, spots, templates)
        spots = replace(spots, offset=_place(spots, patches, templates, likelihoods))
        excess = (patches.values - patches.shift - patches.background) * patches.share
        intensity = excess.sum(dim=1) / patches.seen.clamp(min=LEAST_DIVISOR)
        spots = replace(spots, intensity=intensity.clamp(min=1e-6))
    spots = spots.anchored()
    return spots, _cut(frames, spots, templates)


def _place(
    spots: Spots, patches: Patches, templates: Templates, likelihoods: list[Tensor]
) -> Tensor:
    """Return the mean place of each spot, from its pixel, shape (S, 2)."""
    ground = patches.background + patches.shift
    own = spots.intensity[:, None] * patches.template
    model = own + patches.others + ground
    values = patches.values * (1 - patches.others / model.clamp(min=1e-30))
    ground = ground.sum(dim=1) / patches.mask.sum(dim=1).clamp(min=1)
    ratio = (ground * templates.area / spots.intensity).clamp(min=1e-30).log10()
    level = (ratio - LEVELS[0]).round().long().clamp(0, len(LEVELS) - 1)
    result = torch.empty_like(spots.offset)
    for index, table in enumerate(likelihoods):
        which = torch.nonzero(level == index)[:, 0]
        seen = (patches.mask[which] @ templates.values.T).clamp(min=LEAST_DIVISOR)
        count = (spots.intensity[which] * patches.seen[which])[:, None]
        score = values[which] @ table.T - count * seen.log()
        score *= ENOUGH / count.clamp(min=ENOUGH)
        result[which] = score.softmax(dim=1) @ templates.place
    return result


def counts_in(patches: Patches, area: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return electrons in the disk of each spot, those expected without it, and noise's, (S,).

    The expected ones are of the background and of other spots; those that stand for read-out noise
    are counted too, and expected besides.
    """
    weight = area * patches.template
    expected = patches.background + patches.others
    found, expected, noise = (
        (weight * x).sum(dim=1) for x in (patches.values, expected, patches.shift)
    )
    return found, expected, noise
