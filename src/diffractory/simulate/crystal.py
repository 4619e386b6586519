"""Crystals as the simulation needs them: a cell, positions and atomic numbers."""

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy "
    "Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf "
    "Es Fm Md No Lr"
).split()
ATOMIC_NUMBERS = {symbol: z for z, symbol in enumerate(SYMBOLS, start=1)}

TRANSLATION_TOLERANCE = 1e-3
"""How far an atom may be from its image under a lattice translation of the crystal, angstrom."""


@dataclass(frozen=True)
class Crystal:
    """A periodic arrangement of atoms.

    Attributes
    ----------
    cell
        Lattice vectors as rows, angstrom, shape (3, 3).
    positions
        Fractional coordinates, shape (N, 3).
    numbers
        Atomic numbers, shape (N,).
    """

    cell: NDArray[np.float64]
    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]

    @classmethod
    def from_json(cls, text: str) -> "Crystal":
        """Read pymatgen's dictionary form of an ordered structure."""
        data = json.loads(text)
        sites = data["sites"]
        return cls(
            cell=np.array(data["lattice"]["matrix"], dtype=float),
            positions=np.array([site["abc"] for site in sites], dtype=float),
            numbers=np.array([ATOMIC_NUMBERS[site["species"][0]["element"]] for site in sites]),
        )

    @property
    def volume(self) -> float:
        """Cell volume in cubic angstrom."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def reciprocal(self) -> NDArray[np.float64]:
        """Reciprocal lattice vectors as rows, 1/angstrom (without 2 pi), shape (3, 3)."""
        return np.asarray(np.linalg.inv(self.cell).T, dtype=np.float64)

    def lattice_translations(self) -> NDArray[np.float64]:
        """Fractional translations in the cell that map the crystal onto itself, shape (T, 3).

        T is 1 for a primitive cell, 2 to 4 for a centred one, more for a supercell. Reflections
        that they forbid scatter nothing and couple to nothing, so that they are no beams.
        """
        species, counts = np.unique(self.numbers, return_counts=True)
        rarest = self.positions[self.numbers == species[counts.argmin()]]
        candidates = rarest - rarest[0]
        maps = np.ones(len(candidates), dtype=bool)
        for z in species:
            atoms = self.positions[self.numbers == z]
            moved = atoms[None, :, None] + candidates[:, None, None]
            delta = moved - atoms[None, None, :]
            distance = np.linalg.norm((delta - np.rint(delta)) @ self.cell, axis=-1)
            maps &= (distance.min(axis=2) < TRANSLATION_TOLERANCE).all(axis=1)
        order = int(maps.sum())
        # The translations form a group, so that each is a multiple of 1/order exactly.
        return np.rint(candidates[maps] * order) % order / order
