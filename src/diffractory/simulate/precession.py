"""Precession: patterns averaged over beam directions on a cone."""

import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.beams import Beams
from diffractory.simulate.orientations import rotations_about


def precession_cone(
    rotations: NDArray[np.float64], angle: float, steps: int
) -> NDArray[np.float64]:
    """Return the orientations that a beam on a cone sees, equally spaced in azimuth.

    In axes that go with the beam, it is the crystal (and the foil) that tilts.

    Parameters
    ----------
    rotations
        From the axes of the crystal (or of the foil) to the laboratory's, shape (P, 3, 3).
    angle
        Half angle of the cone, radian.
    steps
        Number of azimuths J.

    Returns
    -------
    Shape (P J, 3, 3), the azimuths of a pattern one after the other.
    """
    azimuth = 2 * np.pi * np.arange(steps) / steps
    tilts = rotations_about(2, azimuth) @ rotations_about(0, angle) @ rotations_about(2, -azimuth)
    return (tilts @ rotations[:, None]).reshape(-1, 3, 3)


def average_over_cone(
    beams: Beams, intensities: NDArray[np.float32], steps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the mean intensities of P patterns of J azimuths each.

    A reflection counts as dark at the azimuths where it is no beam.

    Parameters
    ----------
    beams
        Those of the P J orientations of `precession_cone`.
    intensities
        Shape (T, B).

    Returns
    -------
    Offsets, shape (P + 1,), Miller indices, shape (B', 3), and intensities, shape (T, B'), with
    each reflection once in a pattern.
    """
    bound = np.abs(beams.hkl).max()
    pattern = beams.pattern // steps
    code = pattern
    for index in beams.hkl.T:
        code = code * (2 * bound + 1) + index + bound
    _, first, reflection = np.unique(code, return_index=True, return_inverse=True)
    mean = np.stack([np.bincount(reflection, weights=row) for row in intensities]) / steps
    counts = np.bincount(pattern[first], minlength=(len(beams.offsets) - 1) // steps)
    return np.concatenate([[0], np.cumsum(counts)]), beams.hkl[first], mean.astype(np.float32)
