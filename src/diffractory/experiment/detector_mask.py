"""Which pixels of a detector count: not the hot and dead ones, nor gaps, nor a beam stop."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FEW_FRAMES = 8
"""With fewer frames than this, a pixel that never changes may have done so by chance."""

OUTLIER = 5
"""How many times as much as its neighbours a hot pixel has, and as little a dead one."""

WIDEST_GAP = 8
"""Between the chips of a detector, pixels."""

SURE = 25
"""Electrons: a pixel that should get so many gets none once in 10^11 times."""


def dark_level(frames: NDArray[np.float32]) -> float:
    """Return what the camera adds to each pixel, in the unit of the frames.

    Zero for a counting camera, of which many pixels are 0; else what the pixels that get least have
    on average.

    Parameters
    ----------
    frames
        Shape (n, R, C).
    """
    step = max(1, frames.size // 1_000_000) | 1
    if np.percentile(frames.ravel()[::step], 1) == 0:
        return 0.0
    return float(np.percentile(frames.mean(axis=0, dtype=np.float64), 1))


def working_pixels(frames: NDArray[np.float32], dark: float) -> NDArray[np.bool_]:
    """Return which pixels work, shape (R, C): neither hot, nor dead, nor in a gap.

    A hot pixel has far more than its third brightest neighbour, and not by chance: the smallest
    spot lights a pixel and three neighbours or more. A dead one has one value in all frames, is in
    a hole of the mean frame no wider than a gap, and in single frames too has light on both sides:
    else spots that move from frame to frame may have missed it. Gaps along the whole detector need
    less light to be seen.

    Parameters
    ----------
    frames
        Finite, shape (n, R, C). Fewer than `FEW_FRAMES` show hot pixels alone.
    dark
        What the camera adds to each pixel, in their unit.
    """
    total = frames.sum(axis=0, dtype=np.float64) - len(frames) * dark
    electron = _electron(frames, dark)
    total /= electron
    around = np.ones((3, 3), dtype=bool)
    around[1, 1] = False
    third = ndimage.rank_filter(total, rank=-3, footprint=around, mode="constant")
    hot = total > OUTLIER * np.maximum(third, 0) + np.sqrt(SURE * np.maximum(total, 1))
    if len(frames) < FEW_FRAMES:
        return ~hot
    light = np.where(hot, third, total)
    constant = frames.max(axis=0) == frames.min(axis=0)
    usual = light
    for axis in (0, 1):
        usual = _closed(usual, axis)
    holes = constant & _far_below(light, usual)
    lines = _dark_lines(light, constant)
    return ~(hot | lines | _between_lit(frames - np.float32(dark), holes, electron))


def _closed(electrons: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return electrons with holes as narrow as gaps filled to what is on their darker side."""
    size = np.ones(electrons.ndim, dtype=int)
    size[axis] = WIDEST_GAP + 1
    return ndimage.grey_closing(electrons, size=tuple(size))


def _far_below(electrons: NDArray[np.float64], usual: NDArray[np.float64]) -> NDArray[np.bool_]:
    # Twice as many electrons as make sure, since the brightest neighbours count.
    return (OUTLIER * electrons < usual) & (usual > 2 * SURE)


def _dark_lines(electrons: NDArray[np.float64], constant: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of whole rows and columns that are constant, between others with light."""
    rows, columns = (
        constant.all(axis=1 - axis) & _far_below(line, _closed(line, 0))
        for axis, line in enumerate((electrons.sum(axis=1), electrons.sum(axis=0)))
    )
    return rows[:, None] | columns


def _between_lit(
    frames: NDArray[np.float32], holes: NDArray[np.bool_], electron: float
) -> NDArray[np.bool_]:
    """Return which pixels of holes have electrons on both sides at once, in frames of (n, R, C)."""
    most = np.zeros(np.count_nonzero(holes))
    for axis in (0, 1):
        along, last = np.indices(holes.shape)[axis], holes.shape[axis] - 1
        before = np.maximum.accumulate(np.where(holes, 0, along), axis)
        after = np.flip(
            np.minimum.accumulate(np.flip(np.where(holes, last, along), axis), axis), axis
        )
        place = list(np.nonzero(holes))
        light = []
        for side in (before, after):
            place[axis] = side[holes]
            light.append(frames[:, place[0], place[1]])
        most = np.maximum(most, np.minimum(*light).sum(axis=0))
    sure = np.zeros_like(holes)
    sure[holes] = most > OUTLIER * electron
    # Where gaps cross, there are holes on all sides.
    square = np.ones((WIDEST_GAP + 1, WIDEST_GAP + 1), dtype=bool)
    return sure | (holes & ndimage.binary_closing(sure, square))


def _electron(frames: NDArray[np.float32], dark: float) -> float:
    """Return at least what one electron adds to the frames, in their unit."""
    step = max(1, frames.size // 1_000_000) | 1
    values = frames.ravel()[::step] - np.float32(dark)
    return float(np.median(values[values > 0])) if (values > 0).any() else 1.0


def beam_stop(
    mean: NDArray[np.float64], works: NDArray[np.bool_], centre: NDArray[np.float64], radius: float
) -> NDArray[np.bool_]:
    """Return which pixels are behind a beam stop, shape (R, C); none if there is no beam stop.

    These are the dark pixels about the direct beam, and those that join them, as of a holder. Dark
    means below the geometric mean of what the middle gets and what is usual at this distance from
    the direct beam or any larger one.

    Parameters
    ----------
    mean
        Mean frame without what the camera adds, shape (R, C).
    works
        Which of its pixels work.
    centre
        Row and column of the direct beam.
    radius
        Of a spot, pixels.
    """
    rows, columns = np.indices(mean.shape)
    distance = np.hypot(rows - centre[0], columns - centre[1]).astype(int)
    smooth = _smooth(mean, works)
    rings = np.arange(distance.max() + 1)
    usual = np.nan_to_num(ndimage.median(np.where(works, smooth, np.nan), distance, rings))
    # Few pixels are in the last rings, at the corners, and none need be lit.
    usual = np.maximum.accumulate(np.maximum(usual, 0)[::-1])[::-1][distance]
    middle = distance <= max(radius, 2)
    least = np.median(np.maximum(smooth[middle], 0))
    lit = usual[middle].max()
    if not lit > OUTLIER * least:
        return np.zeros(mean.shape, dtype=bool)
    floor = max(least, lit / OUTLIER**4)
    labels, _ = ndimage.label(smooth < np.sqrt(floor * usual))
    about = np.bincount(labels[middle])
    about[0] = 0
    if about.sum() < middle.sum() / 2:
        return np.zeros(mean.shape, dtype=bool)
    return ndimage.binary_dilation(labels == about.argmax(), iterations=2)


def _smooth(mean: NDArray[np.float64], works: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean over 3 x 3 pixels, of those that work."""
    weight = ndimage.uniform_filter(works.astype(float), 3)
    return ndimage.uniform_filter(np.where(works, mean, 0), 3) / np.maximum(weight, 1e-9)
