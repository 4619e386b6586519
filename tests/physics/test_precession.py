"""Precession: the mean over a cone of beam directions."""

import numpy as np
import pytest
from crystals import G_MAX, GALLIUM_NITRIDE, S_MAX, STRONTIUM_TITANATE, along, crystal_of

from diffractory.simulate.beams import select_beams
from diffractory.simulate.bloch import bloch_intensities
from diffractory.simulate.kinematic import kinematic_intensities
from diffractory.simulate.precession import average_over_cone, precession_cone

ANGLE, STEPS = np.radians(1.2), 12


def precessed(atoms, rotations, solve=bloch_intensities, angle=ANGLE, steps=STEPS):
    crystal = crystal_of(atoms, 0.5)
    beams = select_beams(crystal, precession_cone(rotations, angle, steps), 2e5, G_MAX, S_MAX)
    result = solve(crystal, beams, np.array([150.0, 300.0]), G_MAX)
    return beams, result, average_over_cone(beams, result, steps)


def test_cone_has_its_angle_and_goes_round():
    rotations = along(STRONTIUM_TITANATE, (1, 2, 3))
    cone = precession_cone(rotations, ANGLE, STEPS)
    beam = cone[:, 2] @ rotations[0].T  # the beam's directions in axes of the untilted pattern
    np.testing.assert_allclose(np.arccos(beam[:, 2]), ANGLE)
    azimuth = np.unwrap(np.arctan2(beam[:, 1], beam[:, 0]))
    np.testing.assert_allclose(np.abs(np.diff(azimuth)), 2 * np.pi / STEPS)


def test_mean_is_that_of_the_single_patterns():
    rotations = np.concatenate([along(GALLIUM_NITRIDE, uvw) for uvw in [(1, 0, 0), (1, 1, 1)]])
    beams, single, (offsets, hkl, mean) = precessed(GALLIUM_NITRIDE, rotations)
    for p in range(2):
        sums = {}
        for q in range(p * STEPS, (p + 1) * STEPS):
            for b in range(beams.offsets[q], beams.offsets[q + 1]):
                key = tuple(beams.hkl[b])
                sums[key] = sums.get(key, 0) + single[:, b]
        rows = slice(offsets[p], offsets[p + 1])
        assert {tuple(h) for h in hkl[rows]} == set(sums)
        assert len(hkl[rows]) == len(sums)
        for h, value in zip(hkl[rows], mean[:, rows].T, strict=True):
            np.testing.assert_allclose(value, sums[tuple(h)] / STEPS, atol=1e-6)


@pytest.mark.parametrize("solve", [bloch_intensities, kinematic_intensities])
def test_no_angle_is_no_precession(solve):
    rotations = along(STRONTIUM_TITANATE, (1, 1, 2))
    beams, single, (_, hkl, mean) = precessed(STRONTIUM_TITANATE, rotations, solve, 0.0, 1)
    assert np.array_equal(hkl, beams.hkl)
    np.testing.assert_array_equal(mean, single)


def test_precession_makes_a_tilted_pattern_symmetric():
    """A pair g, -g that a misorientation tells apart is nearly equal in the precessed pattern."""
    tilt = precession_cone(np.eye(3)[None], np.radians(0.25), 8)[3]
    rotation = tilt @ along(STRONTIUM_TITANATE, (0, 0, 1))
    asymmetry = []
    for angle, steps in [(0.0, 1), (np.radians(1.5), 72)]:
        _, _, (_, hkl, mean) = precessed(STRONTIUM_TITANATE, rotation, angle=angle, steps=steps)
        of = dict(zip(map(tuple, hkl), mean[1], strict=True))
        pairs = [(of[h], of[tuple(-np.array(h))]) for h in [(1, 1, 0), (2, 0, 0), (2, 2, 0)]]
        asymmetry.append(max(abs(a - b) / (a + b) for a, b in pairs))
    assert asymmetry[0] > 0.1
    assert asymmetry[1] < 0.3 * asymmetry[0]
