"""Atoms and ions that the embedded sources substitute, and which of them go together."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pymatgen.core.periodic_table import Element

CHARGE_STEP = 20
"""Steps on the chemical scale that a unit of charge counts as."""
SHORTEST_DISTANCE = 0.7
"""Least distance of any two atoms over the sum of their radii after Slater."""

LEFT_OUT = {2, 10, 18, 36, 54, 43, 61, *range(84, 90), 91}
"""Atomic numbers of the noble gases and, up to U, of the radioactive elements but Th and U."""
VOLATILE = {"H", "N", "O", "F", "Cl", "Br"}
"""Compounds of these with nonmetals alone are gases, liquids or molecular crystals."""
ANIONS = {"H": -1, "F": -1, "Cl": -1, "Br": -1, "I": -1, "O": -2, "S": -2, "Se": -2, "Te": -2,
          "N": -3, "P": -3, "As": -3, "Sb": -3}  # fmt: skip
ANION_RADII = {"H": 1.28, "P": 1.84, "As": 1.90, "Sb": 2.07}
"""Crystal radii that Shannon lacks, angstrom: a/2 of NaH, LaP, LaAs, LaSb less the cation's."""
OXIDISING = 3.4
"""Electronegativity above which an anion, oxide or fluoride, bears cations of any charge."""
HIGHEST_CHARGE = 5
"""Highest charge of a cation beside any other anion."""


@dataclass(frozen=True)
class Species:
    """All atoms (charge 0) and ions; every array has shape (species,), every radius is in angstrom.

    Attributes
    ----------
    symbol, charge
        Element and charge.
    radius
        Crystal radius of an ion after Shannon; of an atom, metallic radius or else after Slater.
    slater
        Radius of the element after J. C. Slater, J. Chem. Phys. 41, 3199 (1964).
    electronegativity, mendeleev, group
        After Pauling, Pettifor and IUPAC.
    metal, nonmetal
        Whether it is a metal, and whether it is neither metal nor metalloid.
    put_in
        Whether it may replace another; hydrogen and halogen cations may not.
    """

    symbol: NDArray[np.str_]
    charge: NDArray[np.int64]
    radius: NDArray[np.float64]
    slater: NDArray[np.float64]
    electronegativity: NDArray[np.float64]
    mendeleev: NDArray[np.float64]
    group: NDArray[np.int64]
    metal: NDArray[np.bool_]
    nonmetal: NDArray[np.bool_]
    put_in: NDArray[np.bool_]


@cache
def species_table() -> Species:
    """Return the table of atoms and ions up to uranium."""
    rows = []
    for element in (Element.from_Z(z) for z in range(1, 93) if z not in LEFT_OUT):
        slater = float(element.data["Atomic radius"])
        metallic = element.data.get("Metallic radius")
        atom = (0, metallic if element.is_metal and isinstance(metallic, float) else slater)
        for charge, radius in (atom, *_ions(element)):
            odd = element.symbol == "H" or (element.is_halogen and charge > 0)
            rows.append(
                (element.symbol, charge, radius, slater, element.X, element.mendeleev_no,
                 element.group, element.is_metal, not (element.is_metal or element.is_metalloid),
                 not odd)
            )  # fmt: skip
    return Species(*(np.array(column) for column in zip(*rows, strict=True)))


def _ions(element: Element) -> list[tuple[int, float]]:
    """Return the charges that an element takes and the crystal radii (angstrom) that go with them.

    They are the common oxidation states and, of transition metals, the lower ones in the ICSD.
    """
    charges = {charge for charge in element.common_oxidation_states if charge > 0}
    if element.symbol == "H":
        charges.clear()
    if element.is_transition_metal:
        charges.update(q for q in element.icsd_oxidation_states if q < max(charges))
    if element.symbol in ANIONS:
        charges.add(ANIONS[element.symbol])
    ions = ((charge, _ionic_radius(element, charge)) for charge in sorted(charges))
    return [(charge, radius) for charge, radius in ions if radius is not None]


def _ionic_radius(element: Element, charge: int) -> float | None:
    """Return the crystal radius in angstrom, sixfold and high-spin where there is a choice."""
    if charge < 0 and element.symbol in ANION_RADII:
        return ANION_RADII[element.symbol]
    coordinations = element.data["Shannon radii"].get(str(charge))
    if not coordinations:
        return None
    spins = coordinations.get("VI") or list(coordinations.values())[-1]
    spin = spins.get("High Spin") or list(spins.values())[-1]
    return float(spin["crystal_radius"])


def chemical_distance(
    species: NDArray[np.int64], original: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the steps on the chemical scale, charge included, between species."""
    table = species_table()
    steps: NDArray[np.float64] = np.abs(table.mendeleev[species] - table.mendeleev[original])
    return steps + CHARGE_STEP * np.abs(table.charge[species] - table.charge[original])


def balanced(
    amounts: NDArray[np.int64], species: NDArray[np.int64], excess: float = 0.0
) -> NDArray[np.bool_]:
    """Return whether species (..., k), in these amounts (k,), make a salt, shape (...).

    Every anion is more electronegative (Pauling) than every cation, but that of a metal may exceed
    it by less than ``excess``.
    """
    table = species_table()
    charge = table.charge[species]
    electronegativity = table.electronegativity[species]
    cations = np.where(charge > 0, electronegativity - excess * table.metal[species], -np.inf)
    anions = np.where(charge < 0, electronegativity, np.inf).min(axis=-1)
    attainable = (charge.max(axis=-1) <= HIGHEST_CHARGE) | (anions > OXIDISING)
    salt: NDArray[np.bool_] = (charge @ amounts == 0) & (cations.max(axis=-1) < anions)
    return salt & attainable


def volatile(species: NDArray[np.int64]) -> bool:
    """Return whether a compound of these is a gas, a liquid or a molecular crystal."""
    table = species_table()
    light = not VOLATILE.isdisjoint(table.symbol[species].tolist())
    return light and bool(table.nonmetal[species].all())
