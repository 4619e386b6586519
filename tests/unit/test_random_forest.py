"""The descriptor and the cascade of forests."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from diffractory.models.random_forest import (
    Descriptor,
    Forest,
    HierarchicalForest,
)

DESCRIPTOR = Descriptor(radial_bins=10, angular_orders=7, intensity_power=0.5, g_max=1.0)


def spots(seed, n=12):
    rng = np.random.default_rng(seed)
    q = rng.uniform(-0.7, 0.7, (2, n)).astype(np.float32)
    return q[0], q[1], rng.random(n).astype(np.float32)


def describe(qx, qy, intensity, descriptor=DESCRIPTOR):
    return descriptor(np.array([0, len(qx)]), qx, qy, intensity)[0]


def test_descriptor_of_one_spot_by_hand():
    """One spot at 0.18 (bin coordinate 1.3): 0.7 in bin 1, 0.3 in bin 2, for every order."""
    q = np.array([0.18], dtype=np.float32)
    values = describe(q, np.zeros_like(q), np.ones_like(q)).reshape(10, 7)
    np.testing.assert_allclose(values[1], 0.7, atol=1e-6)
    np.testing.assert_allclose(values[2], 0.3, atol=1e-6)
    assert values[[0, *range(3, 10)]].max() == 0


def test_descriptor_sees_the_order_of_the_axis():
    """Four equal spots at 90 degrees: angular orders 0 and 4 alone are not zero."""
    angle = np.arange(4) * np.pi / 2 + 0.2
    q = 0.45 * np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    values = describe(q[0], q[1], np.ones(4, dtype=np.float32)).reshape(10, 7)[4]
    np.testing.assert_allclose(values, [1, 0, 0, 0, 1, 0, 0], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), angle=st.floats(0, 2 * np.pi), power=st.floats(1e-3, 1e3))
def test_descriptor_ignores_rotation_order_and_exposure(seed, angle, power):
    qx, qy, intensity = spots(seed)
    expected = describe(qx, qy, intensity)
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x, y = (turned @ np.stack([qx, qy])).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(qx))
    scaled = (intensity * np.float32(power))[order]
    np.testing.assert_allclose(describe(x[order], y[order], scaled), expected, atol=3e-5)


def test_descriptor_leaves_out_direct_beam_and_spots_beyond_g_max():
    qx, qy, intensity = spots(4)
    extra = [np.append(a, np.array(b, dtype=np.float32)) for a, b in
             [(qx, [0.0, 1.2]), (qy, [0.0, 0.3]), (intensity, [50.0, 9.0])]]  # fmt: skip
    np.testing.assert_allclose(describe(*extra), describe(qx, qy, intensity), atol=1e-7)


def test_pattern_without_spots_is_zero():
    empty = np.zeros(0, dtype=np.float32)
    assert not describe(empty, empty, empty).any()


def test_input_intensities_stay_untouched():
    qx, qy, intensity = spots(1)
    before = intensity.copy()
    Descriptor(10, 7, 1.0, 1.0)(np.array([0, len(qx)]), qx, qy, intensity)
    assert np.array_equal(intensity, before)


NAMES = np.array(["", "", "orthorhombic", "", "", "hexagonal", "cubic"])


def training_set(n=300):
    rng = np.random.default_rng(0)
    system = rng.choice([2, 5, 6], n)
    group = np.where(system == 6, rng.choice([221, 225], n), 10 * system)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x[:, 0] += 3 * system
    x[:, 1] += 3 * (group == 225)
    lattice = np.tile(np.array([4.0, 5, 6, 90, 90, 90]), (n, 1)) * (1 + 0.1 * x[:, 2:3])
    return x, NAMES[system], group, lattice


@pytest.mark.parametrize("leaf", [1, 5])
def test_flat_forest_predicts_as_scikit_learn(leaf):
    x, system, _, lattice = training_set()
    unseen = np.random.default_rng(1).normal(size=(200, 8)).astype(np.float32) * 5
    classifier = RandomForestClassifier(20, min_samples_leaf=leaf, random_state=0).fit(x, system)
    regressor = RandomForestRegressor(20, min_samples_leaf=leaf, random_state=0).fit(x, lattice)
    np.testing.assert_allclose(
        Forest.from_sklearn(classifier).predict(unseen), classifier.predict_proba(unseen), atol=1e-6
    )
    np.testing.assert_allclose(
        Forest.from_sklearn(regressor).predict(unseen), regressor.predict(unseen), rtol=1e-6
    )


def fit(threads=1, seed=3):
    return HierarchicalForest.fit(DESCRIPTOR, *training_set(), 15, 1, seed, threads)


def test_cascade_learns_and_stays_inside_the_crystal_system():
    x, system, group, lattice = training_set()
    model = fit()
    said = model.predict(x)
    assert model.systems == ["cubic", "hexagonal", "orthorhombic"]
    predicted = np.array(model.systems)[said.crystal_system.argmax(axis=1)]
    assert (predicted == system).mean() > 0.95
    assert (said.space_group == group).mean() > 0.9
    assert np.abs(said.lattice / lattice - 1).mean() < 0.05
    np.testing.assert_allclose(said.crystal_system.sum(axis=1), 1)
    assert set(said.space_group[predicted == "cubic"]) <= {221, 225}
    assert (said.space_group_probability <= said.crystal_system.max(axis=1) + 1e-12).all()


def test_model_comes_back_from_its_tensors():
    model = fit()
    again = HierarchicalForest.from_tensors(model.hparams(), model.tensors())
    x = training_set()[0]
    for a, b in zip(vars(model.predict(x)).values(), vars(again.predict(x)).values(), strict=True):
        assert np.array_equal(a, b)


def test_training_depends_on_the_seed_and_not_on_the_threads():
    one, two, other = fit(threads=1).tensors(), fit(threads=2).tensors(), fit(seed=4).tensors()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(
        one[name].shape != other[name].shape or (one[name] != other[name]).any() for name in one
    )


def test_a_forest_that_32_bits_cannot_number_is_refused():
    """A real one would take 100 GB, so that there are only the counts of one."""
    trees = [SimpleNamespace(tree_=SimpleNamespace(node_count=2**30))] * 2
    with pytest.raises(OverflowError, match="2,147,483,648 nodes"):
        Forest.from_sklearn(SimpleNamespace(estimators_=trees))
