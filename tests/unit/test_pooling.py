"""Pooling of several patterns, against hand-worked cases and simulated views."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffractory.models.pooling import fit_pooling, pool


def test_one_view_stays_what_it_is():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    for power in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(pool(np.log(p), np.arange(2), 2, 1.0, power), p)


def test_hand_worked_products():
    p = np.log([[0.5, 0.5], [0.8, 0.2], [0.8, 0.2]])
    group = np.array([0, 1, 1])
    independent = pool(p, group, 2, 1.0, 0.0)
    np.testing.assert_allclose(independent[1], [0.64 / 0.68, 0.04 / 0.68])
    same = pool(p, group, 2, 1.0, 1.0)
    np.testing.assert_allclose(same[1], [0.8, 0.2])
    np.testing.assert_allclose(pool(p, group, 2, 2.0, 1.0)[1], independent[1])


@given(seed=st.integers(0, 100), power=st.floats(0, 1), weight=st.floats(0.2, 2))
def test_order_of_views_is_immaterial_and_probabilities_sum_to_one(seed, power, weight):
    rng = np.random.default_rng(seed)
    p = np.log(rng.dirichlet(np.ones(4), 30))
    group = np.concatenate([np.arange(5), rng.integers(0, 5, 25)])
    order = rng.permutation(30)
    pooled = pool(p, group, 5, weight, power)
    np.testing.assert_allclose(pooled.sum(axis=1), 1)
    np.testing.assert_allclose(pool(p[order], group[order], 5, weight, power), pooled)


def views(rng, n_groups, n_views, copies):
    """Return what a model knows that sees one of four classes through normal noise."""
    truth = rng.integers(0, 4, n_groups)
    seen = np.eye(4)[truth][:, None] + 0.9 * rng.normal(size=(n_groups, n_views // copies, 4))
    seen = np.repeat(seen, copies, axis=1).reshape(-1, 4) / 0.81
    logs = seen - np.log(np.exp(seen).sum(axis=1, keepdims=True))
    return logs, np.repeat(truth, n_views), np.repeat(np.arange(n_groups), n_views)


def test_fit_finds_independent_views():
    rng = np.random.default_rng(0)
    weight, power = fit_pooling(*views(rng, 800, 20, 1), rng)
    assert weight == pytest.approx(1, abs=0.15)
    assert power <= 0.1


def test_fit_finds_views_that_say_the_same():
    rng = np.random.default_rng(0)
    weight, power = fit_pooling(*views(rng, 800, 20, 20), rng)
    assert weight == pytest.approx(1, abs=0.15)
    assert power >= 0.9


def test_fit_tempers_a_model_that_is_too_sure():
    rng = np.random.default_rng(0)
    logs, truth, group = views(rng, 800, 20, 20)
    weight, _ = fit_pooling(3 * logs, truth, group, rng)
    assert weight == pytest.approx(1 / 3, abs=0.06)
