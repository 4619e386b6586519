"""What a microscope does to lists of Bragg spots: pure functions of patterns, a level and draws.

Each works on the spots of all patterns at once; patterns may be empty. A level is a number, or one
for each pattern, shape (P,). Level 0 changes nothing (of `distort_ellipse`, ratio 1).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffractory.store import Patterns

Level = float | NDArray[np.float64]

DIRECT_BEAM = 1e-3
"""A spot nearer to the origin than this is the direct beam, 1/angstrom."""


def drop_spots(patterns: Patterns, fraction: Level, rng: np.random.Generator) -> Patterns:
    """Lose each spot but the direct beam with the probability ``fraction``."""
    kept = rng.random(len(patterns.qx)) >= _per_spot(fraction, patterns)
    return _keep(patterns, kept | ~_diffracted(patterns))


def add_spots(
    patterns: Patterns, fraction: Level, g_max: Level, rng: np.random.Generator
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
    within = np.broadcast_to(g_max, len(patterns))[pattern]
    radius, angle = within * np.sqrt(rng.random(len(pattern))), 2 * np.pi * rng.random(len(pattern))
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


def jitter_positions(patterns: Patterns, deviation: Level, rng: np.random.Generator) -> Patterns:
    """Move every spot by normal draws of this standard deviation per axis, 1/angstrom."""
    deviation = _per_spot(deviation, patterns)
    return _moved(patterns, rng.normal(0, deviation, (2, len(patterns.qx))))


def jitter_intensities(patterns: Patterns, deviation: Level, rng: np.random.Generator) -> Patterns:
    """Multiply the intensity of each diffracted spot by a log-normal draw of mean 1.

    Parameters
    ----------
    deviation
        Standard deviation of its logarithm.
    """
    deviation = _per_spot(deviation, patterns)
    factor = np.exp(rng.normal(-(deviation**2) / 2, deviation, len(patterns.qx)))
    factor = np.where(_diffracted(patterns), factor, 1).astype(np.float32)
    return replace(patterns, intensity=patterns.intensity * factor)


def count_electrons(patterns: Patterns, dose: Level, rng: np.random.Generator) -> Patterns:
    """Count electrons: intensities become Poisson counts over the dose, and unseen spots are lost.

    Parameters
    ----------
    dose
        Electrons of the incident beam per pattern. A dose of 0 sees nothing.
    """
    dose = _per_spot(dose, patterns)
    counts = rng.poisson(patterns.intensity * dose)
    seen = counts > 0
    intensity = (counts / np.where(dose > 0, dose, 1)).astype(np.float32)
    return _keep(replace(patterns, intensity=intensity), seen)


def shift_centre(patterns: Patterns, distance: Level, rng: np.random.Generator) -> Patterns:
    """Move each pattern as a whole by this distance, 1/angstrom, in a random direction."""
    angle = rng.uniform(0, 2 * np.pi, len(patterns))[patterns.pattern_of_spot]
    distance = _per_spot(distance, patterns)
    return _moved(patterns, distance * np.stack([np.cos(angle), np.sin(angle)]))


def scale_positions(patterns: Patterns, error: Level) -> Patterns:
    """Multiply all positions by 1 + ``error``, as a wrong calibration does."""
    scale = (1 + _per_spot(error, patterns)).astype(np.float32)
    return replace(patterns, qx=scale * patterns.qx, qy=scale * patterns.qy)


def turn_patterns(patterns: Patterns, angle: Level) -> Patterns:
    """Turn patterns about the beam by an angle from +q_x to +q_y, degree."""
    angle = np.broadcast_to(np.radians(angle), len(patterns))
    cosine, sine, zero = np.cos(angle), np.sin(angle), np.zeros(len(patterns))
    turn = np.stack([[cosine, -sine, zero], [sine, cosine, zero], [zero, zero, zero + 1]])
    turn = turn.transpose(2, 0, 1)
    of_spot = turn[patterns.pattern_of_spot, :2, :2]
    places = np.stack([patterns.qx, patterns.qy], axis=-1)
    qx, qy = np.einsum("sij,sj->is", of_spot, places).astype(np.float32)
    return replace(patterns, qx=qx, qy=qy, orientation=turn @ patterns.orientation)


def distort_ellipse(patterns: Patterns, ratio: Level, angle: Level) -> Patterns:
    """Stretch patterns along one axis and shrink them across, as a lens with astigmatism does.

    Parameters
    ----------
    ratio
        Of the long to the short axis of what was a circle; its area stays.
    angle
        Of the long axis from +q_x, degree.
    """
    stretch, turned = np.sqrt(_per_spot(ratio, patterns)), np.radians(_per_spot(angle, patterns))
    cosine, sine = np.cos(turned), np.sin(turned)
    along = stretch * (cosine * patterns.qx + sine * patterns.qy)
    across = (cosine * patterns.qy - sine * patterns.qx) / stretch
    return replace(
        patterns,
        qx=(cosine * along - sine * across).astype(np.float32),
        qy=(sine * along + cosine * across).astype(np.float32),
    )


def _per_spot(level: Level, patterns: Patterns) -> NDArray[np.float64]:
    """Return the level of each spot, shape (S,)."""
    each = np.broadcast_to(np.asarray(level, dtype=np.float64), len(patterns))
    return each[patterns.pattern_of_spot]


def _keep(patterns: Patterns, kept: NDArray[np.bool_]) -> Patterns:
    """Return the patterns with these spots only, shape (S,)."""
    return replace(
        patterns,
        offsets=np.concatenate([[0], np.cumsum(kept)])[patterns.offsets],
        qx=patterns.qx[kept],
        qy=patterns.qy[kept],
        intensity=patterns.intensity[kept],
        hkl=patterns.hkl[kept],
    )


def _diffracted(patterns: Patterns) -> NDArray[np.bool_]:
    return np.hypot(patterns.qx, patterns.qy) >= DIRECT_BEAM


def _moved(patterns: Patterns, distance: NDArray[np.float64]) -> Patterns:
    """Add distances along x and y, 1/angstrom, shape (2, S)."""
    qx, qy = distance.astype(np.float32)
    return replace(patterns, qx=patterns.qx + qx, qy=patterns.qy + qy)
