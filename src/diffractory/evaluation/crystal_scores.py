"""What is counted of matches and fingerprints of crystals: shares and distances, with intervals.

Apart from what finds these, since tables need no more.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffractory.evaluation.ranking import RESAMPLES, bootstrap
from diffractory.store import generator

TOLERANCES: Mapping[str, float] = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
"""Of the published studies (T. Xie et al., ICLR 2022): fractions, and degree."""

DEFAULT_TOLERANCES: Mapping[str, float] = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
"""Of pymatgen."""


class Estimate(NamedTuple):
    """A number with its 95 % bootstrap interval.

    Attributes
    ----------
    value, low, high
        NaN where there is nothing to average.
    n
        How many crystals it is over: the denominator.
    """

    value: float
    low: float
    high: float
    n: int


def covered(
    structure_distance: NDArray[np.float64],
    composition_distance: NDArray[np.float64],
    structure_cutoff: float,
    composition_cutoff: float,
) -> NDArray[np.bool_]:
    """Tell which crystals have a neighbour in the other set within both cutoffs, shape (M,).

    The mean over the test set is COV-R, that over the generated crystals COV-P. As in CDVAE, the
    nearest in structure and the nearest in composition need not be the same crystal. NaN is not
    covered.
    """
    return (structure_distance <= structure_cutoff) & (composition_distance <= composition_cutoff)


def rms_with_misses(rms: NDArray[np.float64], stol: float) -> NDArray[np.float64]:
    """Return the RMS distances with that of a miss, NaN, put at the tolerance ``stol``."""
    return np.where(np.isnan(rms), stol, rms)


def wasserstein(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the Wasserstein distance of order 1 of two samples; NaN is passed over.

    It is NaN if nothing is left of either.
    """
    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    if len(first) == 0 or len(second) == 0:
        return np.nan
    distance = _transport(first, second)
    return float(distance(np.ones((1, len(first))), np.ones((1, len(second))))[0])


def estimated_wasserstein(
    first: NDArray[np.float64], second: NDArray[np.float64], seed: int
) -> Estimate:
    """Return the Wasserstein distance of two samples, both drawn anew for the interval.

    The distance of two small samples of the same distribution is not zero, and that of samples
    drawn anew is larger still, so that the value may lie near the lower end of the interval. ``n``
    is the size of the first sample.
    """
    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    if len(first) == 0 or len(second) == 0:
        return Estimate(np.nan, np.nan, np.nan, len(first))
    distance = _transport(first, second)
    rng = generator(seed, "bootstrap_wasserstein", len(first))
    drawn = []
    for _ in range(0, RESAMPLES, 50):
        times = [
            rng.multinomial(len(sample), np.full(len(sample), 1 / len(sample)), 50)
            for sample in (first, second)
        ]
        drawn.append(distance(*times))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Estimate(wasserstein(first, second), float(low), float(high), len(first))


def _transport(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]:
    """Return the function of how often each value is drawn, (R, A) and (R, B), to distances (R,).

    The distance is the area between the two cumulative distributions.
    """
    values = np.concatenate([first, second])
    order = np.argsort(values, kind="stable")
    steps = np.diff(values[order])
    weight = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])

    def distance(times_first: NDArray[Any], times_second: NDArray[Any]) -> NDArray[np.float64]:
        times = np.concatenate([times_first, times_second], axis=1)
        gap = np.cumsum((times * weight)[:, order], axis=1)[:, :-1]
        return np.abs(gap) @ steps

    return distance


def estimated_mean(values: NDArray[np.float64] | NDArray[np.bool_], seed: int) -> Estimate:
    """Return the mean of the values that are not NaN; of booleans it is a share."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if len(kept) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    return Estimate(float(kept.mean()), *bootstrap(kept, seed), len(kept))
