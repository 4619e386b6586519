"""Measures of retrieval: where the truth stands in a list of candidates."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffractory.store import generator

RESAMPLES = 2000
"""Samples that a bootstrap draws."""


class Best(NamedTuple):
    """The best candidates of Q queries, and where the truth stands.

    Attributes
    ----------
    place
        Places in the gallery, best first, shape (Q, K).
    score
        Their scores, shape (Q, K).
    rank
        Of the truth, from 1, shape (Q,).
    """

    place: NDArray[np.int64]
    score: NDArray[np.float32]
    rank: NDArray[np.int64]


def search(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], truth: NDArray[np.int64], k: int
) -> Best:
    """Return the nearest of a gallery for each query, by the cosine of normalized embeddings.

    Equal scores count against the truth, so that a network that says the same of everything has
    learnt nothing; among the candidates the first in the gallery comes first.

    Parameters
    ----------
    queries, gallery
        Shapes (Q, D) and (G, D), rows of length 1. One query in a large gallery is fastest where
        the columns of the gallery are contiguous.
    truth
        Place in the gallery of what each query is, shape (Q,).
    k
        Candidates to return; all, if the gallery has fewer.
    """
    import torch  # takes seconds, and who only counts ranks does not need it

    k = min(k, len(gallery))
    # By torch, as networks run: NumPy's idle threads would hold up those of the next query.
    score = (torch.from_numpy(queries) @ torch.from_numpy(gallery).T).numpy()
    of_truth = np.take_along_axis(score, truth[:, None], axis=1)
    rank = (score >= of_truth).sum(axis=1)
    if k < len(gallery):
        near = np.sort(np.argpartition(-score, k - 1, axis=1)[:, :k], axis=1)
    else:
        near = np.broadcast_to(np.arange(k), score.shape)
    found = np.take_along_axis(score, near, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return Best(
        np.take_along_axis(near, order, axis=1), np.take_along_axis(found, order, axis=1), rank
    )


def top_share(rank: NDArray[np.int64], k: int) -> float:
    """Return the share of queries whose truth is among the first k."""
    return float((rank <= k).mean())


def mean_reciprocal_rank(rank: NDArray[np.int64]) -> float:
    """Return the mean of 1 / rank."""
    return float((1 / rank).mean())


def bootstrap(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean over queries (Efron, Ann. Stat. 7, 1 (1979)).

    Parameters
    ----------
    values
        One for each query, shape (Q,).
    seed
        Global seed.
    """
    rng = generator(seed, "bootstrap", len(values))
    # How often each query is drawn, which is all that the mean depends on.
    times = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES)
    low, high = np.quantile(times @ values / len(values), [0.025, 0.975])
    return float(low), float(high)
