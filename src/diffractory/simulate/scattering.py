"""Electron wavelength, scattering factors and the Fourier coefficients of the crystal potential."""

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.crystal import Crystal

# CODATA 2022, SI units
PLANCK = 6.62607015e-34
ELECTRON_MASS = 9.1093837139e-31
ELEMENTARY_CHARGE = 1.602176634e-19
SPEED_OF_LIGHT = 299792458.0

REST_ENERGY = ELECTRON_MASS * SPEED_OF_LIGHT**2 / ELEMENTARY_CHARGE
"""Rest energy of the electron, eV."""


def wavelength(energy: float) -> float:
    """Return the relativistic electron wavelength in angstrom at a kinetic energy in eV."""
    momentum_c = np.sqrt(energy * (energy + 2 * REST_ENERGY)) * ELEMENTARY_CHARGE
    return float(PLANCK * SPEED_OF_LIGHT / momentum_c * 1e10)


def lorentz_factor(energy: float) -> float:
    """Return the relativistic mass ratio gamma at a kinetic energy in eV."""
    return 1 + energy / REST_ENERGY


@cache
def _lobato() -> NDArray[np.float64]:
    """Return the coefficients by atomic number, shape (103, 2, 5)."""
    with (files("diffractory.simulate") / "data" / "lobato_2014.csv").open() as file:
        table = np.loadtxt(file, delimiter=",", skiprows=3)
    return table[:, 1:].reshape(-1, 2, 5)


def scattering_factor(number: int, g: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the elastic electron scattering factor in angstrom, for an electron at rest.

    Parameters
    ----------
    number
        Atomic number, 1 to 103.
    g
        Length of the scattering vector, 1/angstrom (without 2 pi), any shape.

    References
    ----------
    I. Lobato and D. Van Dyck, Acta Cryst. A 70, 636 (2014), Eq. 11.
    """
    result = np.zeros_like(g)
    for a, b in _lobato()[number - 1].T:
        x = 1 + b * g**2
        result += a * (1 + x) / x**2
    return result


def structure_factors(
    crystal: Crystal, bounds: NDArray[np.int64], g_max: float, debye_waller: float
) -> NDArray[np.complex128]:
    """Return F_g = sum_j f_j(g) exp(-B g^2 / 4) exp(-2 pi i g.r_j) in angstrom, on a grid of hkl.

    With this sign, V(r) = sum_g V_g exp(2 pi i g.r), which goes with waves exp(2 pi i k.r).

    Parameters
    ----------
    bounds
        Largest |h|, |k|, |l|, shape (3,).
    g_max
        The factors are zero beyond this length, 1/angstrom.
    debye_waller
        Isotropic factor B of every atom, square angstrom.

    Returns
    -------
    Shape (2 h_max + 1, 2 k_max + 1, 2 l_max + 1); the entry of (h, k, l) is at
    (h + h_max, k + k_max, l + l_max).
    """
    axes = [np.arange(-n, n + 1) for n in bounds]
    metric = crystal.reciprocal @ crystal.reciprocal.T
    h, k, l = np.meshgrid(*axes, indexing="ij", sparse=True)
    g_squared = (
        metric[0, 0] * h**2 + metric[1, 1] * k**2 + metric[2, 2] * l**2
        + 2 * (metric[0, 1] * h * k + metric[0, 2] * h * l + metric[1, 2] * k * l)
    )  # fmt: skip
    inside = g_squared <= g_max**2
    g = np.sqrt(np.maximum(g_squared[inside], 0.0))
    damping = np.exp(-debye_waller * g**2 / 4)
    total = np.zeros(len(g), dtype=complex)
    for number in np.unique(crystal.numbers):
        x = crystal.positions[crystal.numbers == number]
        phase_h, phase_k, phase_l = (
            np.exp(-2j * np.pi * np.outer(axis, x[:, i])) for i, axis in enumerate(axes)
        )
        phases_hk = (phase_h[:, None] * phase_k[None]).reshape(-1, len(x))
        geometry = (phases_hk @ phase_l.T).reshape(inside.shape)
        total += scattering_factor(int(number), g) * geometry[inside]
    result = np.zeros(inside.shape, dtype=complex)
    result[inside] = total * damping
    return result


def potential_coefficients(
    crystal: Crystal,
    bounds: NDArray[np.int64],
    energy: float,
    g_max: float,
    debye_waller: float,
) -> NDArray[np.complex128]:
    """Return U_g = gamma F_g / (pi V) in 1/angstrom^2, on the grid of `structure_factors`.

    U = 2 m e V / h^2 is the potential that stands in the wave equation
    laplace(psi) + 4 pi^2 (K^2 + U) psi = 0 (e.g. M. De Graef, Introduction to Conventional
    Transmission Electron Microscopy, Cambridge 2003, Eq. 5.2).
    """
    factors = structure_factors(crystal, bounds, g_max, debye_waller)
    return lorentz_factor(energy) / (np.pi * crystal.volume) * factors
