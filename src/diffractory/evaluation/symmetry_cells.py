"""Numbers of the symmetry study as its tables print them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.metrics import wilson_interval
from diffractory.evaluation.published import NOT_GIVEN
from diffractory.evaluation.symmetry import N_SYSTEMS, Patterns, aggregated_how
from diffractory.store import CRYSTAL_SYSTEMS

INTERVAL_NOTE = (
    "Intervals: Wilson 95 %, with test items taken as independent. Patterns of one material are "
    "not, so that the intervals of single patterns are too narrow."
)


def title(k: int) -> str:
    """Return the name of a crystal system, given its index in ``CRYSTAL_SYSTEMS``."""
    return CRYSTAL_SYSTEMS[k].capitalize()


def train_and_test(
    dataset: pd.DataFrame, items: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the training and test patterns or materials by crystal system, each shape (7,)."""
    name = items.capitalize()
    return count_items(dataset, "train")[name], count_items(dataset, "test")[name]


def count_items(dataset: pd.DataFrame, split: str) -> dict[str, NDArray[np.int64]]:
    """Count patterns, materials and distinct space groups by crystal system, each shape (7,)."""
    part = dataset[dataset["split"] == split]
    system, n = part["system"].to_numpy(), N_SYSTEMS
    distinct = part.drop_duplicates(["system", "space_group"])["system"].to_numpy()
    return {
        "Patterns": np.bincount(system, part["n_patterns"], n).astype(np.int64),
        "Materials": np.bincount(system, minlength=n),
        "Space groups": np.bincount(distinct, minlength=n),
    }


def share(right: int, total: int, unit: str) -> tuple[str, str]:
    """Return an accuracy and its 95 % interval, printed in a unit."""
    if total == 0:
        return NOT_GIVEN, ""
    low, high = wilson_interval(right, total)
    return printed(right / total, unit), f"{printed(low, unit)}\N{EN DASH}{printed(high, unit)}"


def printed(fraction: float, unit: str) -> str:
    """Return a fraction as the paper prints it: percent with one decimal, or three decimals."""
    if np.isnan(fraction):
        return NOT_GIVEN
    return f"{100 * fraction:.1f}" if unit == "%" else f"{fraction:.3f}"


def vote_note(single: Mapping[str, Patterns], context: Mapping[str, Any]) -> str:
    """Return how the patterns of a material are combined, by models given with their patterns."""
    return (
        f"Agg.: up to {context['aggregate']} patterns per material, drawn at random, combined "
        f"{aggregated_how(single)}."
    )
