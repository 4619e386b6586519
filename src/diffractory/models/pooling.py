"""Pooling of the probabilities that a network gives to several patterns of one material."""

import numpy as np
from numpy.typing import NDArray

COUNTS = (1, 2, 5, 10, 20)
"""Numbers of patterns per material that `fit_pooling` looks at."""

N_DRAWS = 5

LEAST = 2.0**-24
"""What a smaller probability counts as: no view alone rules a class out."""

WEIGHTS, POWERS = np.geomspace(0.2, 2, 41), np.linspace(0, 1, 21)
"""What `fit_pooling` chooses from."""


def log_probability(probability: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return finite logarithms, as `pool` takes them."""
    return np.log(np.maximum(probability, LEAST))


def pool(
    log_probability: NDArray[np.floating],
    group: NDArray[np.integer],
    weight: float,
    power: float,
) -> NDArray[np.float64]:
    """Return the probabilities of G groups, shape (G, K), from those of their V views.

    They are proportional to the product of the views' probabilities to the power weight V^-power.
    At weight 1, a power of 0 takes views as independent, and of 1 as saying the same.

    Parameters
    ----------
    log_probability
        Natural logarithm of the probabilities, finite, shape (P, K).
    group
        Group of each view, ascending, shape (P,).
    """
    return _pooled(*_sums(log_probability, group), weight, power)


def fit_pooling(
    log_probability: NDArray[np.floating],
    truth: NDArray[np.integer],
    group: NDArray[np.integer],
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return the weight and power for which the true classes of the groups are most likely.

    Parameters
    ----------
    log_probability, group
        As `pool` takes them.
    truth
        Class of each view, the same within a group, shape (P,).
    rng
        Draws the views, of which the groups are seen with `COUNTS`.
    """
    first = np.flatnonzero(np.diff(group, prepend=-1))
    classes, groups = truth[first], np.arange(len(first))
    place = np.arange(len(group)) - np.searchsorted(group, group)
    seen = []
    for _ in range(N_DRAWS):
        order = np.lexsort((rng.random(len(group)), group))
        for count in COUNTS:
            chosen = order[place < count]
            seen.append(_sums(log_probability[chosen], group[chosen]))

    def surprise(weight: float, power: float) -> float:
        of_truth = [_pooled(*sums, weight, power)[groups, classes] for sums in seen]
        return float(-np.mean(np.log(np.maximum(of_truth, np.finfo(float).tiny))))

    _, weight, power = min((surprise(w, p), w, p) for w in WEIGHTS for p in POWERS)
    return float(weight), float(power)


def _sums(
    log_probability: NDArray[np.floating], group: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the sums over each group, shape (G, K), and the numbers of views, shape (G,)."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    total = np.add.reduceat(log_probability, first, axis=0, dtype=np.float64)
    return total, np.diff(first, append=len(group))


def _pooled(
    total: NDArray[np.float64], views: NDArray[np.int64], weight: float, power: float
) -> NDArray[np.float64]:
    return _softmax(weight * views[:, None] ** -power * total)


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    exponential = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True))
