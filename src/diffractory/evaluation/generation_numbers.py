"""Numbers of the generation study as its tables print them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from diffractory.evaluation.crystal_scores import (
    Estimate,
    covered,
    estimated_mean,
    estimated_wasserstein,
    rms_with_misses,
)
from diffractory.evaluation.generation import count, evaluations
from diffractory.evaluation.published import NOT_GIVEN

FORMATION_ENERGY = "W formation energy (eV/atom)"

PROPERTIES = {
    "W density (g/cm³)": "density",
    FORMATION_ENERGY: "formation_energy",
    "W elements": "n_elements",
}
"""Columns of Wasserstein distances, by what they compare."""

CHANGES = {
    "RMS volume change (Å³/atom)": ("volume", 1, 4),
    "RMS energy change (meV/atom)": ("energy", 1000, 1),
    "RMS enthalpy change (meV/atom)": ("enthalpy", 1000, 1),
}
"""Changes by relaxation: what changes, in what part of its unit, and how many digits to print."""


class Number(NamedTuple):
    """A printed number with its interval."""

    column: str
    unit: str
    value: str
    interval: str = ""


class Judged(NamedTuple):
    """What a row of a table is worked out from.

    Attributes
    ----------
    frames
        Evaluations by kind.
    size
        Numbers of crystals of the data set, and the split that counts.
    cutoffs
        Of the fingerprints: ``structure`` and ``composition``.
    stol
        Tolerance of the matches, in units of the cube root of the volume per atom.
    sampler, steps
        How the crystals were sampled, and how often the model's own sampler asks the network.
    seed
        Global seed.
    """

    frames: Mapping[str, pd.DataFrame]
    size: pd.DataFrame
    split_kind: str
    cutoffs: Mapping[str, float]
    stol: float
    sampler: str
    steps: int
    seed: int


def reconstruction(judged: Judged) -> list[Number]:
    """Return how often decoded crystals match, and how well."""
    frame, seed = judged.frames["reconstructed"], judged.seed
    return [
        _share("Match rate", frame["matched"], seed),
        _mean("Mean RMS distance", frame["rms"], seed),
    ]


def by_tolerance(judged: Judged) -> list[Number]:
    """Return other measures of reconstruction beside those of the paper."""
    frame, seed, stol = judged.frames["reconstructed"], judged.seed, judged.stol
    with_misses = rms_with_misses(frame["rms"].to_numpy(np.float64), stol)
    return [
        *reconstruction(judged),
        _mean(f"Mean RMS distance, misses at {stol:g}", with_misses, seed),
        _share("Match rate, valid alone", frame["matched"] & frame["valid"], seed),
        _share("Match rate, default", frame["matched_default"], seed),
        _mean("Mean RMS distance, default", frame["rms_default"], seed),
        _share("Same space group", frame["same_space_group"], seed),
        _share("Same composition", frame["same_composition"], seed),
        _share("Same number of atoms", frame["same_n_sites"], seed),
        _share("Out of time", frame["timed_out"], seed),
    ]


def generation(judged: Judged) -> list[Number]:
    """Return validity, coverage, distances of distributions, uniqueness and novelty."""
    generated, reference, seed = judged.frames["generated"], judged.frames["reference"], judged.seed
    drawn = generated[generated["for_properties"]]
    return [
        _share("Structure valid", generated["valid_structure"], seed),
        _share("Composition valid", generated["valid_composition"], seed),
        _coverage("COV-R", reference, judged),
        _coverage("COV-P", generated, judged),
        *(
            _distance(column, drawn[name], reference[name], seed)
            for column, name in PROPERTIES.items()
        ),
        _share("Unique", generated["unique"], seed),
        _share("Novel", generated["novel"], seed),
        Number("Generated", "", f"{len(generated):,}"),
        Number("Drawn for W", "", f"{len(drawn):,}"),
    ]


def relaxation(judged: Judged) -> list[Number]:
    """Return how far generated crystals are from what they relax to."""
    frame, seed = judged.frames["relaxed"], judged.seed
    still = frame[frame["converged"]]
    return [
        _share("Match rate", frame["matched"], seed),
        _mean("Mean RMS distance", frame["rms"], seed),
        *(
            _root_mean_square(
                column, parts * (still[f"{name}_before"] - still[f"{name}_after"]), seed, digits
            )
            for column, (name, parts, digits) in CHANGES.items()
        ),
        _share("Converged", frame["converged"], seed),
    ]


def by_steps(judged: Judged) -> list[Number]:
    """Return how well decoded crystals match, beside what they cost."""
    asked = f"{evaluations(judged.sampler, judged.steps):,}"
    return [Number("Network evaluations", "", asked), *reconstruction(judged)]


def by_split(judged: Judged) -> list[Number]:
    """Return measures of a model, beside what its split lets it see."""
    size, kind = judged.size, judged.split_kind
    total = count(size, "test", kind=kind)
    again = total - count(size, "test", "duplicate_groups", kind)
    twins = count(size, "test", "with_twin_in_train", kind)
    return [
        *reconstruction(judged),
        _coverage("COV-R", judged.frames["reference"], judged),
        *(
            Number(column, "%", f"{100 * part / total:.2f}" if total else NOT_GIVEN)
            for column, part in {"Duplicates": again, "Twin in training": twins}.items()
        ),
    ]


NUMBERS: dict[str, Callable[[Judged], list[Number]]] = {
    "1": reconstruction,
    "2": generation,
    "3": relaxation,
    "S1": reconstruction,
    "tolerances": by_tolerance,
    "steps": by_steps,
    "splits": by_split,
}
"""The numbers in each row of a table."""


def _share(column: str, values: ArrayLike, seed: int) -> Number:
    """Return a share of all crystals, percent."""
    estimate = estimated_mean(100 * np.asarray(values, dtype=np.float64), seed)
    return Number(column, "%", *_printed(estimate, 2))


def _mean(column: str, values: ArrayLike, seed: int) -> Number:
    """Return the mean of those values that are there."""
    estimate = estimated_mean(np.asarray(values, dtype=np.float64), seed)
    return Number(column, "", *_printed(estimate, 4))


def _root_mean_square(column: str, values: ArrayLike, seed: int, digits: int) -> Number:
    """Return the root mean square of those values that are there."""
    value, low, high, n = estimated_mean(np.asarray(values, dtype=np.float64) ** 2, seed)
    estimate = Estimate(value**0.5, low**0.5, high**0.5, n)
    return Number(column, "", *_printed(estimate, digits))


def _distance(column: str, ours: ArrayLike, theirs: ArrayLike, seed: int) -> Number:
    """Return the Wasserstein distance of two samples."""
    first, second = (np.asarray(values, dtype=np.float64) for values in (ours, theirs))
    return Number(column, "", *_printed(estimated_wasserstein(first, second, seed), 4))


def _coverage(column: str, frame: pd.DataFrame, judged: Judged) -> Number:
    """Return the share of crystals that one of the other set comes near to, percent."""
    near = covered(
        frame["structure_distance"].to_numpy(np.float64),
        frame["composition_distance"].to_numpy(np.float64),
        judged.cutoffs["structure"],
        judged.cutoffs["composition"],
    )
    return _share(column, near, judged.seed)


def _printed(estimate: Estimate, digits: int) -> tuple[str, str]:
    """Return a number and its interval as printed; a dash where there is none."""
    if np.isnan(estimate.value):
        return NOT_GIVEN, ""
    ends = f"{estimate.low:.{digits}f}\N{EN DASH}{estimate.high:.{digits}f}"
    return f"{estimate.value:.{digits}f}", ends
