"""Pixels that do not count."""

import numpy as np
import pytest

from diffractory.experiment.detector_mask import beam_stop, dark_level, working_pixels

SHAPE = (60, 70)


def light(n, electrons, seed=0):
    """Return n frames with about so many electrons in each pixel."""
    return np.random.default_rng(seed).poisson(electrons, (n, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize(("gain", "dark", "noise"), [(1, 0, 0), (80, 100, 6)])
def test_hot_and_dead_pixels_and_gaps_are_found_and_nothing_else(gain, dark, noise):
    rng = np.random.default_rng(1)
    frames = gain * light(100, 1.0) + dark + rng.normal(0, noise, (100, *SHAPE))
    bad = np.zeros(SHAPE, dtype=bool)
    bad[30:34, :] = bad[:, 20:23] = True  # two gaps that cross
    bad[5, 50] = bad[50, 60] = True  # dead
    frames[:, bad] = dark
    hot = [(10, 10), (10, 11), (59, 69), (0, 40), (45, 5)]
    for row, column in hot:
        frames[:, row, column] += gain * rng.poisson(20, 100)
        bad[row, column] = True
    frames = frames.astype(np.float32)
    # Near a corner of the gaps, and of the frame, is light on one side alone.
    np.testing.assert_array_equal(~working_pixels(frames, dark), bad)


def test_a_gap_along_the_whole_detector_is_found_in_little_light():
    frames = light(50, 0.02)
    frames[:, :, 33:36] = 0
    assert np.flatnonzero(~working_pixels(frames, 0.0).any(axis=0)).tolist() == [33, 34, 35]
    assert working_pixels(frames, 0.0)[:, :33].all()


def test_one_frame_shows_hot_pixels_and_no_dead_ones():
    frame = light(1, 0.02)
    assert (frame == 0).mean() > 0.9
    frame[0, 30, 30] = 60
    works = working_pixels(frame, 0.0)
    assert not works[30, 30]
    assert np.count_nonzero(~works) == 1


def test_sharp_spots_that_move_are_no_hot_pixels_and_leave_no_dead_ones():
    rng = np.random.default_rng(2)
    rows, columns = np.indices(SHAPE)
    places = rng.uniform(10, 50, (200, 2))
    spots = np.array([np.hypot(rows - y, columns - x) < 1.1 for y, x in places])
    assert working_pixels(rng.poisson(50 * spots).astype(np.float32), 0.0).all()
    still = np.hypot(rows - 30.3, columns - 30.4) < 1.1
    assert working_pixels(rng.poisson(50 * still, (200, *SHAPE)).astype(np.float32), 0.0).all()


def test_a_camera_that_adds_to_each_pixel_is_told_from_one_that_counts():
    rng = np.random.default_rng(3)
    counted = light(20, 0.3)
    assert dark_level(counted) == 0
    read = 50 * counted + 200 + rng.normal(0, 5, counted.shape)
    read[:, :5] = 200 + rng.normal(0, 5, read[:, :5].shape)  # where nothing falls
    assert dark_level(read.astype(np.float32)) == pytest.approx(200, abs=3)


def halo(centre, rings=0.0):
    """Return mean electrons of a frame about a direct beam."""
    rows, columns = np.indices((120, 130))
    distance = np.hypot(rows - centre[0], columns - centre[1])
    return 2 * np.exp(-distance / 30) + rings * np.exp(-(((distance - 40) / 1.5) ** 2))


@pytest.mark.parametrize("rings", [0.0, 8.0])
@pytest.mark.parametrize("holder", [True, False])
def test_a_beam_stop_is_found_whole(rings, holder):
    rng = np.random.default_rng(4)
    rows, columns = np.indices((120, 130))
    stop = np.hypot(rows - 57, columns - 66) < 12
    if holder:
        stop |= (abs(rows - 57) < 4) & (columns > 66)
    mean = rng.poisson(100 * np.where(stop, 0.002, halo((58, 64), rings))) / 100
    found = beam_stop(mean, np.ones(mean.shape, dtype=bool), np.array([58.0, 64.0]), 3.0)
    near = (columns < 110) & stop  # farther out, the holder is as dark as the rest
    assert found[near].all()
    beyond = np.hypot(rows - 57, columns - 66) > 16
    if holder:
        beyond &= (abs(rows - 57) > 8) | (columns < 66)
    assert not (found & beyond).any()


def test_without_a_beam_stop_none_is_found():
    mean = halo((58, 64), rings=8.0)
    mean[55:62, 61:68] += 100
    works = np.ones(mean.shape, dtype=bool)
    assert not beam_stop(mean, works, np.array([58.0, 64.0]), 3.0).any()
    dark = np.zeros(mean.shape)
    assert not beam_stop(dark, works, np.array([58.0, 64.0]), 3.0).any()
