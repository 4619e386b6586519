"""How far predicted probabilities can be trusted: calibration, proper scores, abstention."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

N_BINS = 15
"""Bins of equal width, the number of Guo et al. (2017)."""

EDGES = np.linspace(0, 1, N_BINS + 1)
"""Edges of the bins; the upper one belongs to a bin."""

LEAST_PROBABILITY = float(np.finfo(np.float64).eps)
"""What a smaller probability counts as in the likelihood, as in scikit-learn."""


class Reliability(NamedTuple):
    """Number of items, mean confidence and accuracy of each bin, shape (15,); NaN where empty."""

    items: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


class Selection(NamedTuple):
    """What abstaining below each confidence that occurs would give, in descending order.

    Attributes
    ----------
    threshold
        Least confidence to answer at, shape (T,).
    coverage
        Fraction of the items that are answered, shape (T,).
    accuracy
        Fraction of the answers that are right, shape (T,).
    """

    threshold: NDArray[np.float64]
    coverage: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Reliability:
    """Return the reliability diagram of N predictions.

    Parameters
    ----------
    confidence
        Probability of each predicted class, shape (N,).
    right
        Whether it was the true one, shape (N,).
    """
    bins = np.maximum(np.searchsorted(EDGES, confidence) - 1, 0)
    items = np.bincount(bins, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            items,
            np.bincount(bins, confidence, N_BINS) / items,
            np.bincount(bins, right, N_BINS) / items,
        )


def calibration_errors(diagram: Reliability) -> tuple[float, float]:
    """Return the expected and the maximum calibration error, fractions.

    They are the mean over items and the maximum over bins of the distance between accuracy and
    mean confidence of a bin. Source: M. P. Naeini, G. F. Cooper, M. Hauskrecht, AAAI 2015, and,
    for the predicted class alone, C. Guo et al., ICML 2017.
    """
    filled = diagram.items > 0
    error = np.abs(diagram.accuracy - diagram.confidence)[filled]
    return float(np.average(error, weights=diagram.items[filled])), float(error.max())


def brier_score(truth: NDArray[np.int64], probability: NDArray[np.float64]) -> float:
    """Return the mean squared distance of probabilities, shape (N, C), from the truth, 0 to 2.

    Source: G. W. Brier, Mon. Weather Rev. 78, 1 (1950).
    """
    return float(np.mean(np.sum((probability - np.eye(probability.shape[1])[truth]) ** 2, axis=1)))


def negative_log_likelihood(truth: NDArray[np.int64], probability: NDArray[np.float64]) -> float:
    """Return the mean of -log p of the true class, nat, from probabilities of shape (N, C)."""
    of_truth = probability[np.arange(len(truth)), truth]
    return float(-np.mean(np.log(np.maximum(of_truth, LEAST_PROBABILITY))))


def selection(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Selection:
    """Return accuracy against coverage; parameters are those of ``reliability``."""
    order = np.argsort(-confidence, kind="stable")
    # Items of equal confidence are answered together.
    last = np.flatnonzero(np.diff(confidence[order], append=-1.0))
    answered = last + 1
    return Selection(
        confidence[order][last], answered / len(order), np.cumsum(right[order])[last] / answered
    )


def coverage_at(accuracy: float, chosen: Selection) -> float:
    """Return the largest coverage, a fraction, with this accuracy or more; 0 where none has it."""
    return float(chosen.coverage[chosen.accuracy >= accuracy].max(initial=0.0))
