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
    n_groups: int,
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
        Group of each view, 0 to G - 1, shape (P,); each group has one or more.
    """
    total = np.zeros((n_groups, log_probability.shape[1]))
    np.add.at(total, group, log_probability)
    views = np.bincount(group, minlength=n_groups)
    return _softmax(weight * views[:, None] ** -power * total)


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
    n_groups = int(group.max()) + 1
    truth_of_group = np.zeros(n_groups, dtype=np.int64)
    truth_of_group[group] = truth
    every = np.arange(n_groups)
    sums, views = [], []
    for _ in range(N_DRAWS):
        order = np.lexsort((rng.random(len(group)), group))
        place = np.empty(len(group), dtype=np.int64)
        place[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
        for count in COUNTS:
            chosen = place < count
            total = np.zeros((n_groups, log_probability.shape[1]))
            np.add.at(total, group[chosen], log_probability[chosen])
            sums.append(total)
            views.append(np.bincount(group[chosen], minlength=n_groups))

    def surprise(weight: float, power: float) -> float:
        return float(
            np.mean(
                [
                    -np.log(_softmax(weight * v[:, None] ** -power * s)[every, truth_of_group])
                    for s, v in zip(sums, views, strict=True)
                ]
            )
        )

    _, weight, power = min((surprise(w, p), w, p) for w in WEIGHTS for p in POWERS)
    return float(weight), float(power)


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    exponential = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True))
