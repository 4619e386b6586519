"""Evaluations of the study of two-dimensional crystals: what the files hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_integer_dtype

from diffractory.evaluation.tables import read_columns
from diffractory.store import InputError

STUDY = "structure_2d"

MODELS = {
    "dd2d": "DD2D, unperturbed",
    "dd2d_perturbed": "DD2D, perturbed",
    "invariant": "Invariant, unperturbed",
    "invariant_perturbed": "Invariant, perturbed",
}
"""Models by the name of their file, with the patterns that they learn from and are asked about."""

FAMILIES = ("oblique", "rectangular", "square", "hexagonal")
"""Families of layers, of ascending symmetry."""

UNCHANGED, EXPERIMENTAL = "as_simulated", "experimental"
"""Conditions: patterns as simulated, and with all that an experiment may do to them."""

TEST = "test"
"""The gallery of the test crystals alone."""

CALCULATORS = {"chgnet": "CHGNet", "emt": "EMT"}


class ShownCrystal(NamedTuple):
    """A crystal that a figure shows.

    Attributes
    ----------
    material_id, formula
        What it is called.
    score, r_factor
        Cosine and R-factor as a candidate; NaN for the crystal of the pattern.
    cell
        Lattice vectors as rows, c along z, angstrom, shape (3, 3).
    positions
        Cartesian, in the order of the tokens, angstrom, shape (N, 3).
    numbers, elements
        Atomic numbers and symbols, shape (N,).
    """

    material_id: str
    formula: str
    score: float
    r_factor: float
    cell: NDArray[np.float64]
    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]
    elements: NDArray[np.str_]


class Example(NamedTuple):
    """A test pattern, its crystal and its candidates.

    Attributes
    ----------
    crystal
        What made the pattern.
    candidates
        Of the gallery of the test, best first.
    spots
        q_x and q_y in 1/angstrom and the intensity, shape (S, 3).
    attention
        Weights in the first and the last layer of the geometric encoder, shape (2, heads, T, T).
    """

    crystal: ShownCrystal
    candidates: tuple[ShownCrystal, ...]
    spots: NDArray[np.float64]
    attention: NDArray[np.float64]


def condition_name(condition: str) -> str:
    """Return a condition or gallery as it is printed."""
    return condition.replace("_", " ")


def read_answers(path: Path, *more: str) -> pd.DataFrame:
    """Return what `evaluate_retrieval` wrote, without lists other than those asked for.

    Raises
    ------
    InputError
        If the file is not of that form, or does not have the patterns as simulated.
    """
    words = ["condition", "gallery", "material_id", "family"]
    numbers = ["gallery_size", "rank", "checked_rank", "twins"]
    table = read_columns(path, [*words, *numbers, *more])
    if odd := [name for name in numbers if not is_integer_dtype(table[name])]:
        raise InputError(f"{path} has a {odd[0]} that is no whole number: evaluate the model again")
    for name in ("rank", "checked_rank"):
        if not table[name].between(1, table["gallery_size"]).all():
            raise InputError(f"{path} has a {name} outside of its gallery: evaluate it again")
    if chosen(table).empty:
        raise InputError(
            f"{path} has no answers to the patterns {condition_name(UNCHANGED)}, of the gallery "
            f"{TEST}: evaluate the model again"
        )
    return table


def chosen(answers: pd.DataFrame, condition: str = UNCHANGED, gallery: str = TEST) -> pd.DataFrame:
    """Return the answers under one condition from one gallery."""
    return answers[(answers["condition"] == condition) & (answers["gallery"] == gallery)]


def read_dataset(path: Path) -> pd.DataFrame:
    """Return the number of layers, and of relaxed ones, by split and family.

    Raises
    ------
    InputError
        If the file is not of the form that `summarize_layers` writes.
    """
    return read_columns(path, ["split", "family", "layers", "relaxed"])


def count_layers(
    dataset: pd.DataFrame, split: str, family: str = "", column: str = "layers"
) -> int:
    """Return how many layers of a family, or of all, a split has."""
    part = dataset[dataset["split"] == split]
    return int(part[part["family"] == family][column].sum() if family else part[column].sum())


def read_example(path: Path | None) -> Example:
    """Return what figures show of one test pattern.

    Raises
    ------
    InputError
        If the file is not given, or not of the form that `collect_retrieval_examples` writes.
    """
    if path is None:
        raise InputError("the pattern to show is not given: collect the examples")
    try:
        rows = pd.read_parquet(path).sort_values("place").to_dict("records")
        crystal, *candidates = map(_crystal, rows)
        spots = np.array(rows[0]["spots"], dtype=np.float64).reshape(-1, 3)
        tokens = 8 + 4 * len(crystal.numbers)
        attention = np.array(rows[0]["attention"], dtype=np.float64)
        attention = attention.reshape(2, -1, tokens, tokens)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not hold a pattern and its candidates ({error!r}): collect the examples "
            "again"
        ) from error
    shown = [one.positions for one in (crystal, *candidates)]
    if not candidates or not len(spots) or not attention.size:
        raise InputError(f"{path} has no candidate, spot or attention: collect the examples again")
    if not all(np.isfinite(values).all() for values in (spots, attention, *shown)):
        raise InputError(f"{path} has values that are not finite: collect the examples again")
    return Example(crystal, tuple(candidates), spots, attention)


def _crystal(row: Mapping[Any, Any]) -> ShownCrystal:
    numbers = np.array(row["numbers"], dtype=np.int64)
    return ShownCrystal(
        row["material_id"],
        row["formula"],
        float(row["score"]),
        float(row["r_factor"]),
        np.array(row["cell"], dtype=np.float64).reshape(3, 3),
        np.array(row["positions"], dtype=np.float64).reshape(len(numbers), 3),
        numbers,
        np.array(row["elements"], dtype=str).reshape(len(numbers)),
    )


def crystals_stand_in(context: Mapping[str, Any]) -> str:
    """Return what stands in for the published crystals; empty where these are used."""
    source = context["source"]
    if source == "c2db":
        return ""
    used = "embedded 2D prototypes" if source == "layers" else source.replace("_", " ")
    return f"{used} for C2DB"


def motion_stand_in(context: Mapping[str, Any]) -> str:
    """Return what stands in for the published thermal motion; empty where it is the published."""
    perturbed = context["perturbed"]
    if perturbed["method"] != "dynamics":
        return "Gaussian displacements for ab-initio molecular dynamics"
    calculator = perturbed["calculator"]
    if calculator == "vasp":
        return ""
    used = CALCULATORS.get(calculator, calculator)
    return f"molecular dynamics with {used} for that with VASP"
