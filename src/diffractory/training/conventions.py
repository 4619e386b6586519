"""What the training patterns of a model are like, for those who show it others."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffractory.store import read_selected

NEAR_DIRECT = 0.02
"""A spot nearer to the origin than this is the direct beam, 1/angstrom: planes that diffract would
be 50 angstrom apart."""


def conventions(patterns: Path, indices: NDArray[np.int64]) -> dict[str, Any]:
    """Return what ``hparams.json`` says of training patterns under ``patterns``.

    Parameters
    ----------
    patterns
        Pattern store.
    indices
        Of the training patterns, ascending.

    Returns
    -------
    ``energy`` (lowest and highest, eV), ``thickness`` (the same, angstrom), ``g_max`` (of the
    farthest spot, 1/angstrom), ``min_intensity`` (of the faintest, fraction of the incident beam)
    and ``direct_beam`` (whether more than half of the patterns have it).
    """
    energy, thickness = [np.inf, -np.inf], [np.inf, -np.inf]
    g_max, min_intensity, with_direct = 0.0, np.inf, 0
    for block in read_selected(patterns, indices):
        for ends, values in ((energy, block.energy), (thickness, block.thickness)):
            ends[:] = min(ends[0], values.min()), max(ends[1], values.max())
        g = np.hypot(block.qx, block.qy)
        g_max = max(g_max, g.max(initial=0))
        direct = g < NEAR_DIRECT
        min_intensity = min(min_intensity, block.intensity[~direct].min(initial=np.inf))
        with_direct += len(np.unique(block.pattern_of_spot[direct]))
    return {
        "energy": [_rounded(end) for end in energy],
        "thickness": [_rounded(end) for end in thickness],
        "g_max": _rounded(g_max),
        "min_intensity": _rounded(min_intensity),
        "direct_beam": 2 * with_direct > len(indices),
    }


def _rounded(value: float) -> float:
    """Return a number without the digits that single precision adds."""
    return float(f"{value:.4g}")
