"""Elliptical distortion from rings, and from nothing else."""

import numpy as np
import pytest

from diffractory.experiment.distortion import measure_ellipse

FCC = np.sqrt([3, 4, 8, 11, 12])


def rings(n, rng, noise=0.1, stray=0.1):
    """Return n spots (row, column; pixels) on the rings of gold, g beside -g, and stray ones."""
    radius, angle = 20 * rng.choice(FCC, n // 2), rng.uniform(0, np.pi, n // 2)
    spots = (radius * [np.sin(angle), np.cos(angle)]).T
    spots = np.stack([spots, -spots], axis=1).reshape(-1, 2) + rng.normal(0, noise, (n, 2))
    some = rng.random(n) < stray
    spots[some] = rng.uniform(-70, 70, (np.count_nonzero(some), 2))
    return spots


def distorted(spots, size, angle):
    """Stretch (row, column) offsets by a size along an angle from +column to +row, and back."""
    a, b = size * np.cos(2 * angle), size * np.sin(2 * angle)
    return spots @ (np.eye(2) + np.array([[-a, b], [b, a]]))


@pytest.mark.parametrize("size", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("angle", [0.0, 0.6, 2.2])
def test_an_ellipse_is_undone(size, angle):
    spots = rings(1000, np.random.default_rng(0))
    undo = measure_ellipse(distorted(spots, size, angle)).undo
    rest = undo @ distorted(np.eye(2), size, angle)
    rest /= np.sqrt(np.linalg.det(rest))
    np.testing.assert_allclose(rest, np.eye(2), atol=6e-4)
    assert np.linalg.det(undo) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_done_where_there_is_no_distortion_or_no_ring(seed):
    rng = np.random.default_rng(seed)
    evenly = rng.uniform(-90, 90, (2000, 2)) * [1, 0.6]
    for spots in (rings(1000, rng), evenly, rings(10, rng), np.empty((0, 2))):
        np.testing.assert_array_equal(measure_ellipse(spots).undo, np.eye(2))


def test_the_oblique_lattice_of_one_grain_is_no_distortion():
    rng = np.random.default_rng(5)
    h, k = np.indices((9, 9)).reshape(2, -1) - 4
    lattice = np.stack([20.0 * h, 20.8 * k + 0.5 * h], axis=1)[(h != 0) | (k != 0)]
    spots = np.tile(lattice, (100, 1)) + rng.normal(0, 0.1, (100 * len(lattice), 2))
    np.testing.assert_array_equal(measure_ellipse(spots).undo, np.eye(2))


def test_stray_spots_that_look_like_rings_by_chance_are_no_distortion():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        radius, angle = rng.uniform(20, 80, 300), rng.uniform(0, 2 * np.pi, 300)
        spots = (radius * [np.sin(angle), np.cos(angle)]).T
        np.testing.assert_array_equal(measure_ellipse(spots).undo, np.eye(2))
