"""Crystals as the simulation needs them: a cell with atoms, their occupancies and vibrations."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy "
    "Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf "
    "Es Fm Md No Lr"
).split()
ATOMIC_NUMBERS = {symbol: z for z, symbol in enumerate(SYMBOLS, start=1)}

POSITION_TOLERANCE = 1e-3
"""How far an atom may be from its image under a symmetry operation of the crystal, angstrom."""

IDENTITY = np.eye(3)


def mean_square_displacement(debye_waller: Any) -> NDArray[np.float64]:
    """Return the tensors U = B / (8 pi^2) of isotropic Debye-Waller factors B, square angstrom.

    Parameters
    ----------
    debye_waller
        B in square angstrom, any shape.

    Returns
    -------
    That shape + (3, 3).
    """
    return np.asarray(debye_waller)[..., None, None] / (8 * np.pi**2) * IDENTITY


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
    occupancies
        Fraction of the cells in which an atom is there, shape (N,), or () for one of all atoms.
        Atoms that share a site are atoms at one position.
    displacements
        Mean square displacements U_ij in Cartesian axes, square angstrom, shape (N, 3, 3), or
        (3, 3) for one of all atoms.
    """

    cell: NDArray[np.float64]
    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]
    occupancies: NDArray[np.float64] = field(default_factory=lambda: np.ones(()))
    displacements: NDArray[np.float64] = field(default_factory=lambda: np.zeros((3, 3)))

    @classmethod
    def from_json(cls, text: str, debye_waller: float | Mapping[str, float] = 0.0) -> "Crystal":
        """Read pymatgen's dictionary form of a structure with one species per site.

        Parameters
        ----------
        debye_waller
            Isotropic factor B of every atom, square angstrom; or factors by element, and
            ``default`` for all others.
        """
        data = json.loads(text)
        species = [site["species"][0] for site in data["sites"]]
        elements = [kind["element"] for kind in species]
        occupancies = np.array([float(kind["occu"]) for kind in species])
        if isinstance(debye_waller, Mapping):
            b = [debye_waller.get(element, debye_waller["default"]) for element in elements]
        else:
            b = [debye_waller] * len(elements)
        return cls(
            cell=np.array(data["lattice"]["matrix"], dtype=float),
            positions=np.array([site["abc"] for site in data["sites"]], dtype=float),
            numbers=np.array([ATOMIC_NUMBERS[element] for element in elements]),
            occupancies=np.ones(()) if (occupancies == 1).all() else occupancies,
            displacements=mean_square_displacement(b),
        )

    def to_json(self) -> str:
        """Return what `from_json` reads: the cell, atoms and occupancies, without vibrations."""
        occupancies = np.broadcast_to(self.occupancies, len(self.numbers)).tolist()
        sites = [
            {"species": [{"element": SYMBOLS[number - 1], "occu": occupancy}], "abc": position}
            for number, occupancy, position in zip(
                self.numbers, occupancies, self.positions.tolist(), strict=True
            )
        ]
        structure = {
            "@module": "pymatgen.core.structure",
            "@class": "Structure",
            "lattice": {"matrix": self.cell.tolist()},
            "sites": sites,
        }
        return json.dumps(structure, separators=(",", ":"))

    @property
    def volume(self) -> float:
        """Cell volume in cubic angstrom."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def reciprocal(self) -> NDArray[np.float64]:
        """Reciprocal lattice vectors as rows, 1/angstrom (without 2 pi), shape (3, 3)."""
        return np.asarray(np.linalg.inv(self.cell).T, dtype=np.float64)

    def translations(self, rotation: NDArray[Any] = IDENTITY) -> NDArray[np.float64]:
        """Return the translations that, after a rotation, map the crystal onto itself.

        Parameters
        ----------
        rotation
            Acts on fractional coordinates, shape (3, 3).

        Returns
        -------
        Fractional translations in the cell, shape (T, 3): none if the rotation is not in the point
        group. For the identity T is 1 for a primitive cell, 2 to 4 for a centred one, more for a
        supercell.
        """
        count = len(self.numbers)
        occupancies = np.broadcast_to(self.occupancies, count)
        displacements = np.broadcast_to(self.displacements, (count, 3, 3))
        cartesian = self.cell.T @ rotation @ np.linalg.inv(self.cell.T)
        turned = (cartesian @ displacements @ cartesian.T).reshape(count, 9)
        kind = 2 * self.numbers + occupancies
        _, species, counts = np.unique(kind, return_inverse=True, return_counts=True)
        rarest = np.flatnonzero(species == counts.argmin())
        moved = self.positions @ np.asarray(rotation).T
        candidates = self.positions[rarest] - moved[rarest[0]]
        maps = _coincide(
            self.positions, displacements.reshape(count, 9), moved, turned,
            species.astype(np.int64), candidates, self.cell,
        )  # fmt: skip
        return candidates[maps] % 1

    def lattice_translations(self) -> NDArray[np.float64]:
        """Return `translations` of the identity, as exact multiples of 1/T.

        Reflections that they forbid scatter nothing and couple to nothing: they are no beams.
        """
        found = self.translations()
        return np.rint(found * len(found)) % len(found) / len(found)

    def centred(self) -> "Crystal":
        """Return the crystal with its origin at a centre of inversion, if it has one.

        The structure factors are then real.
        """
        found = self.translations(-IDENTITY)
        return replace(self, positions=self.positions - found[0] / 2) if len(found) else self


@numba.njit(cache=True)
def _coincide(
    positions: NDArray[np.float64],
    displacements: NDArray[np.float64],
    moved: NDArray[np.float64],
    turned: NDArray[np.float64],
    species: NDArray[np.int64],
    translations: NDArray[np.float64],
    cell: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return for each translation whether it puts all moved atoms on atoms of their kind."""
    result = np.ones(len(translations), dtype=np.bool_)
    delta = np.empty(3)
    for t in range(len(translations)):
        for i in range(len(moved)):
            found = False
            for j in range(len(positions)):
                if species[i] == species[j]:
                    for k in range(3):
                        x = moved[i, k] + translations[t, k] - positions[j, k]
                        delta[k] = x - np.rint(x)
                    square = 0.0
                    for k in range(3):
                        x = delta[0] * cell[0, k] + delta[1] * cell[1, k] + delta[2] * cell[2, k]
                        square += x * x
                    if square < POSITION_TOLERANCE**2:
                        found = np.abs(turned[i] - displacements[j]).max() < 1e-6
                        if found:
                            break
            if not found:
                result[t] = False
                break
    return result
