"""Crystals that the physics is tested on, and the engines called on them."""

from functools import cache

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal as from_space_group
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from diffractory.simulate.beams import select_beams
from diffractory.simulate.crystal import Crystal, mean_square_displacement
from diffractory.simulate.orientations import rotations_along

G_MAX, S_MAX = 1.5, 0.05

STRONTIUM_TITANATE = from_space_group(
    ["Sr", "Ti", "O"],
    [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
    spacegroup=221,
    cellpar=[3.905, 3.905, 3.905, 90, 90, 90],
)
GALLIUM_NITRIDE = from_space_group(  # polar
    ["Ga", "N"],
    [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.376)],
    spacegroup=186,
    cellpar=[3.19, 3.19, 5.19, 90, 90, 120],
)
QUARTZ = from_space_group(  # chiral
    ["Si", "O"],
    [(0.4697, 0, 1 / 3), (0.4135, 0.2669, 0.4524)],
    spacegroup=152,
    cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
)
TRICLINIC = Atoms(
    "CuSeO",
    scaled_positions=[(0.05, 0.1, 0.2), (0.4, 0.55, 0.6), (0.75, 0.2, 0.85)],
    cell=[4.1, 4.7, 5.3, 82, 97, 105],
    pbc=True,
)
SILICON = bulk("Si", "diamond", a=5.431, cubic=True)
CRYSTALS = [STRONTIUM_TITANATE, GALLIUM_NITRIDE, QUARTZ, TRICLINIC, SILICON]
IDS = ["SrTiO3", "GaN", "quartz", "triclinic", "Si"]


def crystal_of(atoms: Atoms, b=0.0) -> Crystal:
    return Crystal(
        np.array(atoms.cell),
        atoms.get_scaled_positions(),
        atoms.numbers,
        displacements=mean_square_displacement(b),
    )


def along(atoms: Atoms, uvw, angle=0.3):
    return rotations_along(np.array([uvw]) @ np.array(atoms.cell), np.array([angle]))


def intensities(solve, atoms, rotations, thicknesses, energy=200e3, b=0.0):
    crystal = crystal_of(atoms, b)
    beams = select_beams(crystal, rotations, energy, G_MAX, S_MAX)
    return beams, solve(crystal, beams, np.array(thicknesses), G_MAX)


@cache
def prototype(index: int) -> tuple[Crystal, np.ndarray] | None:
    """Return one of pymatgen's AFLOW prototypes and its point group's operations, (M, 3, 3).

    None if its rounded coordinates leave the group to the tolerance.
    """
    structure = AFLOW_PROTOTYPE_LIBRARY[index]["snl"].structure.get_primitive_structure()
    groups = []
    for symprec in (1e-4, 1e-2):
        operations = SpacegroupAnalyzer(structure, symprec=symprec).get_symmetry_operations()
        rotations = [np.rint(operation.rotation_matrix).astype(int) for operation in operations]
        groups.append(np.unique(rotations, axis=0))
    if len(groups[0]) != len(groups[1]):
        return None
    numbers = np.array(structure.atomic_numbers)
    return Crystal(np.array(structure.lattice.matrix), structure.frac_coords, numbers), groups[0]


PROTOTYPES = len(AFLOW_PROTOTYPE_LIBRARY)
