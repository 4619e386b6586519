"""Monolayers of MoTe2 as published: where relaxation and phonons start from.

Both phases lie half way up the cell, with x along the zigzag rows of Mo, so that one maps onto the
other.
"""

import numpy as np
from ase.build import mx2

from diffractory.errors import InputError
from diffractory.simulate.crystal import ATOMIC_NUMBERS, Crystal

HEIGHT = 20.0
"""Of the cell, vacuum included, angstrom."""

HALF_WAY = np.array([0, 0, 0.5])

ORTHOGONAL = {"2h": ((1, 0, 0), (1, 2, 0), (0, 0, 1)), "1t": ((1, 0, 0), (0, 1, 0), (0, 0, 1))}
"""Vectors of the orthogonal cell of 6 atoms, as rows in units of those of the primitive cell."""


def primitive_cell(phase: str) -> Crystal:
    """Return the primitive cell of a phase.

    Parameters
    ----------
    phase
        ``"2h"``: 3 atoms, a = 3.52 angstrom and Te 1.80 angstrom above and below Mo (Puotinen and
        Newnham, Acta Cryst. 14, 691 (1961), bulk). ``"1t"``, which is 1T': 6 atoms, one layer of
        the bulk (Brown, Acta Cryst. 20, 268 (1966)): 6.33 and 3.469 angstrom, positions rounded
        to 0.01 of the lattice constant and 0.1 angstrom along z.

    Raises
    ------
    InputError
        If it is another phase.
    """
    if phase == "2h":
        atoms = mx2("MoTe2", kind="2H", a=3.52, thickness=3.60)  # type: ignore[no-untyped-call]
        cell = np.array(atoms.cell)
        cell[2] = (0, 0, HEIGHT)
        positions = atoms.positions @ np.linalg.inv(cell) + HALF_WAY
        return Crystal(cell, positions, np.array(atoms.numbers))
    if phase == "1t":
        # The other half follows by inversion.
        half = np.array([[0.25, -0.18, 0.1], [0.25, 0.43, 1.5], [0.25, 0.07, -2.1]])
        half[:, 2] /= HEIGHT
        numbers = np.array([ATOMIC_NUMBERS[symbol] for symbol in ("Mo", "Te", "Te")])
        return Crystal(
            np.diag([3.469, 6.33, HEIGHT]),
            np.concatenate([half, -half]) + HALF_WAY,
            np.concatenate([numbers, numbers]),
        )
    raise InputError(f"{phase} is no phase of MoTe2 here: give 2h or 1t")


def orthogonal_cell(phase: str) -> Crystal:
    """Return the orthogonal cell of a phase, of 6 atoms."""
    cell = primitive_cell(phase)
    if phase == "1t":
        return cell
    matrix = np.array(ORTHOGONAL[phase])
    both = np.concatenate([cell.positions, cell.positions + np.array([0, 1, 0])])
    numbers = np.concatenate([cell.numbers, cell.numbers])
    return Crystal(matrix @ cell.cell, both @ np.linalg.inv(matrix), numbers)
