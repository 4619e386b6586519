"""Which beams take part in a pattern: reflections near the Ewald sphere."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.scattering import wavelength


@dataclass(frozen=True)
class Beams:
    """The beams of P orientations of one crystal, B in all; those of p are offsets[p]:offsets[p+1].

    Attributes
    ----------
    offsets
        Shape (P + 1,).
    hkl
        Miller indices in the basis of the crystal's cell, shape (B, 3); 000 is always among them.
    g
        Reciprocal-lattice vectors in laboratory axes, 1/angstrom, shape (B, 3).
    excitation_error
        In 1/angstrom, shape (B,); positive inside the Ewald sphere.
    energy
        Electron energy, eV.
    """

    offsets: NDArray[np.int64]
    hkl: NDArray[np.int64]
    g: NDArray[np.float64]
    excitation_error: NDArray[np.float64]
    energy: float


def index_bounds(crystal: Crystal, g_max: float) -> NDArray[np.int64]:
    """Return the largest |h|, |k|, |l| of reflections with |g| <= g_max, shape (3,)."""
    return np.floor(g_max * np.linalg.norm(crystal.cell, axis=1) + 1e-9).astype(np.int64)


def reflections(crystal: Crystal, g_max: float) -> NDArray[np.int64]:
    """Return hkl of all reflections with |g| <= g_max that the lattice allows, shape (G, 3)."""
    axes = [np.arange(-n, n + 1) for n in index_bounds(crystal, g_max)]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    hkl = hkl[np.linalg.norm(hkl @ crystal.reciprocal, axis=1) <= g_max]
    phases = hkl @ crystal.lattice_translations().T
    return hkl[(np.abs(phases - np.rint(phases)) < 1e-6).all(axis=1)]


def select_beams(
    crystal: Crystal,
    orientations: NDArray[np.float64],
    energy: float,
    g_max: float,
    max_excitation_error: float,
) -> Beams:
    """Return the beams with |g| <= g_max and |s_g| <= max_excitation_error in each orientation.

    The electrons travel along +z of the laboratory.

    Parameters
    ----------
    orientations
        Rotations from crystal Cartesian to laboratory axes, shape (P, 3, 3).
    energy
        In eV.
    g_max, max_excitation_error
        In 1/angstrom.
    """
    hkl = reflections(crystal, g_max)
    g = hkl @ crystal.reciprocal
    g_z = orientations[:, 2] @ g.T
    s = -g_z - wavelength(energy) / 2 * (g**2).sum(axis=1)
    selected = np.abs(s) <= max_excitation_error
    pattern, beam = np.nonzero(selected)
    return Beams(
        offsets=np.concatenate([[0], np.cumsum(selected.sum(axis=1))]),
        hkl=hkl[beam],
        g=np.einsum("bij,bj->bi", orientations[pattern], g[beam]),
        excitation_error=s[pattern, beam],
        energy=energy,
    )
