"""Retrieval measures against ranks by hand, scikit-learn and closed forms."""

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from diffractory.evaluation.ranking import bootstrap, mean_reciprocal_rank, search, top_share


def normalized(values):
    values = np.asarray(values, dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_ranks_by_hand():
    gallery = normalized([[1, 0], [1, 1], [0, 1], [-1, 0]])
    queries = normalized([[1, 0.1], [1, 0.1], [0.1, 1], [0.1, 1]])
    found = search(queries, gallery, np.array([0, 3, 0, 2]), 3)
    assert found.rank.tolist() == [1, 4, 3, 1]
    assert found.place.tolist() == [[0, 1, 2], [0, 1, 2], [2, 1, 0], [2, 1, 0]]
    assert np.allclose(found.score[0, 0], 1 / np.sqrt(1.01))
    assert [top_share(found.rank, k) for k in (1, 3, 4)] == [0.5, 0.75, 1.0]
    assert mean_reciprocal_rank(found.rank) == pytest.approx((1 + 1 / 4 + 1 / 3 + 1) / 4)


def test_equal_scores_count_against_the_truth():
    """A network that says the same of everything would else be always right."""
    same = normalized(np.ones((5, 3)))
    found = search(same, same, np.arange(5), 2)
    assert found.rank.tolist() == [5] * 5
    assert found.place.tolist() == [[0, 1]] * 5


def test_candidates_are_those_of_a_whole_sort():
    rng = np.random.default_rng(0)
    queries, gallery = (normalized(rng.normal(size=(n, 8))) for n in (40, 300))
    truth = rng.integers(0, 300, 40)
    found = search(queries, gallery, truth, 10)
    order = np.argsort(-(queries @ gallery.T), axis=1)
    assert np.array_equal(found.place, order[:, :10])
    assert np.array_equal(found.rank, 1 + (order == truth[:, None]).argmax(axis=1))
    few = search(queries, gallery[:4], truth % 4, 10)
    assert few.place.shape == (40, 4)
    assert np.array_equal(np.sort(few.place, axis=1), np.tile(np.arange(4), (40, 1)))


def test_top_k_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    queries, gallery = (normalized(rng.normal(size=(n, 4))) for n in (200, 20))
    truth = rng.integers(0, 20, 200)
    rank = search(queries, gallery, truth, 10).rank
    for k in (1, 3, 5, 10):
        expected = top_k_accuracy_score(truth, queries @ gallery.T, k=k, labels=range(20))
        assert top_share(rank, k) == pytest.approx(expected)


def test_bootstrap_has_the_width_of_a_binomial():
    right = np.repeat([1.0, 0.0], [620, 380])
    low, high = bootstrap(right, 1)
    sigma = np.sqrt(0.62 * 0.38 / 1000)
    assert low == pytest.approx(0.62 - 1.96 * sigma, abs=0.004)
    assert high == pytest.approx(0.62 + 1.96 * sigma, abs=0.004)
    assert bootstrap(right, 1) == (low, high)
    assert bootstrap(np.ones(7), 1) == (1.0, 1.0)
