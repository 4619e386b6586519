"""Zone axes and rotations."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.orientations import random_rotations, rotations_along, zone_axes

IDENTITY = np.eye(3, dtype=int)
FRIEDEL = np.stack([IDENTITY, -IDENTITY])


def cubic_operations():
    signs = [np.diag(s) for s in itertools.product([1, -1], repeat=3)]
    permutations = [IDENTITY[list(p)] for p in itertools.permutations(range(3))]
    return np.stack([s @ p for s in signs for p in permutations])


def crystal(cell):
    return Crystal(np.array(cell, dtype=float), np.zeros((1, 3)), np.array([6]))


def test_cubic_zone_axes_are_the_textbook_ones():
    axes = zone_axes(crystal(4 * np.eye(3)), cubic_operations(), 9)
    expected = [
        (1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1),
        (2, 2, 1), (3, 1, 0), (3, 1, 1), (3, 2, 0),
    ]  # fmt: skip
    assert [tuple(a) for a in axes] == expected


def test_triclinic_zone_axes_are_unique_up_to_friedel_and_complete():
    cell = np.array([[4.0, 0, 0], [-1.2, 5.1, 0], [0.4, 1.1, 9.3]])
    axes = zone_axes(crystal(cell), FRIEDEL, 100)
    assert len({tuple(a) for a in axes} | {tuple(-a) for a in axes}) == 200
    lengths = np.linalg.norm(axes @ cell, axis=1)
    assert (np.diff(lengths) >= -1e-6).all()
    # Nothing shorter was left out: count them all in a box that surely holds them.
    box = np.array(list(itertools.product(range(-25, 26), repeat=3)))
    box = box[np.gcd.reduce(box, axis=1) == 1]
    shorter = (np.linalg.norm(box @ cell, axis=1) < lengths[-1] - 1e-6).sum()
    assert shorter <= 200
    assert shorter >= 2 * (lengths < lengths[-1] - 1e-6).sum()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.floats(2.5, 12), min_size=3, max_size=3),
    angles=st.lists(st.floats(-0.4, 0.4), min_size=3, max_size=3),
    count=st.integers(1, 30),
)
def test_zone_axes_are_the_shortest_of_all(lengths, angles, count):
    cell = np.diag(lengths)
    cell[1, 0], cell[2, 0], cell[2, 1] = np.array(angles) * lengths[0]
    axes = zone_axes(crystal(cell), FRIEDEL, count)
    box = np.array(list(itertools.product(range(-14, 15), repeat=3)))
    box = box[np.gcd.reduce(box, axis=1) == 1]
    shortest = np.sort(np.linalg.norm(box @ cell, axis=1))[: 2 * count : 2]
    np.testing.assert_allclose(np.linalg.norm(axes @ cell, axis=1), shortest)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_first_zone_axes_do_not_depend_on_the_count(count):
    cell = crystal([[3.0, 0, 0], [0, 3, 0], [0, 0, 31]])
    all_axes = zone_axes(cell, FRIEDEL, 60)
    assert np.array_equal(zone_axes(cell, FRIEDEL, count), all_axes[:count])


def assert_proper(rotations):
    products = rotations @ rotations.transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1)


@given(seed=st.integers(0, 2**32 - 1))
def test_rotations_along_turn_the_direction_to_z(seed):
    rng = np.random.default_rng(seed)
    directions = np.concatenate([rng.normal(size=(4, 3)), np.eye(3), -np.eye(3)])
    rotations = rotations_along(directions, rng.uniform(0, 7, len(directions)))
    assert_proper(rotations)
    turned = np.einsum("pij,pj->pi", rotations, directions)
    lengths = np.linalg.norm(directions, axis=1)
    np.testing.assert_allclose(turned[:, 2], lengths, atol=1e-12)


def test_in_plane_angle_turns_the_pattern_about_the_beam():
    direction = np.array([[1.0, 2.0, 3.0]])
    zero, quarter = (rotations_along(direction, np.array([a]))[0] for a in (0.0, np.pi / 2))
    g = np.array([0.3, -0.2, 0.1])
    x, y, z = zero @ g
    np.testing.assert_allclose(quarter @ g, [-y, x, z], atol=1e-12)


def test_random_rotations_are_uniform():
    rotations = random_rotations(20000, np.random.default_rng(0))
    assert_proper(rotations)
    # Under the Haar measure every entry has mean 0 and variance 1/3, and the trace mean 0.
    np.testing.assert_allclose(rotations.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(rotations.var(axis=0), 1 / 3, atol=0.01)
    angle = np.arccos(np.clip((np.trace(rotations, axis1=1, axis2=2) - 1) / 2, -1, 1))
    # Its rotation angles have density (1 - cos a) / pi.
    assert angle.mean() == pytest.approx(np.pi / 2 + 2 / np.pi, abs=0.02)


def test_first_random_rotations_do_not_depend_on_the_count():
    few, many = (random_rotations(n, np.random.default_rng(1)) for n in (3, 30))
    assert np.array_equal(few, many[:3])
