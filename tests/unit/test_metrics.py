"""Metrics against values worked out by hand and against scikit-learn and SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import precision_recall_fscore_support

from diffractory.evaluation.metrics import (
    class_metrics,
    confusion_matrix,
    random_ranks,
    row_normalized,
    vote,
    wilson_interval,
)

# By hand: class 0 has 3 items, 2 right; class 1 has 2, 1 right; class 2 has 1, none right.
TRUTH = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 1])


def test_hand_worked_confusion_and_class_metrics():
    confusion = confusion_matrix(TRUTH, PREDICTED, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    normalized = row_normalized(confusion)
    np.testing.assert_allclose(normalized[:3].sum(axis=1), 1)
    assert normalized[0, 1] == pytest.approx(1 / 3)
    assert np.isnan(normalized[3]).all()
    metrics = class_metrics(TRUTH, PREDICTED, 4)
    np.testing.assert_allclose(metrics.precision, [2 / 3, 1 / 3, np.nan, np.nan])
    np.testing.assert_allclose(metrics.recall, [2 / 3, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(metrics.f1, [2 / 3, 2 / 5, 0, np.nan])
    assert metrics.support.tolist() == [3, 2, 1, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_definitions_are_those_of_scikit_learn(pairs):
    truth, predicted = np.array(pairs).T
    metrics = class_metrics(truth, predicted, 5)
    theirs = precision_recall_fscore_support(
        truth, predicted, labels=range(5), zero_division=np.nan
    )
    np.testing.assert_allclose(metrics.precision, theirs[0])
    np.testing.assert_allclose(metrics.recall, theirs[1])
    np.testing.assert_allclose(metrics.f1, theirs[2])
    np.testing.assert_array_equal(metrics.support, theirs[3])
    confusion = confusion_matrix(truth, predicted, 5)
    np.testing.assert_array_equal(confusion, sklearn_confusion(truth, predicted, labels=range(5)))


@pytest.mark.parametrize(("right", "total"), [(0, 10), (9, 10), (10, 10), (1, 1), (613, 921)])
def test_wilson_interval_is_that_of_scipy(right, total):
    theirs = binomtest(right, total).proportion_ci(method="wilson")
    assert wilson_interval(right, total) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_vote_by_hand():
    groups = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3])
    predicted = np.array([1, 1, 2, 0, 2, 2, 1, 0, 1])
    probability = np.array(
        [
            [0.0, 0.5, 0.5],  # group 0: class 1 has two of three votes, although ...
            [0.0, 0.6, 0.4],
            [0.0, 0.0, 1.0],  # ... class 2 has the higher mean probability
            [0.6, 0.0, 0.4],  # group 1: one vote each for 0 and 2; 2 has the higher mean
            [0.1, 0.0, 0.9],
            [0.2, 0.3, 0.5],  # group 2: one vote each and equal means for 1 and 2: lower index
            [0.2, 0.5, 0.3],
            [0.05, 0.1, 0.85],  # group 3: likewise for 0 and 1, whose sums differ in the last bit
            [0.25, 0.2, 0.55],
        ]
    )
    winner, confidence = vote(groups, predicted, probability, 4, 3)
    assert winner.tolist() == [1, 2, 1, 0]
    np.testing.assert_allclose(confidence, [1.1 / 3, 0.65, 0.4, 0.15])


def test_vote_with_the_probability_of_the_predicted_class_alone():
    groups = np.array([0, 0, 0, 0, 1, 1])
    predicted = np.array([5, 9, 9, 5, 3, 2])
    probability = np.array([0.9, 0.4, 0.4, 0.1, 0.5, 0.5])
    winner, confidence = vote(groups, predicted, probability, 2, 10)
    assert winner.tolist() == [5, 2]  # 1.0 against 0.8; then an exact tie, so the lower number
    np.testing.assert_allclose(confidence, [0.25, 0.25])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_vote_does_not_depend_on_the_order_of_items(n_items, seed):
    rng = np.random.default_rng(seed)
    groups = np.sort(np.concatenate([np.arange(4), rng.integers(0, 4, n_items)]))
    probability = rng.dirichlet(np.ones(3), len(groups))
    predicted = probability.argmax(axis=1)
    order = rng.permutation(len(groups))
    expected = vote(groups, predicted, probability, 4, 3)
    found = vote(groups[order], predicted[order], probability[order], 4, 3)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-11)


def test_ranks_are_a_random_order_of_each_group():
    groups = np.repeat([0, 1, 2], [30, 4, 10])
    ranks = random_ranks(groups, ["a", "b", "c"], 5, seed=1)
    assert ranks.shape == (5, 44)
    for group, size in enumerate((30, 4, 10)):
        for order in ranks[:, groups == group]:
            assert sorted(order) == list(range(size))
    assert len({tuple(order) for order in ranks}) == 5
    assert np.bincount(groups[ranks[0] < 10]).tolist() == [10, 4, 10]


def test_ranks_of_a_group_do_not_depend_on_the_others_or_the_number_of_draws():
    both = random_ranks(np.repeat([0, 1], 50), ["a", "b"], 3, seed=1)
    alone = random_ranks(np.zeros(50, int), ["b"], 2, seed=1)
    np.testing.assert_array_equal(both[:2, 50:], alone)
    assert not np.array_equal(alone, both[:2, :50])  # groups of one size are not drawn alike
    assert not np.array_equal(alone, random_ranks(np.zeros(50, int), ["b"], 2, seed=2))


def test_every_item_is_drawn_as_often():
    names = [f"m{k}" for k in range(400)]
    ranks = random_ranks(np.repeat(np.arange(400), 12), names, 1, seed=0)[0]
    hits = (ranks < 3).reshape(400, 12).sum(axis=0)
    assert hits.min() > 60  # 100 expected, standard deviation 9
    assert hits.max() < 140
