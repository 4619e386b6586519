"""What a microscope does to lists of Bragg spots: pure functions of patterns, a level and draws.

Each works on the spots of all patterns at once; patterns may be empty. Level 0 changes nothing.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffractory.store import Patterns

DIRECT_BEAM = 1e-3
"""A spot nearer to the origin than this is the direct beam, 1/angstrom."""


def drop_spots(patterns: Patterns, fraction: float, rng: np.random.Generator) -> Patterns:
    """Lose each spot but the direct beam with the probability ``fraction``."""
    kept = (rng.random(len(patterns.qx)) >= fraction) | ~_diffracted(patterns)
    return replace(
        patterns,
        offsets=np.concatenate([[0], np.cumsum(kept)])[patterns.offsets],
        qx=patterns.qx[kept],
        qy=patterns.qy[kept],
        intensity=patterns.intensity[kept],
        hkl=patterns.hkl[kept],
    )


def add_spots(
    patterns: Patterns, fraction: float, g_max: float, rng: np.random.Generator
) -> Patterns:
    """Add spots that no crystal made, after those of each pattern; their indices are 000.

    Parameters
    ----------
    fraction
        Spots to add per diffracted spot of the pattern, rounded to the nearest whole number.
    g_max
        Radius of the disk that the positions are uniform in, 1/angstrom.
    rng
        Draws positions, and intensities from the diffracted spots of the same pattern.
    """
    diffracted = np.flatnonzero(_diffracted(patterns))
    start = np.searchsorted(diffracted, patterns.offsets)
    counts = np.round(fraction * np.diff(start)).astype(np.int64)
    pattern = np.repeat(np.arange(len(patterns)), counts)
    radius, angle = g_max * np.sqrt(rng.random(len(pattern))), 2 * np.pi * rng.random(len(pattern))
    model = diffracted[rng.integers(start[pattern], start[pattern + 1])]
    place = patterns.offsets[pattern + 1]
    return replace(
        patterns,
        offsets=patterns.offsets + np.concatenate([[0], np.cumsum(counts)]),
        qx=np.insert(patterns.qx, place, radius * np.cos(angle)),
        qy=np.insert(patterns.qy, place, radius * np.sin(angle)),
        intensity=np.insert(patterns.intensity, place, patterns.intensity[model]),
        hkl=np.insert(patterns.hkl, place, 0, axis=0),
    )


def jitter_positions(patterns: Patterns, deviation: float, rng: np.random.Generator) -> Patterns:
    """Move every spot by normal draws of this standard deviation per axis, 1/angstrom."""
    return _moved(patterns, rng.normal(0, deviation, (2, len(patterns.qx))))


def shift_centre(patterns: Patterns, distance: float, rng: np.random.Generator) -> Patterns:
    """Move each pattern as a whole by this distance, 1/angstrom, in a random direction."""
    angle = rng.uniform(0, 2 * np.pi, len(patterns))[patterns.pattern_of_spot]
    return _moved(patterns, distance * np.stack([np.cos(angle), np.sin(angle)]))


def scale_positions(patterns: Patterns, error: float) -> Patterns:
    """Multiply all positions by 1 + ``error``, as a wrong calibration does."""
    scale = np.float32(1 + error)
    return replace(patterns, qx=scale * patterns.qx, qy=scale * patterns.qy)


def _diffracted(patterns: Patterns) -> NDArray[np.bool_]:
    return np.hypot(patterns.qx, patterns.qy) >= DIRECT_BEAM


def _moved(patterns: Patterns, distance: NDArray[np.float64]) -> Patterns:
    """Add distances along x and y, 1/angstrom, shape (2, S)."""
    qx, qy = distance.astype(np.float32)
    return replace(patterns, qx=patterns.qx + qx, qy=patterns.qy + qy)
