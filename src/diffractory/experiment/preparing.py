"""What a look at some frames of a scan tells about all, and spots as networks read them."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffractory.experiment.bragg_spots import Detection, FoundSpots, Probe, disk_probe
from diffractory.experiment.direct_beam import drift_terms, measure_disk, rough_radius
from diffractory.experiment.distortion import measure_ellipse
from diffractory.experiment.first_look import (
    brightest,
    frame_of,
    hidden_drift,
    hidden_pixels,
    is_clipped,
    look_at,
    measured_probe,
    places_of,
    reach_of,
    seen_drift,
)
from diffractory.experiment.scan import Scan
from diffractory.store import InputError


class SpotLists(NamedTuple):
    """Spots of n patterns, as networks read them; those of pattern i are offsets[i]:offsets[i + 1].

    Attributes
    ----------
    offsets
        Shape (n + 1,).
    qx, qy
        In 1/angstrom, q_x along columns and q_y along rows, shape (N,); the direct beam is at
        (0, 0).
    intensity
        Fraction of the incident beam, shape (N,). The direct beam is in the list where it is seen.
    """

    offsets: NDArray[np.int64]
    qx: NDArray[np.float32]
    qy: NDArray[np.float32]
    intensity: NDArray[np.float32]


@dataclass(frozen=True)
class Preparation:
    """What a look at some frames of a scan tells about all.

    Attributes
    ----------
    scan_shape
        Scan rows and columns.
    probe
        The direct beam without a specimen.
    mask
        True where a pixel counts, shape (R, C).
    dark
        What the camera adds to each pixel, in the unit of the frames; 0 for a counting camera.
    drift
        Coefficients of row and column of the direct beam, pixels, shape (6, 2), for the terms of
        `drift_terms`.
    distortion
        Matrix from measured (row, column) offsets from the direct beam to undistorted ones,
        shape (2, 2).
    rotation
        Angle from the +q_x axis of the map to that of the detector, degree, from +q_x to +q_y.
    pixel_size
        In 1/angstrom.
    saturated
        Whether the direct beam is clipped, so that fractions of the incident beam are too large.
    beam_stop
        Whether the direct beam is hidden: fractions are then of the electrons that were seen.
    """

    scan_shape: tuple[int, int]
    probe: Probe
    mask: NDArray[np.bool_]
    dark: float
    drift: NDArray[np.float64]
    distortion: NDArray[np.float64]
    rotation: float
    pixel_size: float
    saturated: bool
    beam_stop: bool

    def centre(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return row and column of the direct beam by the drift model, pixels, shape (n, 2)."""
        return drift_terms(positions, self.scan_shape) @ self.drift

    @property
    def reach(self) -> float:
        """Return how near the drift model a spot is the direct beam, pixels."""
        return reach_of(self.probe)


def survey(
    scan: Scan,
    detection: Detection,
    mask: NDArray[np.bool_] | None = None,
    vacuum: NDArray[np.int64] | None = None,
    rotation: float = 0.0,
    device: str = "cpu",
) -> Preparation:
    """Look at frames spread over a scan, and tell what all of its frames need.

    The rotation between scan and detector leaves no trace in spots (only in how the direct beam
    shifts with defocus or over a known sample), so that it must be given; and so must the pixel
    size, since an unknown specimen has no known spacing.

    Parameters
    ----------
    scan
        With a pixel size.
    detection
        What counts as a spot.
    mask
        Further pixels that do not count are False, shape (R, C).
    vacuum
        Positions without a specimen, whose frames show the probe; without them it is drawn as a
        disk as large as the direct beam.
    rotation
        Angle from the +q_x axis of the map to that of the detector, degree, from +q_x to +q_y.
    device
        Where spots are found.

    Raises
    ------
    InputError
        If there is no pixel size, the mask has another shape than the frames or leaves none of
        their pixels, or no frame that was looked at has a spot.
    """
    if scan.pixel_size is None:
        raise InputError(f"{scan.path} has no calibration: give its pixel size, in 1/angstrom")
    if mask is not None and mask.shape != scan.shape[2:]:
        raise InputError(
            f"the mask has shape {mask.shape}, but the frames of {scan.path} {scan.shape[2:]}"
        )
    look = look_at(scan, mask)
    probe = disk_probe(rough_radius(look.frames))
    found = look.spots(probe, detection, device)
    stop = hidden_pixels(look, found, probe)
    look.works[stop] = False
    look.frames[:, stop] = 0
    if vacuum is None:
        disk = measure_disk(look.frames, brightest(found), look.works, probe.radius)
        probe = disk_probe(disk.radius, disk.blur)
    else:
        probe = measured_probe(scan, look, vacuum, probe, detection, device)
    found = look.spots(probe, detection, device)
    hidden = bool(stop.any())
    drift = hidden_drift(look, found, stop, probe) if hidden else seen_drift(look, found, probe)
    preparation = Preparation(
        scan_shape=scan.shape[:2],
        probe=probe,
        mask=look.works,
        dark=look.dark,
        drift=drift,
        distortion=np.eye(2),
        rotation=rotation,
        pixel_size=scan.pixel_size,
        saturated=False,
        beam_stop=hidden,
    )
    places, direct = _from_centre(found, look.positions, preparation)
    return replace(
        preparation,
        distortion=measure_ellipse(places[np.hypot(*places.T) > preparation.reach]).undo,
        saturated=is_clipped(look, found, direct, probe.radius),
    )


def to_spot_lists(
    found: FoundSpots,
    frames_total: NDArray[np.floating],
    positions: NDArray[np.int64],
    preparation: Preparation,
) -> SpotLists:
    """Return spots as networks read them: calibrated, undistorted, from the direct beam.

    The direct beam of a frame is its brightest spot near the drift model, or else where the model
    has it. What a spot has is divided by what its frame has. Behind a beam stop is an unknown share
    of the incident beam, so that intensities are fractions of the electrons that were seen then.

    Parameters
    ----------
    found
        Spots of n frames.
    frames_total
        Sum of each frame over the pixels that count, in the unit of the spots, shape (n,). A frame
        whose sum is not above what the camera adds has no spots.
    positions
        Of the frames in the scan, shape (n,).
    """
    places, _ = _from_centre(found, positions, preparation)
    row, column = preparation.distortion @ places.T * preparation.pixel_size
    cos, sin = (f(np.radians(preparation.rotation)) for f in (np.cos, np.sin))
    frame = frame_of(found)
    total = frames_total - preparation.dark * preparation.mask.sum()
    good = (total > 0)[frame] & (found.intensity > 0)
    count = np.bincount(frame[good], minlength=len(positions))
    return SpotLists(
        offsets=np.concatenate([[0], np.cumsum(count)]),
        qx=(cos * column - sin * row)[good].astype(np.float32),
        qy=(sin * column + cos * row)[good].astype(np.float32),
        intensity=(found.intensity[good] / total[frame[good]]).astype(np.float32),
    )


def _from_centre(
    found: FoundSpots, positions: NDArray[np.int64], preparation: Preparation
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return places of spots from the direct beam, pixels, and which spots are direct beams."""
    centre = preparation.centre(positions)
    frame, places = frame_of(found), places_of(found)
    if preparation.beam_stop:
        return places - centre[frame], np.empty(0, dtype=np.int64)
    near = np.flatnonzero(np.hypot(*(places - centre[frame]).T) < preparation.reach)
    seen, first = np.unique(frame[near], return_index=True)
    centre[seen] = places[near[first]]
    return places - centre[frame], near[first]
