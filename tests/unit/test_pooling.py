"""Pooling of several patterns, against hand-worked cases and simulated views."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffractory.evaluation.symmetry import aggregated_how, read_predictions
from diffractory.models.pooling import fit_pooling, pool
from diffractory.store import CRYSTAL_SYSTEMS


def test_one_view_stays_what_it_is():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    for power in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(pool(np.log(p), np.arange(2), 1.0, power), p)


def test_hand_worked_products():
    p = np.log([[0.5, 0.5], [0.8, 0.2], [0.8, 0.2]])
    group = np.array([0, 1, 1])
    independent = pool(p, group, 1.0, 0.0)
    np.testing.assert_allclose(independent[1], [0.64 / 0.68, 0.04 / 0.68])
    same = pool(p, group, 1.0, 1.0)
    np.testing.assert_allclose(same[1], [0.8, 0.2])
    np.testing.assert_allclose(pool(p, group, 2.0, 1.0)[1], independent[1])


@given(seed=st.integers(0, 100), power=st.floats(0, 1), weight=st.floats(0.2, 2))
def test_order_of_views_is_immaterial_and_probabilities_sum_to_one(seed, power, weight):
    rng = np.random.default_rng(seed)
    p = np.log(rng.dirichlet(np.ones(4), 30))
    group = np.sort(np.concatenate([np.arange(5), rng.integers(0, 5, 25)]))
    order = np.lexsort((rng.random(30), group))
    pooled = pool(p, group, weight, power)
    np.testing.assert_allclose(pooled.sum(axis=1), 1)
    np.testing.assert_allclose(pool(p[order], group, weight, power), pooled)


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


SYSTEM = np.array([0, 0, 0, 6, 6])
MATERIAL = np.array([0, 0, 0, 1, 1])


def write_predictions(path, space_groups):
    """Write three patterns of a triclinic and two of a cubic material; votes err on the first."""
    probability = np.full((5, 7), 0.01)
    probability[:2, [1, 0]] = [0.5, 0.45]
    probability[2, [1, 0]] = [0.05, 0.9]
    probability[3:, 6] = 0.94
    table = pd.DataFrame(probability, columns=[f"probability_{s}" for s in CRYSTAL_SYSTEMS])
    group = np.full((5, 230), 0.1 / 228)
    group[:2, [1, 0]] = [0.5, 0.4]
    group[2, [1, 0]] = [0.1, 0.8]
    group[3:, 224] = 0.9
    table = table.assign(
        pattern=np.arange(5),
        material_id=np.array(["a", "b"])[MATERIAL],
        crystal_system=np.array(CRYSTAL_SYSTEMS)[SYSTEM],
        predicted_crystal_system=np.array(CRYSTAL_SYSTEMS)[probability.argmax(axis=1)],
        space_group=[1, 1, 1, 225, 225],
        predicted_space_group=group.argmax(axis=1) + 1,
        probability_space_group=group.max(axis=1),
        pool_weight=1.0,
        pool_power=0.5,
    )
    if space_groups:
        table["log_probability_space_groups"] = list(np.log(group).astype(np.float16))
    table.to_parquet(path, index=False)
    return probability, group


@pytest.mark.parametrize("target", ["crystal_system", "space_group"])
def test_predictions_with_a_pooling_are_pooled(tmp_path, target):
    path = tmp_path / "ours.parquet"
    probability, group = write_predictions(path, space_groups=True)
    dataset = pd.DataFrame({"material_id": ["a", "b"], "split": "test"})
    said = read_predictions(path, dataset, target)
    chosen = said.aggregated(np.ones(5, dtype=bool))
    classes = {"crystal_system": probability, "space_group": group}[target]
    expected = pool(np.log(classes), MATERIAL, 1.0, 0.5)
    first = {"crystal_system": 0, "space_group": 1}[target]
    truth = {"crystal_system": [0, 6], "space_group": [1, 225]}[target]
    assert chosen.predicted.tolist() == truth
    np.testing.assert_allclose(chosen.confidence, expected.max(axis=1), atol=2e-3)
    assert (expected.argmax(axis=1) + first).tolist() == truth
    votes = replace(said, pooling=None).aggregated(np.ones(5, dtype=bool))
    assert votes.predicted[0] != truth[0]
    assert "to a learnt power, for Ours" in aggregated_how({"ours": said})
