"""Fusion of the opinions that a network has of several patterns of one material."""

import numpy as np
from numpy.typing import NDArray


def fuse_opinions(
    probability: NDArray[np.floating],
    uncertainty: NDArray[np.floating],
    group: NDArray[np.integer],
    n_groups: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fuse the opinions of V views into those of G groups.

    An opinion on K classes has beliefs b_k = p_k - u / K, which with the uncertainty u sum to 1.
    Two of them are fused by Dempster's rule for beliefs in single classes (Z. Han, C. Zhang, H. Fu,
    J. T. Zhou, "Trusted multi-view classification", ICLR 2021),

        b_k = (b1_k b2_k + b1_k u2 + b2_k u1) / (1 - C),  u = u1 u2 / (1 - C),

    with the conflict C = sum_{k != l} b1_k b2_l. This makes b_k + u proportional to
    (b1_k + u1) (b2_k + u2), hence the opinion of any number of views, in any order, follows
    from two products, which are taken as sums of logarithms.

    Parameters
    ----------
    probability
        Expected probabilities p, shape (V, K).
    uncertainty
        0 (certain) to 1 (ignorant), shape (V,).
    group
        Group of each view, 0 to G - 1, shape (V,).
    n_groups
        G.

    Returns
    -------
    Expected probabilities, shape (G, K), and uncertainty, shape (G,). A group without views, or
    whose views leave no class possible (C = 1), is ignorant: 1 / K and 1.
    """
    n_classes = probability.shape[1]
    u = uncertainty.astype(np.float64)[:, None]
    plausibility = np.maximum(probability - u / n_classes, 0) + u
    log_product = np.zeros((n_groups, n_classes + 1))
    with np.errstate(divide="ignore"):
        np.add.at(log_product, group, np.log(np.hstack([plausibility, u])))

    largest = log_product.max(axis=1, keepdims=True)
    possible = np.isfinite(largest)
    product = np.exp(np.where(possible, log_product - np.where(possible, largest, 0), 0))
    mass = np.hstack([product[:, :-1] - product[:, -1:], product[:, -1:]])
    mass /= mass.sum(axis=1, keepdims=True)
    return mass[:, :-1] + mass[:, -1:] / n_classes, mass[:, -1]
