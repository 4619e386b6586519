"""Calibration metrics against values worked out by hand and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from diffractory.evaluation.calibration import (
    brier_score,
    calibration_errors,
    coverage_at,
    negative_log_likelihood,
    reliability,
    selection,
)


def test_hand_worked_calibration_errors():
    # Bins of width 1/15: 0.62, 0.64 and 0.66 share the tenth, 0.9 is in the fourteenth.
    confidence = np.array([0.62, 0.64, 0.66, 0.90])
    right = np.array([True, False, False, True])
    diagram = reliability(confidence, right)
    assert diagram.items.tolist() == [0] * 9 + [3, 0, 0, 0, 1, 0]
    assert diagram.confidence[9] == pytest.approx(0.64)
    assert diagram.accuracy[9] == pytest.approx(1 / 3)
    assert np.isnan(diagram.accuracy[0])
    expected, largest = calibration_errors(diagram)
    assert expected == pytest.approx((3 * (0.64 - 1 / 3) + 0.10) / 4)
    assert largest == pytest.approx(0.64 - 1 / 3)


def test_upper_edge_belongs_to_a_bin_and_the_ends_to_the_outer_ones():
    edges = np.linspace(0, 1, 16)
    diagram = reliability(np.array([0.0, edges[1], edges[3], 1.0]), np.ones(4, dtype=bool))
    assert np.flatnonzero(diagram.items).tolist() == [0, 2, 14]
    assert diagram.items[0] == 2


def test_hand_worked_scores():
    probability = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    truth = np.array([0, 1])
    assert brier_score(truth, probability) == pytest.approx((0.25 + 0.09 + 0.04) / 2)
    assert negative_log_likelihood(truth, probability) == pytest.approx(np.log(2) / 2)
    # A probability of zero for the truth costs much, and not infinitely much.
    assert negative_log_likelihood(np.array([2]), probability[1:]) == pytest.approx(36.04, abs=0.01)
    assert brier_score(np.array([2]), probability[1:]) == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_scikit_learn(n_items, seed):
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet(np.full(7, 0.3), n_items)
    probability[0] = np.eye(7)[rng.integers(7)]
    truth = rng.integers(0, 7, n_items)
    labels = range(7)
    theirs = brier_score_loss(truth, probability, scale_by_half=False, labels=labels)
    assert brier_score(truth, probability) == pytest.approx(theirs)
    theirs = log_loss(truth, probability, labels=labels)
    assert negative_log_likelihood(truth, probability) == pytest.approx(theirs)


def test_hand_worked_selection():
    confidence = np.array([0.5, 0.9, 0.7, 0.7])
    right = np.array([False, True, True, False])
    chosen = selection(confidence, right)
    assert chosen.threshold.tolist() == [0.9, 0.7, 0.5]
    assert chosen.coverage.tolist() == [0.25, 0.75, 1]
    np.testing.assert_allclose(chosen.accuracy, [1, 2 / 3, 1 / 2])


def test_hand_worked_coverage():
    # Accuracy 1, 1/2, 2/3, 3/4 and 3/5: it falls below a wanted one and comes back.
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    chosen = selection(confidence, np.array([True, False, True, True, False]))
    assert coverage_at(0.8, chosen) == 0.2
    assert coverage_at(0.75, chosen) == 0.8
    assert coverage_at(0.6, chosen) == 1
    nine_of_ten = np.arange(10) > 0
    assert coverage_at(0.9, selection(np.full(10, 0.5), nine_of_ten)) == 1
    assert coverage_at(0.9, selection(np.full(10, 0.5), nine_of_ten & (np.arange(10) > 1))) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=60))
def test_selection_is_what_each_threshold_answers(items):
    confidence = np.array([c for c, _ in items]) / 9
    right = np.array([r for _, r in items])
    chosen = selection(confidence, right)
    assert chosen.threshold.tolist() == sorted(set(confidence), reverse=True)
    for threshold, coverage, accuracy in zip(*chosen, strict=True):
        answered = confidence >= threshold
        assert coverage == pytest.approx(answered.mean())
        assert accuracy == pytest.approx(right[answered].mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_errors_are_fractions_and_the_order_of_items_does_not_matter(n_items, seed):
    rng = np.random.default_rng(seed)
    confidence, right = rng.random(n_items), rng.random(n_items) < 0.5
    expected, largest = calibration_errors(reliability(confidence, right))
    assert 0 <= expected <= largest <= 1
    order = rng.permutation(n_items)
    again = calibration_errors(reliability(confidence[order], right[order]))
    assert again == pytest.approx((expected, largest))
