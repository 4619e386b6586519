"""Steps on spot patterns: counting statistics, hand-worked distortions, draws by material."""

from dataclasses import replace

import numpy as np
import pytest
from test_spot_perturbations import assert_well_formed, is_direct, with_direct_beams
from test_store import assert_equal

from diffractory.augment.spot_steps import augment_spots
from diffractory.augment.spots import (
    count_electrons,
    distort_ellipse,
    drop_spots,
    jitter_intensities,
    shift_centre,
    turn_patterns,
)
from diffractory.errors import InputError
from diffractory.store import Patterns

ALL_STEPS = [
    {"missing_spots": {"fraction": [0.0, 0.5]}},
    {"spurious_spots": {"fraction": 0.3, "g_max": 1.5}},
    {"position_jitter": {"deviation": [0.0, 0.02]}},
    {"intensity_jitter": {"deviation": 0.2}},
    {"centre_shift": {"distance": [0.0, 0.03]}},
    {"rotation": {"angle": [0, 360]}},
    {"scale": {"error": [-0.02, 0.02]}},
    {"ellipse": {"ratio": [1.0, 1.05], "angle": [0, 180]}},
    {"poisson": {"dose": [100, 10000]}},
]


def of_materials(counts: list[int], names: list[str]) -> Patterns:
    """Return patterns of so many spots, with the direct beam first, of these materials."""
    patterns = with_direct_beams(counts)
    return replace(patterns, material_id=np.array(names, dtype=object))


def test_counts_are_poisson_at_the_dose():
    patterns = with_direct_beams([40] * 500)
    patterns.intensity[:] = np.tile(np.linspace(0.01, 0.4, 40), 500)
    patterns.qx[:] = np.arange(20_000)
    dose = 200.0
    made = count_electrons(patterns, dose, np.random.default_rng(0))
    assert_well_formed(made, patterns)
    counts = np.zeros((500, 40))
    # Spots that nothing was counted in are gone: find the others by their place.
    column = np.flatnonzero(np.isin(patterns.qx, made.qx))
    counts.flat[column] = made.intensity * dose
    mean = dose * patterns.intensity[:40]
    assert np.allclose(made.intensity * dose, np.rint(made.intensity * dose), atol=1e-4)
    error = np.sqrt(mean / 500)
    assert (np.abs(counts.mean(axis=0) - mean) < 5 * error).all()
    assert np.allclose(counts.var(axis=0) / mean, 1, atol=0.35)
    expected = np.exp(-mean) * 500
    lost = 500 - np.bincount(column % 40, minlength=40)
    assert (np.abs(lost - expected) < 5 * np.sqrt(expected + 1)).all()


def test_each_pattern_has_a_dose_of_its_own():
    patterns = with_direct_beams([20, 20, 20])
    patterns.intensity[:] = 0.5
    made = count_electrons(patterns, np.array([0.0, 10.0, 1e8]), np.random.default_rng(0))
    assert np.diff(made.offsets)[0] == 0
    assert np.diff(made.offsets)[2] == 20
    assert np.allclose(made.intensity[made.offsets[2] :], 0.5, rtol=1e-3)
    assert made.intensity[made.offsets[1] : made.offsets[2]].std() > 0.05


def test_ellipse_by_hand():
    patterns = with_direct_beams([4])
    patterns.qx[:], patterns.qy[:] = [0, 1, 0, 1], [0, 0, 1, 1]
    along_x = distort_ellipse(patterns, 4.0, 0.0)
    assert np.allclose(along_x.qx, [0, 2, 0, 2])
    assert np.allclose(along_x.qy, [0, 0, 0.5, 0.5])
    diagonal = distort_ellipse(patterns, 4.0, 45.0)
    assert np.allclose([diagonal.qx[3], diagonal.qy[3]], [2, 2])
    assert np.allclose([diagonal.qx[1], diagonal.qy[1]], [1.25, 0.75])
    assert_well_formed(diagonal, patterns)
    unchanged = distort_ellipse(patterns, 1.0, 30.0)
    assert np.allclose(unchanged.qx, patterns.qx)


def test_a_turn_by_hand():
    """Each pattern by its own angle; what turns spots and crystal alike leaves them together."""
    patterns = with_direct_beams([3, 3])
    patterns.qx[:], patterns.qy[:] = [0, 1, 0] * 2, [0, 0, 2] * 2
    patterns.orientation[:] = np.eye(3)
    made = turn_patterns(patterns, np.array([90.0, 30.0]))
    assert np.allclose(made.qx, [0, 0, -2, 0, np.sqrt(0.75), -1], atol=1e-6)
    assert np.allclose(made.qy, [0, 1, 0, 0, 0.5, np.sqrt(3)], atol=1e-6)
    for orientation, spot in zip(made.orientation, (1, 4), strict=True):
        there = [made.qx[spot], made.qy[spot], 0]
        assert np.allclose(orientation @ [1, 0, 0], there, atol=1e-6)
    assert_well_formed(replace(made, orientation=patterns.orientation), patterns)


def test_intensities_are_jittered_about_what_they_were():
    patterns = with_direct_beams([20_001])
    patterns.intensity[:] = 0.25
    made = jitter_intensities(patterns, 0.3, np.random.default_rng(0))
    assert_well_formed(made, patterns)
    assert made.intensity[0] == 0.25
    ratio = made.intensity[1:] / 0.25
    assert abs(ratio.mean() - 1) < 0.01
    assert abs(np.log(ratio).std() - 0.3) < 0.008
    assert_equal(jitter_intensities(patterns, 0.0, np.random.default_rng(0)), patterns)


def test_levels_of_each_pattern_are_its_own():
    patterns = with_direct_beams([200, 200, 200])
    kept = drop_spots(patterns, np.array([0.0, 1.0, 0.5]), np.random.default_rng(0))
    counts = np.diff(kept.offsets)
    assert counts[0] == 200
    assert counts[1] == 1
    assert 60 < counts[2] < 140
    moved = shift_centre(patterns, np.array([0.0, 0.1, 0.2]), np.random.default_rng(0))
    distance = np.hypot(moved.qx - patterns.qx, moved.qy - patterns.qy).reshape(3, 200)
    assert np.allclose(distance, [[0], [0.1], [0.2]], atol=1e-6)


def test_patterns_come_out_the_same_with_whichever_materials_they_are_given():
    patterns = of_materials([5, 9, 7, 0, 6, 8], ["b", "b", "a", "a", "a", "c"])
    whole, drawn = augment_spots(patterns, ALL_STEPS, 3)
    parts = [
        augment_spots(patterns.select(np.arange(*ends)), ALL_STEPS, 3) for ends in ((2, 5), (5, 6))
    ]
    assert_equal(whole.select(np.array([2, 3, 4, 5])), Patterns.concatenate([p for p, _ in parts]))
    for key, values in drawn.items():
        assert np.array_equal(values[2:], np.concatenate([d[key] for _, d in parts]))
    assert_well_formed(replace(whole, orientation=patterns.orientation), patterns)
    other, _ = augment_spots(patterns, ALL_STEPS, 4)
    assert not np.array_equal(whole.offsets, other.offsets)


def test_levels_are_drawn_for_each_pattern_and_recorded():
    patterns = of_materials([3] * 400, ["a"] * 200 + ["b"] * 200)
    _, drawn = augment_spots(patterns, ALL_STEPS, 0)
    assert set(drawn) == {
        "0.missing_spots.fraction", "1.spurious_spots.fraction", "1.spurious_spots.g_max",
        "2.position_jitter.deviation", "3.intensity_jitter.deviation", "4.centre_shift.distance",
        "5.rotation.angle", "6.scale.error", "7.ellipse.ratio", "7.ellipse.angle", "8.poisson.dose",
    }  # fmt: skip
    fraction, dose = drawn["0.missing_spots.fraction"], drawn["8.poisson.dose"]
    assert len(np.unique(fraction)) == 400
    assert 0 <= fraction.min() < 0.02 < 0.48 < fraction.max() <= 0.5
    assert abs(np.log10(dose).mean() - 3) < 0.12  # logarithmic: the median is 1000
    assert (drawn["1.spurious_spots.fraction"] == 0.3).all()


def test_recorded_levels_are_those_that_were_applied():
    patterns = of_materials([30] * 40, ["a"] * 40)
    made, drawn = augment_spots(patterns, [{"scale": {"error": [-0.1, 0.1]}}], 0)
    scale = np.repeat(1 + drawn["0.scale.error"], 30)
    assert np.allclose(made.qx, patterns.qx * scale)
    shifted, drawn = augment_spots(patterns, [{"centre_shift": {"distance": [0, 0.1]}}], 0)
    beams = is_direct(patterns)
    assert np.allclose(
        np.hypot(shifted.qx, shifted.qy)[beams], drawn["0.centre_shift.distance"], atol=1e-6
    )


def test_no_steps_and_no_patterns_change_nothing():
    patterns = of_materials([3, 0, 2], ["a", "a", "b"])
    assert_equal(augment_spots(patterns, [], 0)[0], patterns)
    assert len(augment_spots(Patterns.empty(), ALL_STEPS, 0)[0]) == 0


@pytest.mark.parametrize(
    "step",
    [
        {"noise": {"level": 1}},
        {"scale": {"errors": 1}},
        {"ellipse": {"ratio": 1.1}},
        {"scale": 0.1},
    ],
)
def test_wrong_steps_are_named(step):
    with pytest.raises(InputError, match=next(iter(step))):
        augment_spots(Patterns.empty(), [step], 0)
