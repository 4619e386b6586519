"""The R-factor of a layer and a pattern, against cases by hand and turns that are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffractory.evaluation.pattern_agreement import Spots, agreement

Q_MAX = 1.0


def spots(*patterns):
    """Return patterns, each a pair of places and amplitudes, as one."""
    places, amplitudes = zip(*patterns, strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(q) for q in places])])
    return Spots(offsets, np.concatenate(places), np.concatenate(amplitudes))


def layer(cell, seed=0, reach=3.0):
    """Return places and amplitudes of a layer with atoms at random."""
    rng = np.random.default_rng(seed)
    hk = np.indices((41, 41)).reshape(2, -1).T - 20
    q = hk @ np.linalg.inv(cell).T
    kept = (np.abs(q).max(axis=1) < reach) & hk.any(axis=1)
    hk, q = hk[kept], q[kept]
    waves = np.exp(2j * np.pi * hk @ rng.random((2, 4)))
    amplitude = np.abs(waves @ [10, 20, 30, 40]) * np.exp(-(q**2).sum(axis=1))
    return q @ [1, 1j], amplitude


OBLIQUE = np.array([[4.1, 0.0], [1.3, 5.2]])
PAIR = np.array([[0, 0]])


@settings(max_examples=25, deadline=None)
@given(
    turn=st.floats(0, 2 * np.pi),
    scale=st.floats(0.97, 1.03),
    mirrored=st.booleans(),
    unit=st.floats(1e-3, 1e3),
)
def test_turn_scale_and_side_are_found(turn, scale, mirrored, unit):
    q, amplitude = layer(OBLIQUE)
    placed = (np.conj(q) if mirrored else q) * scale * np.exp(1j * turn)
    seen = (np.abs(placed.real) <= Q_MAX) & (np.abs(placed.imag) <= Q_MAX)
    observed = spots((placed[seen], unit * amplitude[seen]))
    found = agreement(observed, spots((q, amplitude)), OBLIQUE[None], PAIR, Q_MAX)
    assert found.r_factor[0] == pytest.approx(0, abs=1e-9)
    assert found.scale[0] == pytest.approx(scale)
    assert found.mirrored[0] == mirrored
    # a pattern has the centre of inversion that every projection has
    away = np.radians(found.rotation[0]) - turn
    assert abs(np.sin(away)) < 1e-9


SQUARE = np.array([[2.0, 0.0], [0.0, 2.0]])
FOUR = np.array([0.5, 0.5j, -0.5, -0.5j])


def r_factor(observed, calculated):
    found = agreement(spots(observed), spots(calculated), SQUARE[None], PAIR, Q_MAX)
    return found.r_factor[0]


def test_r_factor_by_hand():
    """k = (2 + 2 + 2 + 6) / 4 = 3, so that R = (1 + 1 + 1 + 3) / 12."""
    observed = (FOUR, np.array([2.0, 2.0, 2.0, 6.0]))
    assert r_factor(observed, (FOUR, np.ones(4))) == pytest.approx(0.5)


def test_what_only_one_of_both_has_counts_whole():
    both = (FOUR, np.ones(4))
    spurious = (np.append(FOUR, 0.31 + 0.2j), np.array([1.0, 1.0, 1.0, 1.0, 2.0]))
    assert r_factor(spurious, both) == pytest.approx(2 / 6)
    # k = 1 of the two that are there, so that R = (0 + 2 * 1) / 2
    missing = (FOUR[[0, 2]], np.ones(2))
    assert r_factor(missing, both) == pytest.approx(1.0)


def test_spots_beyond_the_pattern_are_not_missed():
    far = np.append(FOUR, [1.5, -1.5])
    assert r_factor((FOUR, np.ones(4)), (far, np.ones(6))) == pytest.approx(0, abs=1e-12)


def test_a_spot_too_far_from_its_place_is_another():
    near, far = (np.append(FOUR[:3], FOUR[3] + shift) for shift in (0.01, 0.05))
    assert r_factor((near, np.ones(4)), (FOUR, np.ones(4))) == pytest.approx(0, abs=1e-9)
    # k = 1 of three spots, one has no partner, and one of the layer is missing
    assert r_factor((far, np.ones(4)), (FOUR, np.ones(4))) == pytest.approx(0.5)


@given(st.floats(-0.9, 1.9))
@settings(max_examples=25, deadline=None)
def test_a_pattern_that_falls_off_further_has_its_own_b(b):
    q, amplitude = layer(OBLIQUE)
    damped = 3 * amplitude * np.exp(-b * np.abs(q) ** 2 / 4)
    found = agreement(spots((q, damped)), spots((q, amplitude)), OBLIQUE[None], PAIR, 3.0)
    assert found.debye_waller[0] == pytest.approx(b, abs=1e-6)
    assert found.r_factor[0] == pytest.approx(0, abs=1e-6)


def test_a_b_that_atoms_do_not_have_is_not_taken():
    q, amplitude = layer(OBLIQUE)
    damped = amplitude * np.exp(-5 * np.abs(q) ** 2 / 4)
    found = agreement(spots((q, damped)), spots((q, amplitude)), OBLIQUE[None], PAIR, 3.0)
    assert found.debye_waller[0] == 2.0
    assert found.r_factor[0] > 0.2


def test_a_layer_of_no_matching_size_explains_nothing():
    found = agreement(
        spots((FOUR, np.ones(4))), spots((2 * FOUR, np.ones(4))), SQUARE[None] / 2, PAIR, Q_MAX
    )
    assert found.r_factor[0] == np.inf


def test_the_right_layer_agrees_best_through_noise():
    rng = np.random.default_rng(3)
    cells = np.array([OBLIQUE * s for s in np.linspace(0.8, 1.2, 9)])
    layers = [layer(cell, seed) for seed, cell in enumerate(cells)]
    observed = []
    for q, amplitude in layers:
        placed = q * 1.02 * np.exp(1j * rng.uniform(0, 2 * np.pi))
        seen = (np.abs(placed.real) <= Q_MAX) & (np.abs(placed.imag) <= Q_MAX)
        seen &= rng.random(len(q)) > 0.15
        moved = placed[seen] + rng.normal(0, 0.003, (seen.sum(), 2)) @ [1, 1j]
        observed.append((moved, amplitude[seen] * rng.uniform(0.8, 1.2, seen.sum())))
    pairs = np.indices((9, 9)).reshape(2, -1).T
    found = agreement(spots(*observed), spots(*layers), cells, pairs, Q_MAX)
    table = found.r_factor.reshape(9, 9)
    assert (table.argmin(axis=1) == np.arange(9)).all()
    assert np.diag(table).max() < 0.5 < table[~np.eye(9, dtype=bool)].min()
