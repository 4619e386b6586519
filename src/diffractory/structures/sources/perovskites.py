"""The embedded source for generation: perovskites ABX3 on the grid of Perov-5.

Perov-5 (I. E. Castelli et al., Energy Environ. Sci. 5, 5814 and 9034 (2012)) has any two of 52
cations, also the same one twice, with seven sets of three anions, which makes 18,928 crystals of
five atoms. These are the same compositions, charge-balanced or not, with geometries from Shannon's
crystal radii in place of density functional theory:

- Ions have those of their charges that come nearest to balance, the lower one on A.
- Each axis of the cell is a straight line in the bond lengths (`INTERCEPT`, `B_SLOPE`, `A_SLOPE`),
  fitted to 7,572 lattice constants of Perov-5 with a mean deviation of 3.4 %. Perov-5 has cubic
  cells. Here each axis has the anion of its own chain B-X-B, so that mixed anions make the cell
  tetragonal or orthorhombic.
- A cation that is too small for its site moves along x, as in tetragonal PbTiO3, until its nearest
  bonds have their length. In the distorted crystals of Perov-5, A moves by nearly so much.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core.periodic_table import Element

from diffractory.store import InputError
from diffractory.structures.cleaning import to_json
from diffractory.structures.reading import Cell
from diffractory.structures.sources.base import RetrievedStructure
from diffractory.structures.sources.species import species_table

CATIONS = (
    "Li Na K Rb Cs Be Mg Ca Sr Ba Sc Y La Ti Zr Hf V Nb Ta Cr Mo W Mn Re Fe Ru Os Co Rh Ir Ni Pd "
    "Pt Cu Ag Au Zn Cd Hg B Al Ga In Tl Si Ge Sn Pb As Sb Bi Te"
).split()
"""On the sites A and B of Perov-5."""
ANIONS = {"O3": "O O O", "O2N": "N O O", "ON2": "O N N", "N3": "N N N", "O2F": "F O O",
          "OFN": "F N O", "O2S": "S O O"}  # fmt: skip
"""Sets of anions of Perov-5, and which of them is in the chain B-X-B along x, y and z."""

INTERCEPT, B_SLOPE, A_SLOPE = 1.559, 0.834, 0.324
"""Lattice constant in angstrom: the first, plus B-X bond and mean A-X bond times the others."""
TWELVEFOLD = 2**0.125
"""Bond of twelvefold over bond of sixfold coordination, for a Born exponent of 9 (L. Pauling, The
Nature of the Chemical Bond, 3rd ed. (1960), chapter 13)."""
FARTHEST = 0.34
"""Largest displacement of A, fraction of the lattice constant: about that in Perov-5."""
DECIMALS = 8
"""Of lattice constants (angstrom) and fractional coordinates."""

SITES = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
"""A, B and the anions of the chains along x, y and z, fractional coordinates."""


def retrieve(
    settings: Mapping[str, Any], data_folder: Path, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield perovskites, named such as ``perovskite_SrTiO3``, in an order without system.

    The first n do not depend on ``count``: a larger one only adds crystals.

    Parameters
    ----------
    settings
        ``count``, the number of crystals to make.
    data_folder, download_folder
        Not used.

    Raises
    ------
    InputError
        If there are fewer.
    """
    names = [f"{a}{b}{x}" for a, b, x in product(CATIONS, CATIONS, ANIONS)]
    elements = [(a, b, *ANIONS[x].split()) for a, b, x in product(CATIONS, CATIONS, ANIONS)]
    count = settings["count"]
    if count > len(names):
        raise InputError(
            f"`count` of the perovskites is {count}, but there are {len(names)}: "
            f"{len(CATIONS)} cations on each of two sites, and {len(ANIONS)} sets of anions"
        )
    order = sorted(range(len(names)), key=lambda n: blake2b(names[n].encode()).digest())[:count]
    axes, positions = _geometry(np.array([_radii(elements[n]) for n in order]))
    for n, lengths, sites in zip(order, axes, positions, strict=True):
        numbers = np.array([Element(symbol).Z for symbol in elements[n]], dtype=np.intc)
        cell = Cell(np.diag(lengths).round(DECIMALS), sites.round(DECIMALS), numbers)
        yield RetrievedStructure(
            f"perovskite_{names[n]}", "perovskites", "json", to_json(cell).encode()
        )


def _radii(elements: Sequence[str]) -> list[float]:
    """Return the crystal radii of A, B and three anions, angstrom."""
    a, b, *anions = (_ions(element) for element in elements)
    negative = sum(ions[0][0] for ions in anions)
    charges = min(product(a, b), key=lambda pair: abs(pair[0][0] + pair[1][0] + negative))
    return [radius for _, radius in (*charges, *(ions[0] for ions in anions))]


@cache
def _ions(element: str) -> list[tuple[int, float]]:
    """Return charges and crystal radii (angstrom): of a cation, all, the lowest first."""
    table = species_table()
    sign = 1 if element in CATIONS else -1
    chosen = (table.symbol == element) & (table.charge * sign > 0)
    return list(zip(table.charge[chosen].tolist(), table.radius[chosen].tolist(), strict=True))


def _geometry(radii: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return lattice constants (N, 3) in angstrom and fractional coordinates (N, 5, 3).

    Parameters
    ----------
    radii
        Of A, B and the anions along x, y and z, angstrom, shape (N, 5).
    """
    b_bond = radii[:, 1, None] + radii[:, 2:]
    a_bond = radii[:, 0] + radii[:, 2:].mean(axis=1)
    axes = INTERCEPT + B_SLOPE * b_bond + A_SLOPE * a_bond[:, None]
    # Four anions lie half a lattice constant ahead of A along x, and as far off the axis.
    ahead = (TWELVEFOLD * a_bond / axes.mean(axis=1)) ** 2 - 0.25
    positions = np.tile(SITES, (len(radii), 1, 1))
    positions[:, 0, 0] += np.clip(0.5 - np.sqrt(np.maximum(ahead, 0)), 0, FARTHEST)
    positions[:, 1, 0] += np.maximum(0.5 - b_bond[:, 0] / axes[:, 0], 0)
    return axes, positions
