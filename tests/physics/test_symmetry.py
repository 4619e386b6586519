"""What symmetry demands of the patterns of any crystal: pymatgen's prototypes, by hypothesis."""

import numpy as np
import pytest
from crystals import G_MAX, PROTOTYPES, S_MAX, prototype
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffractory.simulate.beams import select_beams
from diffractory.simulate.bloch import bloch_intensities
from diffractory.simulate.kinematic import kinematic_intensities
from diffractory.simulate.orientations import (
    proper_rotations,
    random_rotations,
    rotations_along,
    to_fundamental_zone,
)

ENGINES = [bloch_intensities, kinematic_intensities]
SMALL = st.integers(0, PROTOTYPES - 1).map(prototype).filter(lambda p: p and p[0].volume < 400)
INDEX = st.integers(-2, 2)


def by_hkl(beams, intensities):
    return dict(zip(map(tuple, beams.hkl), intensities, strict=True))


@pytest.mark.parametrize("solve", ENGINES)
@settings(max_examples=40, deadline=None)
@given(crystal_and_group=SMALL, uvw=st.tuples(INDEX, INDEX, INDEX).filter(any))
def test_zone_axis_pattern_has_the_symmetry_of_the_projection(solve, crystal_and_group, uvw):
    """Operations of the point group that keep the beam's direction keep the pattern."""
    crystal, rotations = crystal_and_group
    keep = [w for w in rotations if (w @ uvw == uvw).all() and (w != np.eye(3)).any()]
    assume(keep)
    beams = select_beams(
        crystal, rotations_along(np.array([uvw]) @ crystal.cell, np.zeros(1)), 2e5, G_MAX, S_MAX
    )
    of = by_hkl(beams, solve(crystal, beams, np.array([300.0]), G_MAX)[0])
    limit = S_MAX - 1e-6
    for w in keep:
        moved = np.rint(beams.hkl @ np.linalg.inv(w)).astype(int)
        for hkl, image, s in zip(beams.hkl, moved, beams.excitation_error, strict=True):
            if abs(s) < limit:  # at the limit rounding decides what is a beam
                assert of[tuple(hkl)] == pytest.approx(of[tuple(image)], abs=2e-4)


@settings(max_examples=60, deadline=None)
@given(
    crystal_and_group=SMALL,
    seed=st.integers(0, 2**32 - 1),
    thickness=st.floats(1, 1500),
    energy=st.sampled_from([80e3, 200e3, 300e3]),
    absorption=st.booleans(),
)
def test_any_orientation_of_any_structure_is_finite(
    crystal_and_group, seed, thickness, energy, absorption
):
    crystal, _ = crystal_and_group
    rotation = random_rotations(1, np.random.default_rng(seed))
    beams = select_beams(crystal, rotation, energy, G_MAX, S_MAX)
    for solve in ENGINES:
        result = solve(crystal, beams, np.array([thickness]), G_MAX, absorption=absorption)
        assert np.isfinite(result).all()
        assert (result >= 0).all()
    dynamical = bloch_intensities(crystal, beams, np.array([thickness]), G_MAX)
    assert dynamical.sum() == pytest.approx(1, abs=2e-4)


@settings(max_examples=30, deadline=None)
@given(crystal_and_group=SMALL, seed=st.integers(0, 2**32 - 1))
def test_fundamental_zone_shows_the_same_pattern(crystal_and_group, seed):
    """Reducing an orientation renames the reflections, and changes no spot."""
    crystal, rotations = crystal_and_group
    laue = np.unique(np.concatenate([rotations, -rotations]), axis=0)
    symmetry, has_inversion = proper_rotations(crystal, laue)
    assert has_inversion == any((w == -np.eye(3)).all() for w in rotations)
    assert len(symmetry) == sum(np.linalg.det(rotations) > 0)
    drawn = random_rotations(1, np.random.default_rng(seed))
    reduced = to_fundamental_zone(drawn, symmetry)
    assert (np.trace(reduced[0] @ symmetry, axis1=1, axis2=2) <= np.trace(reduced[0]) + 1e-9).all()
    spots = []
    for rotation in (drawn, reduced):
        beams = select_beams(crystal, rotation, 2e5, G_MAX, S_MAX - 1e-9)
        result = bloch_intensities(crystal, beams, np.array([200.0]), G_MAX)[0]
        order = np.lexsort(beams.g.round(5).T)
        spots.append(np.column_stack([beams.g, result])[order])
    assume(len(spots[0]) == len(spots[1]))
    np.testing.assert_allclose(*spots, atol=1e-4)
