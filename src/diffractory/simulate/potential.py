"""Structure factors and the Fourier coefficients of the crystal potential."""

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.reciprocal import half_sphere, sphere_rows
from diffractory.simulate.scattering import (
    Parametrization,
    absorptive_factor,
    lorentz_factor,
    scattering_factor,
)


def structure_factors(
    crystal: Crystal,
    bounds: NDArray[np.int64],
    g_max: float,
    parametrization: Parametrization = "lobato",
    absorption_energy: float | None = None,
) -> NDArray[np.complex128]:
    """Return F_g = sum_j n_j f_j(g) exp(-2 pi^2 g.U_j.g) exp(-2 pi i g.r_j), angstrom, by hkl.

    With this sign, V(r) = sum_g V_g exp(2 pi i g.r), which goes with waves exp(2 pi i k.r).

    Parameters
    ----------
    bounds
        Largest |h|, |k|, |l|, shape (3,).
    g_max
        The factors are zero beyond this length, 1/angstrom.
    absorption_energy
        If given, the factors are F'_g + i F''_g, with F'' of `absorptive_factor` at this energy in
        eV; anisotropic atoms absorb there as isotropic ones with the same trace of U.

    Returns
    -------
    Shape (2 h_max + 1, 2 k_max + 1, 2 l_max + 1); the entry of (h, k, l) is at
    (h + h_max, k + k_max, l + l_max).
    """
    metric = crystal.reciprocal @ crystal.reciprocal.T
    count = len(crystal.numbers)
    displacements = np.broadcast_to(crystal.displacements, (count, 3, 3)).reshape(count, 9)
    kinds, kind_of = np.unique(
        np.column_stack([crystal.numbers, displacements]), axis=0, return_inverse=True
    )
    first, offsets = sphere_rows(metric, bounds, g_max)
    hkl, g = half_sphere(first, offsets, bounds, metric)
    elastic, absorbed = np.zeros((2, len(kinds), len(g)))
    for kind, (z, *u) in enumerate(kinds):
        tensor = np.reshape(u, (3, 3))
        elastic[kind] = scattering_factor(int(z), g, parametrization)
        elastic[kind] *= _damping(tensor, g, hkl, crystal)
        if absorption_energy is not None:
            b = 8 * np.pi**2 * np.trace(tensor) / 3
            absorbed[kind] = absorptive_factor(int(z), g, b, absorption_energy, parametrization)
    result = np.zeros(2 * bounds + 1, dtype=complex)
    occupancies = np.broadcast_to(crystal.occupancies, count)
    _sum_atoms(
        crystal.positions, occupancies, kind_of, elastic, absorbed, first, offsets, bounds, result
    )
    return result


@numba.njit(cache=True, parallel=True, fastmath=True)
def _sum_atoms(
    positions: NDArray[np.float64],
    occupancies: NDArray[np.float64],
    kind_of: NDArray[np.int64],
    elastic: NDArray[np.float64],
    absorbed: NDArray[np.float64],
    first: NDArray[np.int64],
    offsets: NDArray[np.int64],
    bounds: NDArray[np.int64],
    result: NDArray[np.complex128],
) -> None:
    """Write F' + i F'' to the grid; the factors of the kinds of atoms have shape (kinds, G)."""
    n_atoms, n_l = len(positions), 2 * bounds[2] + 1
    cosine, sine = np.empty((n_atoms, n_l)), np.empty((n_atoms, n_l))
    for atom in range(n_atoms):
        for i in range(n_l):
            angle = -2 * np.pi * positions[atom, 2] * (i - bounds[2])
            cosine[atom, i], sine[atom, i] = np.cos(angle), np.sin(angle)
    for row in numba.prange(len(first)):
        h, k = row // (2 * bounds[1] + 1), row % (2 * bounds[1] + 1) - bounds[1]
        start, n = offsets[row], offsets[row + 1] - offsets[row]
        if n == 0:
            continue
        sums = np.zeros((4, n))
        at = first[row] + bounds[2]
        for atom in range(n_atoms):
            angle = -2 * np.pi * (h * positions[atom, 0] + k * positions[atom, 1])
            re = occupancies[atom] * np.cos(angle)
            im = occupancies[atom] * np.sin(angle)
            f = elastic[kind_of[atom], start : start + n]
            f2 = absorbed[kind_of[atom], start : start + n]
            c, s = cosine[atom, at : at + n], sine[atom, at : at + n]
            for i in range(n):
                u, v = re * c[i] - im * s[i], re * s[i] + im * c[i]
                sums[0, i] += f[i] * u
                sums[1, i] += f[i] * v
                sums[2, i] += f2[i] * u
                sums[3, i] += f2[i] * v
        for i in range(n):
            l = at + i
            plus = complex(sums[0, i] - sums[3, i], sums[1, i] + sums[2, i])
            minus = complex(sums[0, i] + sums[3, i], sums[2, i] - sums[1, i])
            result[bounds[0] + h, bounds[1] + k, l] = plus
            if h > 0:  # the rows of h = 0 are all in the half
                result[bounds[0] - h, bounds[1] - k, n_l - 1 - l] = minus


def _damping(
    tensor: NDArray[np.float64],
    g: NDArray[np.float64],
    hkl: NDArray[np.int64],
    crystal: Crystal,
) -> NDArray[np.float64]:
    """Return exp(-2 pi^2 g.U.g) of scattering vectors with lengths g."""
    if np.allclose(tensor, np.eye(3) * tensor[0, 0], atol=1e-9):
        return np.exp(-2 * np.pi**2 * tensor[0, 0] * g**2)
    along = crystal.reciprocal @ tensor @ crystal.reciprocal.T
    return np.exp(-2 * np.pi**2 * np.einsum("gi,ij,gj->g", hkl, along, hkl))


def potential_coefficients(
    crystal: Crystal,
    bounds: NDArray[np.int64],
    energy: float,
    g_max: float,
    parametrization: Parametrization = "lobato",
    absorption: bool = False,
) -> NDArray[np.complex128]:
    """Return U_g = gamma F_g / (pi V) in 1/angstrom^2, on the grid of `structure_factors`.

    U = 2 m e V / h^2 is the potential that stands in the wave equation
    laplace(psi) + 4 pi^2 (K^2 + U) psi = 0 (e.g. M. De Graef, Introduction to Conventional
    Transmission Electron Microscopy, Cambridge 2003, Eq. 5.2). With `absorption` it is U' + i U''.
    """
    factors = structure_factors(
        crystal, bounds, g_max, parametrization, energy if absorption else None
    )
    factors *= lorentz_factor(energy) / (np.pi * crystal.volume)
    return factors
