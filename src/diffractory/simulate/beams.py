"""Which beams take part in a pattern: reflections near the Ewald sphere."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.scattering import wavelength

BEAM_DIRECTION = np.array([0.0, 0.0, 1.0])
"""In laboratory axes."""


@dataclass(frozen=True)
class Beams:
    """The beams of P orientations of one crystal, B in all; those of p are offsets[p]:offsets[p+1].

    The electrons travel along +z of the laboratory.

    Attributes
    ----------
    offsets
        Shape (P + 1,).
    hkl
        Miller indices in the basis of the crystal's cell, shape (B, 3), in ascending order within
        a pattern; 000 is always among them.
    g
        Reciprocal-lattice vectors in laboratory axes, 1/angstrom, shape (B, 3).
    excitation_error
        In 1/angstrom, shape (B,); positive inside the Ewald sphere.
    foil_normal
        Unit normals of the foil's surfaces in laboratory axes, shape (P, 3).
    energy
        Electron energy, eV.
    """

    offsets: NDArray[np.int64]
    hkl: NDArray[np.int64]
    g: NDArray[np.float64]
    excitation_error: NDArray[np.float64]
    foil_normal: NDArray[np.float64]
    energy: float

    @property
    def pattern(self) -> NDArray[np.int64]:
        """Pattern that each beam belongs to, shape (B,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def obliquity(self) -> NDArray[np.float64]:
        """K / (K_n + g_n), shape (B,), with the components along the foil normal.

        It turns |psi_g|^2 into the flux through the foil's surface, and distances along the beam
        into distances along the normal.
        """
        wave_number = 1 / wavelength(self.energy)
        normal = self.foil_normal[self.pattern]
        along = normal[:, 2] + (self.g * normal).sum(axis=1) / wave_number
        return np.asarray(1 / along, dtype=np.float64)


def index_bounds(crystal: Crystal, g_max: float) -> NDArray[np.int64]:
    """Return the largest |h|, |k|, |l| of reflections with |g| <= g_max, shape (3,)."""
    return np.floor(g_max * np.linalg.norm(crystal.cell, axis=1) + 1e-9).astype(np.int64)


def reflections(crystal: Crystal, g_max: float) -> NDArray[np.int64]:
    """Return hkl of all reflections with |g| <= g_max that the lattice allows, shape (G, 3)."""
    axes = [np.arange(-n, n + 1) for n in index_bounds(crystal, g_max)]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    metric = crystal.reciprocal @ crystal.reciprocal.T
    hkl = hkl[np.einsum("gi,ij,gj->g", hkl, metric, hkl) <= g_max**2]
    translations = crystal.lattice_translations()
    if len(translations) == 1:
        return hkl
    phases = hkl @ translations.T
    return hkl[(np.abs(phases - np.rint(phases)) < 1e-6).all(axis=1)]


def select_beams(
    crystal: Crystal,
    orientations: NDArray[np.float64],
    energy: float,
    g_max: float,
    max_excitation_error: float,
    foil_normal: NDArray[np.float64] = BEAM_DIRECTION,
) -> Beams:
    """Return the beams with |g| <= g_max and |s_g| <= max_excitation_error in each orientation.

    Parameters
    ----------
    orientations
        Rotations from crystal Cartesian to laboratory axes, shape (P, 3, 3).
    energy
        In eV.
    g_max, max_excitation_error
        In 1/angstrom.
    foil_normal
        Normal of the foil's surfaces in laboratory axes, unit vectors, shape (P, 3), or (3,) for
        one of all patterns; less than 90 degrees from the beam.
    """
    hkl = reflections(crystal, g_max)
    g = np.einsum("gi,ij->gj", hkl, crystal.reciprocal)
    curvature = wavelength(energy) / 2 * (g**2).sum(axis=1)
    beams_of = _count_beams(g, curvature, orientations[:, 2], max_excitation_error)
    offsets = np.concatenate([[0], np.cumsum(beams_of)])
    chosen, s = _find_beams(g, curvature, orientations[:, 2], max_excitation_error, offsets)
    rotations = np.repeat(orientations, beams_of, axis=0)
    return Beams(
        offsets=offsets,
        hkl=hkl[chosen],
        g=(rotations @ g[chosen][:, :, None])[:, :, 0],
        excitation_error=s,
        foil_normal=np.broadcast_to(foil_normal, (len(orientations), 3)),
        energy=energy,
    )


@numba.njit(cache=True)
def _excitation_error(g: NDArray[np.float64], curvature: float, beam: NDArray[np.float64]) -> float:
    return -(g[0] * beam[0] + g[1] * beam[1] + g[2] * beam[2]) - curvature


@numba.njit(cache=True, parallel=True)
def _count_beams(
    g: NDArray[np.float64],
    curvature: NDArray[np.float64],
    beam: NDArray[np.float64],
    limit: float,
) -> NDArray[np.int64]:
    """Return the number of beams of each pattern; `beam` is its direction in crystal axes."""
    counts = np.zeros(len(beam), dtype=np.int64)
    for p in numba.prange(len(beam)):
        for i in range(len(g)):
            counts[p] += abs(_excitation_error(g[i], curvature[i], beam[p])) <= limit
    return counts


@numba.njit(cache=True, parallel=True)
def _find_beams(
    g: NDArray[np.float64],
    curvature: NDArray[np.float64],
    beam: NDArray[np.float64],
    limit: float,
    offsets: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the reflection and the excitation error of each beam."""
    chosen = np.empty(offsets[-1], dtype=np.int64)
    s = np.empty(offsets[-1])
    for p in numba.prange(len(beam)):
        b = offsets[p]
        for i in range(len(g)):
            error = _excitation_error(g[i], curvature[i], beam[p])
            if abs(error) <= limit:
                chosen[b] = i
                s[b] = error
                b += 1
    return chosen, s
