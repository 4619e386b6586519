"""The direct beam of a scan: how large it is, and where it falls in each frame."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize, special

from diffractory.store import generator

BATCH = 16
"""Frames transformed at a time."""

HALF_OVERLAP = 0.808
"""Two equal disks this many radii apart overlap by half of their area."""

TRIALS = 2000
"""Planes tried for the drift."""

STEPS = 8
"""Of the least squares; each chooses the places near the drift anew, ever nearer ones."""

PAIRED = 12
"""Spots of a frame, the brightest, of which pairs are made."""


class Disk(NamedTuple):
    """A spot as it is measured.

    Attributes
    ----------
    radius
        Pixels.
    blur
        Standard deviation of the Gaussian that its edge is blurred by, besides that of pixels.
    level
        What is around it, as a share of what is in the disk for each pixel.
    """

    radius: float
    blur: float
    level: float


def rough_radius(frames: NDArray[np.float32]) -> float:
    """Return about how large spots are, pixels, from frames of any descan, shape (n, R, C).

    From the lag at which their autocorrelation falls by half, without the spike of the noise.
    """
    shape = frames.shape[1:]
    power = np.zeros((shape[0], shape[1] // 2 + 1))
    for first in range(0, len(frames), BATCH):
        part = frames[first : first + BATCH]
        part = part - part.mean(axis=(1, 2), keepdims=True)
        power += (np.abs(fft.rfft2(part, workers=-1)) ** 2).sum(axis=0)
    likeness = fft.irfft2(power, shape)
    lags = (np.abs(np.fft.fftfreq(n, 1 / n)) for n in shape)
    lag = np.rint(np.hypot(*np.meshgrid(*lags, indexing="ij"))).astype(int)
    profile = np.asarray(ndimage.mean(likeness, lag, np.arange(min(shape) // 4)))
    profile -= profile[1:].min()
    profile[0] = 2 * profile[1] - profile[2]
    below = int(np.argmax(profile < profile[0] / 2))
    if not below:  # the same everywhere
        return 1.0
    step = (profile[below - 1] - profile[0] / 2) / (profile[below - 1] - profile[below])
    return float(max((below - 1 + step) / HALF_OVERLAP, 1.0))


def windows(
    frames: NDArray[Any], places: NDArray[np.float64], half: int
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_]]:
    """Return windows of frames about places, one for each frame, where they fit in.

    Parameters
    ----------
    frames
        Shape (n, R, C).
    places
        Row and column, shape (n, 2); NaN for none.
    half
        Windows have 2 half + 1 rows and columns.

    Returns
    -------
    windows
        Shape (m, 2 half + 1, 2 half + 1), m at most n.
    rests
        Places from the middle pixels of the windows, shape (m, 2).
    fit
        Which frames have one, shape (n,).
    """
    last = np.array(frames.shape[1:]) - 1
    with np.errstate(invalid="ignore"):
        middle = np.rint(places)
        fit = np.logical_and(middle >= half, middle <= last - half)
    fit = fit[:, 0] & fit[:, 1]
    middle = middle[fit].astype(int)
    along = np.arange(-half, half + 1)
    rows = middle[:, :1, None] + along[:, None]
    columns = middle[:, 1:, None] + along
    return frames[np.flatnonzero(fit)[:, None, None], rows, columns], places[fit] - middle, fit


def measure_disk(
    frames: NDArray[np.float32],
    places: NDArray[np.float64],
    works: NDArray[np.bool_],
    radius: float,
) -> Disk:
    """Return the disk that is most like the mean spot, from its profile to a part of a pixel.

    A disk of radius R blurred by a Gaussian of standard deviation s is at a distance r from its
    middle a noncentral chi-squared distribution: what of a Gaussian about r is within R.

    Parameters
    ----------
    frames
        Shape (n, R, C), without what the camera adds.
    places
        Row and column of a spot of each frame, shape (n, 2); NaN for none.
    works
        Which pixels do, shape (R, C).
    radius
        About, pixels.
    """
    half = int(np.ceil(2 * radius)) + 3
    spots, rests, _ = windows(frames, places, half)
    if not len(spots):
        return Disk(radius, 0.5, 0.0)
    good = windows(np.broadcast_to(works, frames.shape), places, half)[0]
    along = np.arange(-half, half + 1)
    distance = np.hypot(along[:, None] - rests[:, 0, None, None], along - rests[:, 1, None, None])
    good = good & (distance < half)
    fine = np.where(good, np.rint(4 * distance).astype(int), -1)
    index = np.unique(fine[good])
    count = np.bincount(fine[good])[index]
    profile = np.bincount(fine[good], spots[good])[index] / count
    return _fit_disk(index / 4, profile, count, radius)


def _fit_disk(
    distance: NDArray[np.float64],
    profile: NDArray[np.float64],
    count: NDArray[np.int64],
    radius: float,
) -> Disk:
    height = max(profile[distance <= max(radius / 2, 1)].mean(), 1e-30)

    def deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
        edge, spread, top, level = values
        disk = special.chndtr((edge / spread) ** 2, 2, (distance / spread) ** 2)
        return np.sqrt(count) * (top * disk + level - profile / height)

    pixel = 1 / np.sqrt(12)
    limits = [0.5, pixel, 0, -1], [2 * radius + 2, radius + 2, 100, 1]
    start = [radius, max(0.1 * radius, 0.5), 1, 0]
    edge, spread, top, level = optimize.least_squares(deviation, start, bounds=limits).x
    return Disk(float(edge), float(np.sqrt(spread**2 - pixel**2)), float(level / max(top, 1e-9)))


def mean_spot(
    frames: NDArray[np.float32], places: NDArray[np.float64], half: int
) -> NDArray[np.float32]:
    """Return the mean of the frames about places, these brought to the middle pixel.

    Shifted by phases of the Fourier transform. Shape (2 half + 1, 2 half + 1).

    Parameters
    ----------
    frames, places
        As for `measure_disk`; one place or more is `half` from the edge or farther.
    """
    edge = 4  # what comes round from the other side is cut off
    spots, rests, _ = windows(frames, places, half + edge)
    size = spots.shape[1]
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    phase = rests[:, 0, None, None] * rows + rests[:, 1, None, None] * columns
    moved = (fft.rfft2(spots) * np.exp(2j * np.pi * phase)).mean(axis=0)
    return fft.irfft2(moved, (size, size))[edge:-edge, edge:-edge].astype(np.float32)


def drift_terms(positions: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the terms of the drift, up to the second order, shape (n, 6).

    Parameters
    ----------
    positions
        Scan row times the number of columns plus scan column, shape (n,).
    shape
        Scan rows and columns, which count from -1 to 1 in the terms.
    """
    places = np.divmod(positions, shape[1])
    row, column = (2 * x / max(n - 1, 1) - 1 for x, n in zip(places, shape, strict=True))
    return np.stack([np.ones_like(row), row, column, row**2, row * column, column**2], axis=1)


def fit_drift(
    terms: NDArray[np.float64],
    found: NDArray[np.float64],
    weight: NDArray[np.float64],
    tolerance: float,
) -> NDArray[np.float64]:
    """Return the coefficients, shape (6, 2), of the smooth surface that most places agree with.

    Planes through three places each are tried, as in RANSAC (Fischler and Bolles, Commun. ACM 24,
    381 (1981)); the best one is refined by least squares over the places near it. Of few places,
    the surface is constant or a plane.

    Parameters
    ----------
    terms
        Of the scan position of each place, shape (m, 6).
    found
        Rows and columns where the direct beam may be, pixels, shape (m, 2), m above 0.
    weight
        How likely it is there, above 0, shape (m,).
    tolerance
        How far from the surface the direct beam is, pixels.
    """
    few = min(_orders(len(found)), 3)
    rng = generator(0, "survey", 0)  # of any seed: the best plane is not left to chance
    triples = rng.choice(len(found), size=(TRIALS, 3), p=weight / weight.sum())
    planes = np.linalg.pinv(terms[triples, :few]) @ found[triples]
    misses = np.linalg.norm(terms[:, :few] @ planes - found, axis=2) / (2 * tolerance)
    drift = np.zeros((6, 2))
    drift[:few] = planes[(np.maximum(1 - misses**2, 0) @ weight).argmax()]
    limit = 4 * tolerance
    for _ in range(STEPS):
        misses = np.linalg.norm(terms @ drift - found, axis=1)
        near = misses < limit
        if not near.any():
            break
        few = _orders(int(near.sum()))
        drift = np.zeros((6, 2))
        drift[:few] = np.linalg.lstsq(terms[near, :few], found[near], rcond=None)[0]
        limit = max(limit / 2, min(tolerance, 4 * float(np.median(misses[near]))))
    return drift


def _orders(places: int) -> int:
    """Return how many terms so many places can tell."""
    return 1 if places < 6 else 3 if places < 24 else 6


class Pairs(NamedTuple):
    """Middles of pairs of spots of one frame, each spot with itself too: M of them.

    Attributes
    ----------
    frame
        Shape (M,).
    place
        Row and column, shape (M, 2), pixels.
    weight
        Geometric mean of both intensities, twice for two spots, shape (M,).
    """

    frame: NDArray[np.int64]
    place: NDArray[np.float64]
    weight: NDArray[np.float64]


def pair_spots(
    offsets: NDArray[np.int64], places: NDArray[np.float64], intensity: NDArray[np.float32]
) -> Pairs:
    """Return the middles of all pairs of the brightest spots of each frame.

    The direct beam is the middle of g and -g: I(q) and I(-q) are about the same.

    Parameters
    ----------
    offsets
        Spots of frame i are offsets[i]:offsets[i + 1], brightest first.
    places
        Rows and columns of spots, pixels, shape (N, 2).
    intensity
        Shape (N,).
    """
    first, second = np.triu_indices(PAIRED)
    count = np.minimum(np.diff(offsets), PAIRED)
    frame, pair = np.nonzero(second < count[:, None])
    one, other = offsets[frame] + first[pair], offsets[frame] + second[pair]
    weight = np.sqrt(np.maximum(intensity[one], 0) * np.maximum(intensity[other], 0))
    return Pairs(frame, (places[one] + places[other]) / 2, np.where(one == other, 1, 2) * weight)


def inversion_centre(pairs: Pairs, tolerance: float) -> NDArray[np.float64]:
    """Return row and column where the middles of pairs are most, to about the tolerance (pixels).

    Raises
    ------
    ValueError
        If there is no pair.
    """
    low = pairs.place.min(axis=0)
    cell = np.rint((pairs.place - low) / tolerance).astype(int)
    votes = np.zeros(cell.max(axis=0) + 1)
    np.add.at(votes, tuple(cell.T), pairs.weight)
    votes = ndimage.gaussian_filter(votes, 0.7, mode="constant")
    return low + tolerance * np.array(np.unravel_index(votes.argmax(), votes.shape))
