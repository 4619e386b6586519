"""What a microscope does to spot lists: hand-worked cases and what must always hold."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import assert_equal, make_patterns

from diffractory.augment.spots import (
    add_spots,
    drop_spots,
    jitter_positions,
    scale_positions,
    shift_centre,
)
from diffractory.store import Patterns

PER_SPOT = ("qx", "qy", "intensity", "hkl")
G_MAX = 1.5
PERTURB = {
    "drop": drop_spots,
    "add": lambda patterns, level, rng: add_spots(patterns, level, G_MAX, rng),
    "jitter": jitter_positions,
    "shift": shift_centre,
    "scale": lambda patterns, level, _: scale_positions(patterns, level),
}
BEAM_AND_SPOTS = st.lists(st.integers(0, 9), max_size=6)
"""Spots per pattern, of which the first is the direct beam."""


def with_direct_beams(counts, seed=0) -> Patterns:
    """Return random patterns in which the first spot of each is the direct beam."""
    patterns = make_patterns(counts, seed)
    first = patterns.offsets[:-1][np.diff(patterns.offsets) > 0]
    patterns.qx[first] = patterns.qy[first] = 0
    patterns.hkl[first] = 0
    return patterns


def spots(patterns, k):
    """Return q_x, q_y and intensity of the spots of one pattern, shape (N, 3)."""
    part = slice(patterns.offsets[k], patterns.offsets[k + 1])
    columns = (patterns.qx, patterns.qy, patterns.intensity)
    return np.stack([column[part] for column in columns], axis=1)


def is_direct(patterns):
    return np.hypot(patterns.qx, patterns.qy) < 1e-3


def assert_well_formed(after: Patterns, before: Patterns):
    """Arrays fit together and keep their types, and what is known of the patterns is as before."""
    assert after.offsets[0] == 0
    assert (np.diff(after.offsets) >= 0).all()
    for field in fields(Patterns):
        values, old = getattr(after, field.name), getattr(before, field.name)
        assert values.dtype == old.dtype, field.name
        if field.name in PER_SPOT:
            assert values.shape == (after.offsets[-1], *old.shape[1:]), field.name
        elif field.name != "offsets":
            assert np.array_equal(values, old), field.name


@pytest.mark.parametrize("name", PERTURB)
@settings(max_examples=25, deadline=None)
@given(counts=BEAM_AND_SPOTS, level=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_same_generator_gives_the_same_and_the_patterns_given_stay(name, counts, level, seed):
    patterns = with_direct_beams(counts, seed)
    once, again = (PERTURB[name](patterns, level, np.random.default_rng(seed)) for _ in range(2))
    assert_equal(once, again)
    assert_equal(patterns, with_direct_beams(counts, seed))
    assert_well_formed(once, patterns)


@pytest.mark.parametrize("name", PERTURB)
@pytest.mark.parametrize("counts", [[], [0, 0], [3, 0, 5, 1, 0]])
def test_level_0_changes_nothing(name, counts):
    patterns = with_direct_beams(counts)
    assert_equal(PERTURB[name](patterns, 0.0, np.random.default_rng(1)), patterns)


@settings(max_examples=40, deadline=None)
@given(counts=BEAM_AND_SPOTS, fraction=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_dropping_leaves_a_part_of_each_pattern_and_its_direct_beam(counts, fraction, seed):
    patterns = with_direct_beams(counts, seed)
    dropped = drop_spots(patterns, fraction, np.random.default_rng(seed))
    for k in range(len(patterns)):
        before, after = spots(patterns, k), spots(dropped, k)
        place = [int(np.flatnonzero((before == spot).all(axis=1))[0]) for spot in after]
        assert place == sorted(set(place))  # the same spots in the same order
        assert place[:1] == [0] * min(1, len(before))
    kept = np.isin(patterns.intensity, dropped.intensity)
    assert np.array_equal(patterns.hkl[kept], dropped.hkl)


def test_dropping_everything_leaves_the_direct_beams():
    patterns = with_direct_beams([4, 0, 1, 7])
    dropped = drop_spots(patterns, 1.0, np.random.default_rng(0))
    assert dropped.offsets.tolist() == [0, 1, 1, 2, 3]
    assert is_direct(dropped).all()


def test_each_spot_is_lost_with_the_probability_that_is_given():
    patterns = with_direct_beams([1001] * 40)
    kept = np.diff(drop_spots(patterns, 0.3, np.random.default_rng(0)).offsets) - 1
    assert kept.sum() == pytest.approx(28_000, abs=500)  # 5 standard deviations
    assert kept.std() == pytest.approx(np.sqrt(1000 * 0.3 * 0.7), rel=0.4)


def test_hand_worked_counts_of_added_spots():
    patterns = with_direct_beams([0, 1, 2, 6, 11])  # 0, 0, 1, 5 and 10 diffracted spots
    added = add_spots(patterns, 0.5, G_MAX, np.random.default_rng(0))
    # Halves are rounded to even numbers: 0.5 to 0, 2.5 to 2.
    assert np.diff(added.offsets).tolist() == [0, 1, 2, 6 + 2, 11 + 5]


@settings(max_examples=40, deadline=None)
@given(counts=BEAM_AND_SPOTS, fraction=st.floats(0, 3), seed=st.integers(0, 2**32 - 1))
def test_added_spots_follow_those_of_the_pattern(counts, fraction, seed):
    patterns = with_direct_beams(counts, seed)
    added = add_spots(patterns, fraction, G_MAX, np.random.default_rng(seed))
    for k in range(len(patterns)):
        before, after = spots(patterns, k), spots(added, k)
        n = len(before)
        assert np.array_equal(after[:n], before)
        assert len(after) == n + round(fraction * max(n - 1, 0))
        new = slice(added.offsets[k] + n, added.offsets[k + 1])
        assert (np.hypot(after[n:, 0], after[n:, 1]) <= G_MAX * (1 + 1e-6)).all()
        assert set(after[n:, 2]) <= set(before[1:, 2])  # never that of the direct beam
        assert not added.hkl[new].any()
        assert np.array_equal(added.hkl[added.offsets[k]:][:n],
                              patterns.hkl[patterns.offsets[k]:][:n])  # fmt: skip


def test_added_spots_are_uniform_in_the_disk_and_take_any_intensity():
    patterns = with_direct_beams([4, 11])
    added = add_spots(patterns, 2000.0, G_MAX, np.random.default_rng(0))
    x, y, intensity = spots(added, 1)[11:].T
    assert len(x) == 20_000
    # Uniform: a quarter lies within half of the radius, half on each side of each axis.
    assert np.mean(np.hypot(x, y) < G_MAX / 2) == pytest.approx(0.25, abs=0.016)
    assert np.mean(x > 0) == pytest.approx(0.5, abs=0.018)
    assert np.mean(y > 0) == pytest.approx(0.5, abs=0.018)
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.036
    values, counts = np.unique(intensity, return_counts=True)
    assert np.array_equal(values, np.sort(patterns.intensity[5:]))
    assert counts.min() > 1750


def test_jitter_has_the_deviation_given_on_each_axis():
    patterns = with_direct_beams([5000, 0, 5000])
    moved = jitter_positions(patterns, 0.02, np.random.default_rng(0))
    dx, dy = moved.qx - patterns.qx, moved.qy - patterns.qy
    for distance in (dx, dy):
        assert distance.std() == pytest.approx(0.02, rel=0.05)
        assert distance.mean() == pytest.approx(0, abs=1e-3)
    assert abs(np.corrcoef(dx, dy)[0, 1]) < 0.05
    assert abs(np.corrcoef(dx[:5000], dx[5000:])[0, 1]) < 0.07
    assert np.array_equal(moved.intensity, patterns.intensity)


@settings(max_examples=25, deadline=None)
@given(counts=BEAM_AND_SPOTS, distance=st.floats(0.001, 0.2), seed=st.integers(0, 2**32 - 1))
def test_shift_moves_a_pattern_as_a_whole(counts, distance, seed):
    patterns = with_direct_beams(counts, seed)
    moved = shift_centre(patterns, distance, np.random.default_rng(seed))
    for k in range(len(patterns)):
        by = (spots(moved, k) - spots(patterns, k))[:, :2]
        np.testing.assert_allclose(by, np.broadcast_to(by[:1], by.shape), atol=2e-6)
        np.testing.assert_allclose(np.hypot(*by.T), distance, atol=2e-6)


def test_patterns_are_shifted_in_all_directions():
    patterns = with_direct_beams([1] * 4000)
    moved = shift_centre(patterns, 0.1, np.random.default_rng(0))
    quadrants = np.bincount(2 * (moved.qx > 0) + (moved.qy > 0), minlength=4)
    assert quadrants.min() > 860


def test_hand_worked_scale():
    patterns = make_patterns([3])
    patterns.qx[:], patterns.qy[:] = [0, 0.5, -1], [0, 1, 0.2]
    scaled = scale_positions(patterns, -0.05)
    np.testing.assert_allclose(scaled.qx, [0, 0.475, -0.95], rtol=1e-6)
    np.testing.assert_allclose(scaled.qy, [0, 0.95, 0.19], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(counts=BEAM_AND_SPOTS, error=st.floats(-0.5, 1))
def test_scaling_back_gives_the_pattern_again(counts, error):
    patterns = with_direct_beams(counts)
    back = scale_positions(scale_positions(patterns, error), 1 / (1 + error) - 1)
    np.testing.assert_allclose(back.qx, patterns.qx, rtol=1e-6)
    np.testing.assert_allclose(back.qy, patterns.qy, rtol=1e-6)
