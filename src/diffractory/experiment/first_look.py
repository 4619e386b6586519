"""Frames of a scan that are looked at before all of it is read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffractory.experiment.bragg_spots import Detection, FoundSpots, Probe, find_spots
from diffractory.experiment.detector_mask import beam_stop, dark_level, working_pixels
from diffractory.experiment.direct_beam import (
    drift_terms,
    fit_drift,
    inversion_centre,
    mean_spot,
    measure_disk,
    pair_spots,
    windows,
)
from diffractory.experiment.scan import Scan
from diffractory.store import InputError

LOOKED_AT = 200
"""Frames that are looked at, spread over the scan."""

MOST_VALUES = 32 * 2**20
"""Pixels of them in all (128 MiB)."""

BRIGHT = 5
"""Spots of a frame that may be the direct beam, the brightest."""

CLIPPED = 0.2
"""Share of the pixels of the direct beam that have the largest value of all if it is saturated."""


@dataclass
class Look:
    """n frames that are looked at.

    Attributes
    ----------
    path
        Of the scan.
    positions
        Scan row times the number of columns plus scan column, shape (n,).
    terms
        Of the drift there, shape (n, 6).
    frames
        Without what the camera adds, 0 where pixels do not work, shape (n, R, C).
    works
        True where a pixel counts, shape (R, C).
    dark
        What the camera adds to each pixel, in the unit of the frames.
    top
        Largest value, this included.
    """

    path: Path
    positions: NDArray[np.int64]
    terms: NDArray[np.float64]
    frames: NDArray[np.float32]
    works: NDArray[np.bool_]
    dark: float
    top: float

    def spots(self, probe: Probe, detection: Detection, device: str) -> FoundSpots:
        """Return the spots of the frames.

        Raises
        ------
        InputError
            If there is none.
        """
        found = find_spots(self.frames, probe, detection, self.works, device)
        if not len(found.row):
            raise InputError(f"found no spot in any of {len(self.frames)} frames of {self.path}")
        return found


def look_at(scan: Scan, mask: NDArray[np.bool_] | None) -> Look:
    """Look at frames spread over a scan, and at its pixels. Frames that are empty are passed over.

    Parameters
    ----------
    mask
        Pixels that the user says not to count are False, shape (R, C).

    Raises
    ------
    InputError
        If all frames are empty, or no pixel counts.
    """
    positions = _spread(scan.shape)
    frames = scan.read(positions)
    finite = np.isfinite(frames)
    frames[~finite] = 0
    usable = (finite.mean(axis=(1, 2)) > 0.5) & frames.any(axis=(1, 2))
    if not usable.any():
        raise InputError(f"all of {len(frames)} frames looked at of {scan.path} are empty")
    positions, frames = positions[usable], frames[usable]
    dark = dark_level(frames)
    works = working_pixels(frames, dark) & finite[usable].all(axis=0)
    if mask is not None:
        works &= mask
    if not works.any():
        raise InputError(f"no pixel of {scan.path} counts: the mask must be nonzero where one does")
    top = float(frames[:, works].max())
    frames = np.where(works, frames - np.float32(dark), 0)
    terms = drift_terms(positions, scan.shape[:2])
    return Look(scan.path, positions, terms, frames, works, dark, top)


def _spread(shape: tuple[int, int, int, int]) -> NDArray[np.int64]:
    """Return positions spread evenly over a scan, ascending, its corners among them."""
    rows, columns, *detector = shape
    most = int(np.clip(MOST_VALUES // np.prod(detector), 4, LOOKED_AT))
    of_rows = int(np.clip(np.sqrt(most * rows / columns), 1, rows))
    of_columns = min(most // of_rows, columns)
    of_rows = min(most // of_columns, rows)
    row, column = (
        np.rint(np.linspace(0, n - 1, k)).astype(int)
        for n, k in ((rows, of_rows), (columns, of_columns))
    )
    return (row[:, None] * columns + column).ravel()


def reach_of(probe: Probe) -> float:
    """Return how near the drift model a spot is the direct beam, pixels."""
    return max(probe.radius, 2.0)


def frame_of(found: FoundSpots) -> NDArray[np.int64]:
    """Return the frame of each spot."""
    return np.repeat(np.arange(len(found.offsets) - 1), np.diff(found.offsets))


def places_of(found: FoundSpots) -> NDArray[np.float64]:
    """Return row and column of each spot, pixels, shape (N, 2)."""
    return np.stack([found.row, found.column], axis=1).astype(np.float64)


def brightest(found: FoundSpots) -> NDArray[np.float64]:
    """Return row and column of the brightest spot of each frame, shape (n, 2); NaN for none."""
    some = np.diff(found.offsets) > 0
    places = np.full((len(some), 2), np.nan)
    places[some] = places_of(found)[found.offsets[:-1][some]]
    return places


def seen_drift(look: Look, found: FoundSpots, probe: Probe) -> NDArray[np.float64]:
    """Return the drift of the direct beam, which is among the bright spots of most frames."""
    first = found.offsets[frame_of(found)]
    bright = np.arange(len(first)) - first < BRIGHT
    weight = (found.intensity / found.intensity[first]).astype(np.float64)
    terms, places = look.terms[frame_of(found)], places_of(found)
    return fit_drift(terms[bright], places[bright], weight[bright], reach_of(probe))


def hidden_drift(
    look: Look, found: FoundSpots, stop: NDArray[np.bool_], probe: Probe
) -> NDArray[np.float64]:
    """Return the drift of the direct beam behind a beam stop.

    Raises
    ------
    InputError
        If no pair of spots has its middle there.
    """
    pairs = pair_spots(found.offsets, places_of(found), found.intensity)
    last = np.array(stop.shape) - 1
    behind = stop[tuple(np.clip(np.rint(pairs.place), 0, last).astype(int).T)]
    if not behind.any():
        raise InputError(
            f"the direct beam of {look.path} is behind a beam stop, and no pair of spots about it "
            "tells where"
        )
    terms = look.terms[pairs.frame[behind]]
    return fit_drift(terms, pairs.place[behind], pairs.weight[behind], reach_of(probe) / 2)


def hidden_pixels(look: Look, found: FoundSpots, probe: Probe) -> NDArray[np.bool_]:
    """Return which pixels are behind a beam stop, none if the direct beam is seen.

    It is if the bright spots that drift smoothly are where the middles of pairs are most.
    """
    places, reach = places_of(found), reach_of(probe)
    from_drift = places - (look.terms @ seen_drift(look, found, probe))[frame_of(found)]
    pairs = pair_spots(found.offsets, from_drift, found.intensity)
    if np.hypot(*inversion_centre(pairs, reach)) < 2 * reach:
        return np.zeros(look.works.shape, dtype=bool)
    pairs = pair_spots(found.offsets, places, found.intensity)
    mean = look.frames.mean(axis=0, dtype=np.float64)
    return beam_stop(mean, look.works, inversion_centre(pairs, 2 * reach), probe.radius)


def measured_probe(
    scan: Scan,
    look: Look,
    vacuum: NDArray[np.int64],
    rough: Probe,
    detection: Detection,
    device: str,
) -> Probe:
    """Return the mean direct beam of frames without a specimen.

    Parameters
    ----------
    vacuum
        Their positions.
    rough
        A probe to find it with.

    Raises
    ------
    InputError
        If there is none in these frames.
    """
    some = vacuum[:: -(-len(vacuum) // len(look.frames))]
    frames = np.nan_to_num(scan.read(some) - np.float32(look.dark), posinf=0, neginf=0)
    frames[:, ~look.works] = 0
    places = brightest(find_spots(frames, rough, detection, look.works, device))
    disk = measure_disk(frames, places, look.works, rough.radius)
    half = int(np.ceil(disk.radius + 3 * disk.blur)) + 1
    if not windows(frames, places, half + 4)[2].any():
        raise InputError(f"the frames of {scan.path} given as vacuum show no direct beam")
    kernel = mean_spot(frames, places, half)
    kernel = np.maximum(kernel - disk.level * kernel[half, half], 0)
    return Probe(kernel / kernel.sum(), disk.radius)


def is_clipped(look: Look, found: FoundSpots, direct: NDArray[np.int64], radius: float) -> bool:
    """Return whether many pixels of the direct beam have the largest value, a whole number."""
    half = max(int(radius / np.sqrt(2)), 1)
    beams = windows(look.frames[frame_of(found)[direct]], places_of(found)[direct], half)[0]
    top = np.float32(look.top) - np.float32(look.dark)
    return look.top.is_integer() and beams.size > 0 and bool((beams == top).mean() > CLIPPED)
