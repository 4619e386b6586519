"""Parameters that are numbers, or ranges to draw from."""

import math
from typing import Any

import numpy as np


def draw(value: Any, rng: np.random.Generator, logarithmic: bool = False) -> float:
    """Return a number as it is, or a uniform draw between two of a list, or of their logarithms."""
    if not isinstance(value, list):
        return float(value)
    low, high = value
    if logarithmic:
        return math.exp(rng.uniform(math.log(low), math.log(high)))
    return float(rng.uniform(low, high))
