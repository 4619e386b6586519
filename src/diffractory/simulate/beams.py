"""Which beams take part in a pattern: reflections near the Ewald sphere."""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.reciprocal import reflections
from diffractory.simulate.scattering import wavelength
from diffractory.store import InputError

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
        return _obliquity(self.offsets, self.g, self.foil_normal, wave_number)


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
        one of all patterns.

    Raises
    ------
    InputError
        If a foil is tilted so far that beams would not leave through its far side.
    """
    if (foil_normal[..., 2] <= wavelength(energy) * g_max).any():
        raise InputError(
            f"a foil is tilted so far that beams up to g_max = {g_max} 1/angstrom do not leave "
            "through its far side: reduce simulate.foil_tilt, simulate.precession_angle or "
            "simulate.g_max"
        )
    hkl = reflections(crystal, g_max)
    g = np.einsum("gi,ij->gj", hkl, crystal.reciprocal)
    curvature = wavelength(energy) / 2 * (g**2).sum(axis=1)
    counts = _count_beams(g, curvature, orientations, max_excitation_error)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Beams(
        offsets,
        *_find_beams(hkl, g, curvature, orientations, max_excitation_error, offsets),
        foil_normal=np.broadcast_to(foil_normal, (len(orientations), 3)),
        energy=energy,
    )


@numba.njit(cache=True)
def _excitation_error(
    g: NDArray[np.float64], curvature: float, orientation: NDArray[np.float64]
) -> float:
    beam = orientation[2]  # in crystal axes
    return -(g[0] * beam[0] + g[1] * beam[1] + g[2] * beam[2]) - curvature


@numba.njit(cache=True, parallel=True)
def _count_beams(
    g: NDArray[np.float64],
    curvature: NDArray[np.float64],
    orientations: NDArray[np.float64],
    limit: float,
) -> NDArray[np.int64]:
    """Return the number of beams of each pattern."""
    counts = np.zeros(len(orientations), dtype=np.int64)
    for p in numba.prange(len(orientations)):
        for i in range(len(g)):
            counts[p] += abs(_excitation_error(g[i], curvature[i], orientations[p])) <= limit
    return counts


@numba.njit(cache=True, parallel=True)
def _find_beams(
    hkl: NDArray[np.int64],
    g: NDArray[np.float64],
    curvature: NDArray[np.float64],
    orientations: NDArray[np.float64],
    limit: float,
    offsets: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return hkl, g in laboratory axes and the excitation error of each beam."""
    chosen = np.empty((offsets[-1], 3), dtype=np.int64)
    turned = np.empty((offsets[-1], 3))
    s = np.empty(offsets[-1])
    for p in numba.prange(len(orientations)):
        beam = offsets[p]
        for i in range(len(g)):
            error = _excitation_error(g[i], curvature[i], orientations[p])
            if abs(error) <= limit:
                chosen[beam] = hkl[i]
                for a in range(3):
                    turned[beam, a] = 0.0
                    for b in range(3):
                        turned[beam, a] += orientations[p, a, b] * g[i, b]
                s[beam] = error
                beam += 1
    return chosen, turned, s


@numba.njit(cache=True, parallel=True)
def _obliquity(
    offsets: NDArray[np.int64],
    g: NDArray[np.float64],
    foil_normal: NDArray[np.float64],
    wave_number: float,
) -> NDArray[np.float64]:
    """Return K / (K_n + g_n) of each beam."""
    result = np.empty(len(g))
    for p in numba.prange(len(offsets) - 1):
        n = foil_normal[p]
        for i in range(offsets[p], offsets[p + 1]):
            along = (g[i, 0] * n[0] + g[i, 1] * n[1] + g[i, 2] * n[2]) / wave_number
            result[i] = 1 / (n[2] + along)
    return result
