"""How good a set of generated crystals is: validity, coverage and distributions of properties.

The definitions are those of T. Xie et al., ICLR 2022 (CDVAE), by which T. Pakornchote et al., Sci.
Rep. 14, 1275 (2024) judge too. A crystal may hold anything a network says, NaN too: what cannot be
judged counts as not valid, not covered and without fingerprint, and is never left out of a
denominator. Matches are in `structure_matching`, fingerprints in `fingerprints`.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import smact
import torch
from numpy.typing import NDArray
from pymatgen.core.periodic_table import Element

from diffractory.evaluation.crystal_geometry import MIN_VOLUME, closest_pairs, finite, pack
from diffractory.structures.reading import Cell

MIN_DISTANCE = 0.5
"""Two atoms of a valid structure are no closer, angstrom."""

GRAMS_PER_AMU_PER_CUBIC_ANGSTROM = 1.66053906892
"""g/cm3 of 1 u in 1 cubic angstrom (CODATA 2022)."""

BLOCK = 512
"""Rows of distances that are worked out at a time."""


def valid_structure(cells: Sequence[Cell]) -> NDArray[np.bool_]:
    """Tell which crystals have no two atoms closer than `MIN_DISTANCE`, shape (M,).

    As in CDVAE, an atom's distance from its own images does not count, and a cell of less than
    `MIN_VOLUME` is not valid.
    """
    packed = pack(cells)
    valid = np.zeros(len(cells), dtype=np.bool_)
    valid[packed.usable] = closest_pairs(packed, MIN_DISTANCE) >= MIN_DISTANCE
    return valid


def valid_composition(cells: Sequence[Cell]) -> NDArray[np.bool_]:
    """Tell which crystals SMACT takes for chemically possible, shape (M,).

    A composition is if it is of one element or of metals alone, or if there are oxidation states
    whose sum is zero and by which every cation is less electronegative than every anion (D. W.
    Davies et al., Chem 1, 617 (2016)). The oxidation states are those of SMACT 2, with which the
    published numbers were worked out (``smact14`` in SMACT 4, whose default, ``icsd24``, allows
    fewer). Lattice and positions do not count.
    """
    return np.array([_possible(*_composition(cell)) for cell in cells], dtype=np.bool_)


def _composition(cell: Cell) -> tuple[tuple[int, ...], tuple[int, ...]]:
    elements, counts = np.unique(cell.numbers, return_counts=True)
    return tuple(elements.tolist()), tuple((counts // np.gcd.reduce(counts)).tolist())


@cache
def _possible(elements: tuple[int, ...], counts: tuple[int, ...]) -> bool:
    known = all(1 <= z <= len(_smact_elements()) for z in elements)
    if not elements or not known:
        return False
    data = [_smact_elements()[z - 1] for z in elements]
    if len(data) == 1 or all(element.symbol in smact.metals for element in data):
        return True
    negativities = [element.pauling_eneg for element in data if element.pauling_eneg is not None]
    if len(negativities) < len(data):
        return False
    # Elements below some electronegativity are the cations, the others the anions.
    for limit in set(negativities):
        charges = {0}
        for element, negativity, count in zip(data, negativities, counts, strict=True):
            sign = 1 if negativity < limit else -1
            states = [q for q in element.oxidation_states_smact14 or [] if sign * q >= 0]
            charges = {total + count * q for total in charges for q in states}
        if 0 in charges:
            return True
    return False


@cache
def _smact_elements() -> list[smact.Element]:
    return [smact.Element(Element.from_Z(z).symbol) for z in range(1, 104)]


def densities(cells: Sequence[Cell]) -> NDArray[np.float64]:
    """Return the density of each crystal, g/cm3, NaN where it has none, shape (M,)."""
    masses = _atomic_masses()
    total = np.array([masses[np.clip(cell.numbers, 0, len(masses) - 1)].sum() for cell in cells])
    volume = np.full(len(cells), np.nan)
    for m in np.flatnonzero(finite(cells)).tolist():
        volume[m] = cells[m].volume
    volume[volume < MIN_VOLUME] = np.nan
    return total / volume * GRAMS_PER_AMU_PER_CUBIC_ANGSTROM


@cache
def _atomic_masses() -> NDArray[np.float64]:
    """Return the mass of each element by atomic number, u; NaN for what is none."""
    return np.array(
        [np.nan, *(float(Element.from_Z(z).atomic_mass) for z in range(1, 119)), np.nan]
    )


def element_counts(cells: Sequence[Cell]) -> NDArray[np.int64]:
    """Return how many different elements each crystal has, shape (M,)."""
    return np.array([len(np.unique(cell.numbers)) for cell in cells], dtype=np.int64)


def nearest(rows: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Euclidean distance of each row (A, D) from the nearest of others (B, D).

    Others with NaN are passed over; a row with NaN has NaN, and so has each if no other is left.
    """
    kept = torch.from_numpy(others[np.isfinite(others).all(axis=1)])
    result = np.full(len(rows), np.nan)
    wanted = np.flatnonzero(np.isfinite(rows).all(axis=1))
    if len(kept) == 0:
        return result
    for start in range(0, len(wanted), BLOCK):
        some = wanted[start : start + BLOCK]
        # By differences: distances by products would lose half the digits of small ones.
        distances = torch.cdist(
            torch.from_numpy(rows[some]), kept, compute_mode="donot_use_mm_for_euclid_dist"
        )
        result[some] = distances.min(dim=1).values.numpy()
    return result
