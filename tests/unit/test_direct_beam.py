"""How large the direct beam is, and where it falls."""

import numpy as np
import pytest

from diffractory.experiment.direct_beam import (
    drift_terms,
    fit_drift,
    inversion_centre,
    mean_spot,
    measure_disk,
    pair_spots,
    rough_radius,
)

FINE = 9


def disks(places, radius, shape=(64, 70), blur=0.0):
    """Return frames with a disk of sum 1 about each place (row, column)."""
    rows, columns = ((np.indices(np.multiply(shape, FINE)) + 0.5) / FINE) - 0.5
    rng = np.random.default_rng(0)
    frames = []
    for row, column in places:
        y, x = rows - row, columns - column
        if blur:  # many disks, drawn from a Gaussian
            shifts = rng.normal(0, blur, (30, 2))
            image = np.mean([np.hypot(y - a, x - b) < radius for a, b in shifts], axis=0)
        else:
            image = np.hypot(y, x) < radius
        image = image.reshape(shape[0], FINE, shape[1], FINE).mean(axis=(1, 3))
        frames.append(image / image.sum())
    return np.array(frames)


def places_of(n, seed=1):
    return np.random.default_rng(seed).uniform(25, 38, (n, 2))


@pytest.mark.parametrize("radius", [1.0, 1.7, 3.0, 6.0])
def test_the_radius_is_measured_to_a_part_of_a_pixel(radius):
    rng = np.random.default_rng(2)
    places = places_of(30)
    frames = rng.poisson(700 * disks(places, radius) + 0.05).astype(np.float32)
    rough = rough_radius(frames)
    assert rough == pytest.approx(radius, rel=0.3)
    works = np.ones(frames.shape[1:], dtype=bool)
    disk = measure_disk(frames, places, works, rough)
    assert disk.radius == pytest.approx(radius, abs=0.06)
    assert disk.blur < 0.4
    assert disk.level == pytest.approx(0.05 / (700 / (np.pi * radius**2)), abs=0.01)


def test_a_blurred_disk_is_told_from_a_sharp_one_and_dead_pixels_do_not_count():
    places = places_of(4)
    frames = disks(places, 5.0, blur=0.9).astype(np.float32)
    works = np.random.default_rng(3).random(frames.shape[1:]) > 0.2
    disk = measure_disk(np.where(works, frames, 0), places, works, 4.0)
    assert disk.radius == pytest.approx(5.0, abs=0.1)
    assert disk.blur == pytest.approx(0.9, abs=0.15)


def test_without_a_whole_spot_the_rough_radius_stays():
    frames = np.zeros((2, 64, 70), dtype=np.float32)
    places = np.array([[np.nan, np.nan], [3.0, 40.0]])
    assert measure_disk(frames, places, np.ones((64, 70), dtype=bool), 4.0).radius == 4
    assert rough_radius(frames) == 1


def test_the_mean_spot_is_in_the_middle():
    frames = disks(places_of(40), 3.4).astype(np.float32)
    spot = mean_spot(frames, places_of(40), 8)
    assert spot.shape == (17, 17)
    rows, columns = np.indices(spot.shape) - 8
    assert spot.sum() == pytest.approx(1, abs=0.01)
    assert (spot * rows).sum() == pytest.approx(0, abs=0.03)
    assert (spot * columns).sum() == pytest.approx(0, abs=0.03)
    np.testing.assert_allclose(spot, disks([(32, 32)], 3.4)[0, 24:41, 24:41], atol=0.006)


def scan_terms(*shape):
    return drift_terms(np.arange(np.prod(shape)), shape)


def test_the_terms_of_the_drift_count_from_edge_to_edge():
    terms = scan_terms(3, 5)
    assert terms[0].tolist() == [1, -1, -1, 1, 1, 1]
    assert terms[7].tolist() == [1, 0, 0, 0, 0, 0]
    assert terms[9].tolist() == [1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_the_drift_is_found_among_places_that_are_not_the_direct_beam(seed):
    rng = np.random.default_rng(seed)
    terms = scan_terms(12, 15)
    drift = np.array([[128, 120], [30, -12], [9, 24], [4, 1], [0, 3], [-3, 2]])
    found = terms @ drift + rng.normal(0, 0.1, (180, 2))
    wrong = rng.random(180) < 0.4
    found[wrong] = rng.uniform(60, 190, (wrong.sum(), 2))
    fitted = fit_drift(terms, found, np.ones(180), 3.0)
    np.testing.assert_allclose(terms @ fitted, terms @ drift, atol=0.25)


def test_of_two_surfaces_the_brighter_one_is_the_direct_beam():
    terms = np.repeat(scan_terms(6, 6), 2, axis=0)
    found = np.tile([[60.0, 60.0], [60.0, 90.0]], (36, 1))
    fitted = fit_drift(terms, found, np.tile([0.9, 1.0], 36), 3.0)
    np.testing.assert_allclose(terms @ fitted, np.tile([60, 90], (72, 1)), atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2)])
def test_few_places_have_a_constant_drift(shape):
    terms = scan_terms(*shape)
    found = np.array([100.0, 90.0]) + 0.3 * np.arange(len(terms))[:, None]
    fitted = fit_drift(terms, found, np.ones(len(found)), 2.0)
    np.testing.assert_allclose(terms @ fitted, np.tile(found.mean(axis=0), (len(terms), 1)))


@pytest.mark.parametrize("shape", [(1, 40), (40, 1)])
def test_a_line_of_positions_has_a_drift_along_it(shape):
    terms = scan_terms(*shape)
    along = np.linspace(-1, 1, 40)
    found = np.stack([100 + 20 * along, 90 - 7 * along**2], axis=1)
    fitted = fit_drift(terms, found, np.ones(len(found)), 2.0)
    np.testing.assert_allclose(terms @ fitted, found, atol=1e-8)


def test_pairs_tell_the_centre_of_inversion():
    g = np.array([[12.0, 5.0], [-3.0, 14.0]])
    frames = [
        np.array([30, 40]) + np.concatenate([g, -g]),  # all about (30, 40)
        np.array([[42.0, 45.0], [18.0, 35.0], [9.0, 9.0]]),  # one pair and a stray spot
        np.empty((0, 2)),
    ]
    offsets = np.cumsum([0, *map(len, frames)])
    pairs = pair_spots(offsets, np.concatenate(frames), np.ones(7, dtype=np.float32))
    assert np.bincount(pairs.frame).tolist() == [10, 6]  # with itself, too
    assert pairs.weight.sum() == 7 + 2 * (6 + 3)
    found = np.hypot(*(pairs.place - [30, 40]).T) < 1e-9
    assert pairs.weight[found].tolist() == [2, 2, 2]
    np.testing.assert_allclose(inversion_centre(pairs, 2.0), [30, 40], atol=2)
