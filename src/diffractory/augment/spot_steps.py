"""A list of steps in the configuration, applied to spot patterns one after the other.

A step is a mapping of its name to a mapping of its parameters. A number may be a list of two that
it is drawn between, for each pattern; of ``dose`` the logarithm is drawn:

================ ===============================================================================
missing_spots    fraction of the diffracted spots
spurious_spots   fraction of the diffracted spots, g_max (radius that they are in, 1/angstrom)
position_jitter  deviation per axis, 1/angstrom
intensity_jitter deviation of the logarithm
centre_shift     distance, 1/angstrom
rotation         angle about the beam, degree
scale            error of the positions, relative
ellipse          ratio of the axes, angle of the long one (degree)
poisson          dose, electrons per pattern
================ ===============================================================================
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffractory.augment.ranges import draw
from diffractory.augment.spots import (
    add_spots,
    count_electrons,
    distort_ellipse,
    drop_spots,
    jitter_intensities,
    jitter_positions,
    scale_positions,
    shift_centre,
    turn_patterns,
)
from diffractory.errors import InputError
from diffractory.store import Patterns, generator

Drawn = dict[str, NDArray[np.float64]]
Step = Callable[[Patterns, Drawn, np.random.Generator], Patterns]

STEPS: dict[str, tuple[tuple[str, ...], Step]] = {
    "missing_spots": (("fraction",), lambda p, x, rng: drop_spots(p, x["fraction"], rng)),
    "spurious_spots": (
        ("fraction", "g_max"),
        lambda p, x, rng: add_spots(p, x["fraction"], x["g_max"], rng),
    ),
    "position_jitter": (("deviation",), lambda p, x, rng: jitter_positions(p, x["deviation"], rng)),
    "intensity_jitter": (
        ("deviation",),
        lambda p, x, rng: jitter_intensities(p, x["deviation"], rng),
    ),
    "centre_shift": (("distance",), lambda p, x, rng: shift_centre(p, x["distance"], rng)),
    "rotation": (("angle",), lambda p, x, rng: turn_patterns(p, x["angle"])),
    "scale": (("error",), lambda p, x, rng: scale_positions(p, x["error"])),
    "ellipse": (("ratio", "angle"), lambda p, x, rng: distort_ellipse(p, x["ratio"], x["angle"])),
    "poisson": (("dose",), lambda p, x, rng: count_electrons(p, x["dose"], rng)),
}
"""Parameters of each step, and what it does to patterns with one value of each for each."""


def augment_spots(
    patterns: Patterns, steps: Sequence[Mapping[str, Any]], seed: int
) -> tuple[Patterns, Drawn]:
    """Apply the steps of a list to patterns that stand together by material.

    Draws belong to the material, the place of the step and its name: patterns come out the same
    with whichever other materials they are given.

    Returns
    -------
    The patterns, and by ``{place}.{step}.{parameter}`` what each was augmented with, shape (P,).

    Raises
    ------
    InputError
        If a step or a parameter is unknown, or one is missing.
    """
    check_steps(steps)
    parts, drawn = [Patterns.empty()], []
    for first, last in pairwise(material_bounds(patterns.material_id)):
        part = patterns.select(np.arange(first, last))
        values: Drawn = {}
        for place, step in enumerate(steps):
            ((name, settings),) = step.items()
            rng = generator(seed, f"augment/{place}/{name}", patterns.material_id[first])
            names, apply = STEPS[name]
            levels = {key: _draw_each(key, settings[key], len(part), rng) for key in names}
            part = apply(part, levels, rng)
            values |= {f"{place}.{name}.{key}": level for key, level in levels.items()}
        parts.append(part)
        drawn.append(values)
    columns = drawn[0] if drawn else {}
    return Patterns.concatenate(parts), {
        key: np.concatenate([values[key] for values in drawn]) for key in columns
    }


def check_steps(steps: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what is no list of steps.

    Raises
    ------
    InputError
        If a step or a parameter is unknown, or one is missing.
    """
    for step in steps:
        if len(step) != 1 or (name := next(iter(step))) not in STEPS:
            raise InputError(
                f"{dict(step)} is no step of an augmentation of patterns: give {', '.join(STEPS)}"
            )
        names, _ = STEPS[name]
        if not isinstance(step[name], Mapping) or set(step[name]) != set(names):
            raise InputError(
                f"the step {name} of an augmentation has the parameters {step[name]}: it takes "
                f"{' and '.join(names)}"
            )


def material_bounds(material_ids: NDArray[np.object_]) -> list[int]:
    """Return where each run of patterns of one material starts, and the number of patterns."""
    changes = np.flatnonzero(material_ids[1:] != material_ids[:-1]) + 1
    return [0, *changes.tolist(), len(material_ids)] if len(material_ids) else [0]


def _draw_each(
    parameter: str, value: Any, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    return np.array([draw(value, rng, logarithmic=parameter == "dose") for _ in range(count)])
