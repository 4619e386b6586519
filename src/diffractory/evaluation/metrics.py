"""Classification metrics, and the majority vote over several patterns of one material."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffractory.store import generator

Z_95 = NormalDist().inv_cdf(0.975)
"""Two-sided 95 % quantile of the normal distribution."""


class ClassMetrics(NamedTuple):
    """Precision, recall and F1 of each class as fractions, and its true items, each of shape (C,).

    Precision is NaN for a class that was never predicted, recall for one without items, and F1
    where neither occurs.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]


def wilson_interval(right: float, total: float) -> tuple[float, float]:
    """Return the Wilson score interval (95 %) of the fraction ``right / total``, total > 0.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927).
    """
    fraction, z2 = right / total, Z_95**2 / total
    centre = (fraction + z2 / 2) / (1 + z2)
    half = Z_95 / (1 + z2) * np.sqrt(fraction * (1 - fraction) / total + z2 / (4 * total))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def confusion_matrix(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Return how many items of each true class (row) got each class (column), shape (C, C)."""
    return np.bincount(truth * n_classes + predicted, minlength=n_classes**2).reshape(
        n_classes, n_classes
    )


def row_normalized(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row of a confusion matrix over its sum; NaN for a class without items."""
    return _ratio(confusion, confusion.sum(axis=1, keepdims=True))


def class_metrics(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int
) -> ClassMetrics:
    """Return precision, recall, F1 and support of the classes 0 to ``n_classes - 1``."""
    confusion = confusion_matrix(truth, predicted, n_classes)
    right, support, named = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassMetrics(
        precision=_ratio(right, named),
        recall=_ratio(right, support),
        f1=_ratio(2 * right, support + named),
        support=support,
    )


def random_ranks(
    groups: NDArray[np.int64], names: Sequence[str], n_draws: int, seed: int
) -> NDArray[np.int64]:
    """Return the place of each item, from 0, in random orders of its group.

    The items whose rank is below n are n items drawn from each group without replacement, or all
    of a group that has fewer. The draws for n and for n + 1 differ by one item of each group.

    Parameters
    ----------
    groups
        Group of each item as an index into ``names``, sorted, shape (N,).
    names
        Names of the groups; the orders of a group follow from its name and ``seed`` alone.
    n_draws
        Number of orders D; the first ones do not depend on it.
    seed
        Global seed.

    Returns
    -------
    NDArray
        Ranks, shape (D, N).
    """
    offsets = np.searchsorted(groups, np.arange(len(names) + 1))
    keys = np.hstack(
        [
            generator(seed, "aggregate", name).random((n_draws, size))
            for name, size in zip(names, np.diff(offsets), strict=True)
        ]
    )
    order = np.lexsort((keys, np.broadcast_to(groups, keys.shape)))
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, (np.arange(len(groups)) - offsets[groups])[None], axis=1)
    return ranks


def vote(
    groups: NDArray[np.int64],
    predicted: NDArray[np.int64],
    probability: NDArray[np.float64],
    n_groups: int,
    n_classes: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the most often predicted class of each group and its mean probability.

    Ties go to the class with the higher mean probability, then to the one of lower index.

    Parameters
    ----------
    groups, predicted
        Group and predicted class of each item, shape (N,); every group has an item.
    probability
        Probabilities of all classes, shape (N, C), or of the predicted class alone, shape (N,);
        the other classes then count as 0.
    n_groups, n_classes
        Numbers of groups G and classes C.

    Returns
    -------
    winner, confidence
        Class and mean of its probability over the items of the group, each of shape (G,).
    """
    shape = (n_groups, n_classes)
    votes = _summed(groups, predicted, np.ones(len(groups)), shape)
    if probability.ndim == 1:
        total = _summed(groups, predicted, probability, shape)
    else:
        total = np.column_stack([np.bincount(groups, p, n_groups) for p in probability.T])
    # Rounded, so that a tie does not hang on the order of summation.
    mean = np.round(total / votes.sum(axis=1, keepdims=True), 12)
    leading = votes == votes.max(axis=1, keepdims=True)
    winner = np.where(leading, mean, -1.0).argmax(axis=1)
    return winner, mean[np.arange(n_groups), winner]


def _summed(
    groups: NDArray[np.int64],
    classes: NDArray[np.int64],
    weights: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.float64]:
    """Return the summed weight of each group and class, shape (G, C)."""
    cells = np.bincount(groups * shape[1] + classes, weights, shape[0] * shape[1])
    return cells.astype(np.float64).reshape(shape)


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerator / denominator, dtype=np.float64)
