"""Gold nanoparticles: their atoms, how they lie, and what a probe meets of them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.spatial import cKDTree
from scipy.special import j1, jn_zeros

from diffractory.experiment.nanoparticles import (
    ATOM_VOLUME,
    BOND,
    LATTICE_CONSTANT,
    ZONE_AXES,
    angles_to_zone_axes,
    decahedron,
    scatter_particles,
    sphere,
    what_probes_meet,
)
from diffractory.simulate.orientations import random_rotations, rotations_along
from diffractory.simulate.scattering import wavelength
from diffractory.store import InputError

ENERGY, CONVERGENCE = 2e5, 1e-3  # eV, radian
RING = jn_zeros(1, 1)[0] * wavelength(ENERGY) / (2 * np.pi * CONVERGENCE)  # angstrom
SETTINGS = {
    "particles": 20,
    "diameter": [40.0, 70.0],
    "decahedra": 0.4,
    "facets": 0.5,
    "overlapping": 0.3,
}
TURNED = random_rotations(1, np.random.default_rng(5))[0]


def along(axis, angle=0.3):
    """Return the rotation that turns an axis of the crystal into the beam."""
    return rotations_along(np.array([axis], dtype=float), np.array([angle]))[0]


def at(particle, x, y, z):
    return replace(particle, positions=particle.positions + np.array([x, y, z]))


def met(particles, *probes):
    return what_probes_meet(particles, np.array(probes, dtype=float), ENERGY, CONVERGENCE)


def test_a_sphere_is_a_ball_of_gold():
    ball = sphere(60.0, TURNED)
    assert np.linalg.norm(ball.positions, axis=1).max() <= 30.0 + 1e-5
    assert len(ball.positions) == pytest.approx(np.pi / 6 * 60**3 / ATOM_VOLUME, rel=0.02)
    distance, _ = cKDTree(ball.positions).query(ball.positions, k=13)
    inner = np.linalg.norm(ball.positions, axis=1) < 25
    np.testing.assert_allclose(distance[inner, 1:], BOND, rtol=1e-6)  # all twelve neighbours
    assert pytest.approx(2.884, abs=1e-3) == BOND


def test_the_orientation_of_a_sphere_is_that_of_its_atoms():
    ball = sphere(40.0, TURNED)
    halves = ball.positions @ ball.orientations[0] * 2 / LATTICE_CONSTANT
    np.testing.assert_allclose(halves, np.rint(halves), atol=1e-6)
    assert not (np.rint(halves).sum(axis=1) % 2).any()


def test_a_decahedron_is_five_equal_grains_without_gap():
    particle = decahedron(60.0, TURNED)
    counts = np.bincount(particle.grains)
    assert len(counts) == 5
    assert len(set(counts[1:])) == 1
    axis = particle.orientations[0] @ np.array([1, 1, 0]) / np.sqrt(2)
    on_axis = np.linalg.norm(np.cross(particle.positions, axis), axis=1) < 1e-6
    assert counts[0] - counts[1] == on_axis.sum()
    distance, _ = cKDTree(particle.positions).query(particle.positions, k=13)
    assert distance[:, 1].min() > 0.99 * BOND  # nothing is there twice
    inner = np.linalg.norm(particle.positions, axis=1) < 15
    assert distance[inner, 12].max() < 1.03 * BOND  # nor missing
    assert np.ptp(particle.positions @ axis) == pytest.approx(60, abs=BOND)


def test_grains_of_a_decahedron_share_an_axis_and_are_twins():
    turns = decahedron(50.0, TURNED).orientations
    common = turns @ np.array([1, 1, 0])
    np.testing.assert_allclose(common, common[[0] * 5], atol=1e-9)
    planes = np.array([[1, -1, 1], [-1, 1, 1]]) / np.sqrt(3)
    for one, other in zip(turns, np.roll(turns, -1, axis=0), strict=True):
        cosines = abs((planes @ one.T) @ (planes @ other.T).T)
        angle = np.degrees(np.arccos(cosines.max()))
        assert angle == pytest.approx(72 - 70.5288, abs=1e-3)  # what the strain takes up
    for turn in turns:
        assert np.linalg.det(turn) == pytest.approx(1)


def test_the_orientation_of_each_grain_is_that_of_its_atoms():
    particle = decahedron(60.0, TURNED)
    for grain, turn in enumerate(particle.orientations):
        atoms = particle.positions[particle.grains == grain] @ turn
        pairs = cKDTree(atoms).query_pairs(1.1 * BOND, output_type="ndarray")
        halves = (atoms[pairs[:, 0]] - atoms[pairs[:, 1]]) * 2 / LATTICE_CONSTANT
        # Bonds are along <110>; the strain is 1.4 % either way.
        assert abs(halves - np.rint(halves)).max() < 0.03
        assert (np.sort(abs(np.rint(halves)), axis=1) == [0, 1, 1]).all()


def test_the_outer_faces_of_a_decahedron_are_111_planes():
    particle = decahedron(60.0, TURNED)
    for grain, turn in enumerate(particle.orientations):
        atoms = particle.positions[particle.grains == grain] @ turn
        for normal in ([1, 1, 1], [-1, -1, 1]):
            height = atoms @ np.array(normal) / np.sqrt(3)
            # The tips lie on these planes, at half the diameter along <110>.
            assert height.max() == pytest.approx(30 * np.sqrt(2 / 3), rel=0.05)
            assert (height > 0.95 * height.max()).sum() > 20


def test_angles_to_zone_axes_of_known_directions():
    beams = np.array([[1, 1, 1], [0, 0, -1], [0, 1, 1], [-1, 2, 1]])
    angles = angles_to_zone_axes(beams / np.linalg.norm(beams, axis=1, keepdims=True))
    np.testing.assert_allclose(angles[0, :3], [54.7356, 35.2644, 0], atol=1e-4)
    np.testing.assert_allclose(angles[1, :3], [0, 45, 54.7356], atol=1e-4)
    np.testing.assert_allclose(angles[2, :3], [45, 0, 35.2644], atol=1e-4)
    assert list(ZONE_AXES[angles[3].argmin()]) == [2, 1, 1]


@given(
    st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
def test_angles_to_zone_axes_are_those_of_all_equal_directions(beam, order, signs):
    beam = np.array(beam) / np.linalg.norm(beam)
    equal = beam[list(order)] * np.array(signs)
    one, other = angles_to_zone_axes(np.stack([beam, equal]))
    np.testing.assert_allclose(one, other, atol=1e-5)
    # By trying all of them.
    every = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / np.sqrt(3)
    assert one[2] == pytest.approx(
        np.degrees(np.arccos(np.clip(every @ beam, -1, 1).max())), abs=1e-5
    )


def test_the_gold_under_a_probe_is_the_mean_of_the_chords_that_it_sees():
    def chords(r, weighted):
        x = r * jn_zeros(1, 1)[0] / RING
        intensity = (2 * j1(x) / x) ** 2 if r else 1.0
        return intensity * r * (2 * np.sqrt(40**2 - r**2) if weighted else 1)

    expected = quad(chords, 0, RING, (True,))[0] / quad(chords, 0, RING, (False,))[0]
    ball = at(sphere(80.0, TURNED), 100, 50, -40)
    table = met([ball], (100, 50), (100, 90 + RING + 3))
    assert table["thickness"][0] == pytest.approx(expected, rel=0.01)
    assert table["thickness"][1] == 0


def test_what_is_under_a_probe_on_and_beside_a_sphere_along_111():
    table = met([at(sphere(60.0, along([1, 1, 1])), 50, 30, -30)], (50, 30), (150, 30))
    assert list(table["particle"]) == [0, -1]
    assert list(table["kind"]) == ["sphere", "none"]
    assert list(table["zone_axis"]) == ["[111]", "other"]
    assert not table[["overlap", "twinned"]].any(axis=None)
    np.testing.assert_allclose(
        table.loc[0, ["angle_111", "angle_100", "angle_110"]].astype(float),
        [0, 54.7356, 35.2644],
        atol=1e-4,
    )
    assert table.loc[1, ["angle_111", "angle_100", "angle_110"]].isna().all()


@pytest.mark.parametrize(("tilt", "name"), [(4.5, "[100]"), (5.5, "other")])
def test_a_zone_axis_is_said_within_five_degree(tilt, name):
    axis = [np.sin(np.radians(tilt)), 0.0, np.cos(np.radians(tilt))]
    table = met([sphere(40.0, along(axis))], (0, 0))
    assert table["angle_100"][0] == pytest.approx(tilt, abs=1e-4)
    assert table["zone_axis"][0] == name


def test_overlap_is_where_two_particles_are_met():
    low = at(sphere(60.0, along([1, 0, 0])), 0, 0, -30)
    high = at(sphere(40.0, along([1, 1, 0])), 36, 0, -70)
    table = met([low, high], (-15, 0), (23, 0), (42, 0))
    assert list(table["overlap"]) == [False, True, False]
    assert list(table["particle"]) == [0, 0, 1]
    assert list(table["zone_axis"]) == ["[100]", "[100]", "[110]"]
    assert not table["twinned"].any()  # they are no twins of each other


def test_twins_are_met_on_the_axis_of_a_decahedron_but_not_within_a_grain():
    particle = decahedron(120.0, along([1, 1, 0]))
    middle = 45 * (particle.orientations[3] @ np.array([0, 0, 1]))[:2]
    table = met([particle], (0, 0), middle)
    assert list(table["twinned"]) == [True, False]
    assert list(table["zone_axis"]) == ["[110]"] * 2
    assert not table["overlap"].any()


def test_of_twins_the_angles_are_of_the_one_that_is_met_most():
    # Lying on its first grain's {111} facet, a decahedron shows other axes elsewhere.
    particle = decahedron(120.0, along([1, 1, 1]))
    first = particle.positions[particle.grains == 0][:, :2]
    here = first.mean(axis=0)
    counts = [
        (np.hypot(*(particle.positions[particle.grains == g][:, :2] - here).T) < 5).sum()
        for g in range(5)
    ]
    table = met([particle], here, -here)
    beam = particle.orientations[np.argmax(counts)][2]
    assert table["angle_111"][0] == pytest.approx(angles_to_zone_axes(beam[None])[0, 2], abs=1e-6)
    assert table["angle_111"][0] != pytest.approx(table["angle_111"][1], abs=1)


def test_particles_lie_on_the_film_or_on_others_without_cutting_into_them():
    particles = scatter_particles(SETTINGS, (310.0, 310.0), 3)
    assert [p.kind for p in particles].count("decahedron") == 8
    assert all(40 <= p.diameter <= 70 for p in particles)
    assert max(p.positions[:, 2].max() for p in particles) <= 0
    trees = [cKDTree(p.positions) for p in particles]
    nearest = [
        min(d.values())
        for i, one in enumerate(trees)
        for other in trees[:i]
        if (d := one.sparse_distance_matrix(other, 6.0, output_type="dict"))
    ]
    assert min(nearest, default=BOND) > BOND - 1e-6
    probes = np.stack(np.meshgrid(np.arange(0, 311, 5.0), np.arange(0, 311, 5.0)), -1)
    overlap = met(particles, *probes.reshape(-1, 2))["overlap"]
    assert 0.02 < overlap.mean() < 0.2
    apart = scatter_particles(SETTINGS | {"overlapping": 0.0}, (410.0, 410.0), 3)
    for particle in apart:  # all on the film
        height = -particle.positions[:, 2].mean()
        assert height == pytest.approx((particle.diameter + BOND) / 2, abs=0.01)


def test_particles_on_a_facet_show_its_axis():
    settings = SETTINGS | {"facets": 1.0, "decahedra": 0.5}
    for particle in scatter_particles(settings, (310.0, 310.0), 4):
        angles = angles_to_zone_axes(particle.orientations[:, 2])
        assert angles[0, [0, 2]].min() < 6  # of the first grain


def test_particles_depend_on_the_seed_alone():
    one, same, other = (scatter_particles(SETTINGS, (310.0, 310.0), seed) for seed in (3, 3, 4))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    assert not np.isclose(one[0].diameter, other[0].diameter)


def test_too_many_particles_are_refused():
    with pytest.raises(InputError, match="20 particles do not fit into the 60 by 50 angstrom"):
        scatter_particles(SETTINGS, (50.0, 60.0), 3)
