"""Electron wavelength, and how single atoms scatter and absorb."""

from collections.abc import Callable
from functools import cache, lru_cache
from importlib.resources import files
from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.store import InputError

# CODATA 2022, SI units
PLANCK = 6.62607015e-34
ELECTRON_MASS = 9.1093837139e-31
ELEMENTARY_CHARGE = 1.602176634e-19
SPEED_OF_LIGHT = 299792458.0
BOHR_RADIUS = 0.529177210544  # angstrom

REST_ENERGY = ELECTRON_MASS * SPEED_OF_LIGHT**2 / ELEMENTARY_CHARGE
"""Rest energy of the electron, eV."""

Parametrization = Literal["lobato", "kirkland"]
"""Of the elastic scattering factors of neutral atoms."""

_TABLES: dict[Parametrization, tuple[str, int]] = {
    "lobato": ("lobato_2014.csv", 2),
    "kirkland": ("kirkland_2010.csv", 4),
}
"""File of the coefficients, and how many kinds of them there are."""

# Together within 2e-5 of f''(0), for every element, g to 12 1/angstrom and B to 15 square angstrom
RADIAL_NODES = 32
RADIAL_SCALE = 2.0
"""Half of the nodes lie below it, 1/angstrom."""
ANGULAR_NODES = 12
STEPS_PER_UNIT = 32
"""Table entries of f'' per 1/angstrom."""


def wavelength(energy: float) -> float:
    """Return the relativistic electron wavelength in angstrom at a kinetic energy in eV."""
    momentum_c = np.sqrt(energy * (energy + 2 * REST_ENERGY)) * ELEMENTARY_CHARGE
    return float(PLANCK * SPEED_OF_LIGHT / momentum_c * 1e10)


def lorentz_factor(energy: float) -> float:
    """Return the relativistic mass ratio gamma at a kinetic energy in eV."""
    return 1 + energy / REST_ENERGY


@cache
def elastic_table(parametrization: Parametrization) -> NDArray[np.float64]:
    """Return the coefficients by atomic number, shape (103, kinds of coefficient, terms)."""
    if parametrization not in _TABLES:
        raise InputError(
            f"there is no parametrization {parametrization!r} of the scattering factors: "
            f"use one of {', '.join(_TABLES)}"
        )
    name, kinds = _TABLES[parametrization]
    with (files("diffractory.simulate") / "data" / name).open() as file:
        table = np.loadtxt(file, delimiter=",", skiprows=3)
    return table[:, 1:].reshape(len(table), kinds, -1)


def scattering_factor(
    number: int, g: NDArray[np.float64], parametrization: Parametrization = "lobato"
) -> NDArray[np.float64]:
    """Return the elastic electron scattering factor in angstrom, for an electron at rest.

    Parameters
    ----------
    number
        Atomic number, 1 to 103.
    g
        Length of the scattering vector, 1/angstrom (without 2 pi), any shape.
    parametrization
        `lobato` has the correct decay at large g; `kirkland` is for comparison with older work.

    Raises
    ------
    InputError
        If the atomic number or the parametrization has no table.

    References
    ----------
    I. Lobato and D. Van Dyck, Acta Cryst. A 70, 636 (2014), Eq. 11.
    E. J. Kirkland, Advanced Computing in Electron Microscopy, 2nd ed. (Springer 2010), App. C.
    """
    table = elastic_table(parametrization)
    if not 1 <= number <= len(table):
        raise InputError(
            f"there is no scattering factor of atomic number {number}: it must be 1 to {len(table)}"
        )
    if parametrization == "lobato":
        return lobato(g.ravel(), *table[number - 1]).reshape(g.shape)
    g_squared = g**2
    result = np.zeros_like(g_squared)
    for a, b, c, d in table[number - 1].T:
        result += a / (g_squared + b)
        result += c * np.exp(-d * g_squared)
    return result


def x_ray_factor(number: int, q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the X-ray form factor of an atom, in electrons, without anomalous dispersion.

    It follows from the elastic electron factor f by the Mott-Bethe relation, Z - 2 pi^2 a_0 q^2 f.
    Up to q = 2.6/angstrom it is within 4 % of the table of D. Waasmaier and A. Kirfel, Acta Cryst.
    A 51, 416 (1995), for every element, and typically within 0.5 %.

    Parameters
    ----------
    number
        Atomic number, 1 to 103.
    q
        Length of the scattering vector, 2 sin(theta) / lambda, 1/angstrom, any shape.

    Raises
    ------
    InputError
        If the atomic number has no table.

    References
    ----------
    N. F. Mott, Proc. R. Soc. A 127, 658 (1930); H. Bethe, Ann. Phys. 397, 325 (1930).
    """
    return mott_bethe(number, q, scattering_factor(number, q))


@numba.njit(cache=True)
def mott_bethe(
    number: int, q: NDArray[np.float64], factor: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the X-ray form factor, electrons, of the elastic electron factor, angstrom."""
    return number - 2 * np.pi**2 * BOHR_RADIUS * q**2 * factor


@numba.njit(cache=True, error_model="numpy")  # a check of each division would prevent SIMD
def lobato(
    g: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return sum_i a_i (2 + b_i g^2) / (1 + b_i g^2)^2, shape of g (flat)."""
    result = np.empty(len(g))
    for i in range(len(g)):
        total = 0.0
        for k in range(5):  # a literal count, so that the loop over g becomes SIMD
            x = 1 / (1 + b[k] * g[i] ** 2)
            total += a[k] * (x + x * x)
        result[i] = total
    return result


def absorptive_factor(
    number: int,
    g: NDArray[np.float64],
    debye_waller: float,
    energy: float,
    parametrization: Parametrization = "lobato",
) -> NDArray[np.float64]:
    """Return the absorptive scattering factor f'' of thermal diffuse scattering, in angstrom.

    In the Einstein model and the small-angle approximation, with f the `scattering_factor`,

        f''(g) = (gamma lambda / 2) int d^2q f(|q|) f(|g - q|)
                 (exp(-B g^2 / 4) - exp(-B (q^2 + |g - q|^2) / 4)).

    The thermal factor exp(-B g^2 / 4) is included: F''_g = sum_j f''_j(g) exp(-2 pi i g.r_j) is
    the whole sum, and U_g + i U''_g with U''_g = gamma F''_g / (pi V) stands in the wave equation
    in place of U_g. Intensity then decays as exp(-2 pi U''_0 t / K) = exp(-n sigma t), with n atoms
    per volume and sigma = int |gamma f|^2 (1 - exp(-B q^2 / 2)) lambda^2 d^2q.

    f'' is negative at large g. It must not be cut off there: in real space it is the variance of
    the projected potential of the vibrating atom, which without that part would not be positive.

    Parameters
    ----------
    number
        Atomic number, 1 to 103.
    g
        Length of the scattering vector, 1/angstrom (without 2 pi), any shape.
    debye_waller
        Isotropic factor B = 8 pi^2 <u_x^2>, square angstrom.
    energy
        Kinetic energy of the electron, eV.
    parametrization
        As in `scattering_factor`.

    Raises
    ------
    InputError
        If the atomic number or the parametrization has no table.

    References
    ----------
    C. R. Hall and P. B. Hirsch, Proc. R. Soc. A 286, 158 (1965).
    D. M. Bird and Q. A. King, Acta Cryst. A 46, 202 (1990); their f' lacks exp(-B g^2 / 4).
    """
    limit = int(np.ceil(g.max(initial=0.0)))
    table = _diffuse_table(number, debye_waller, parametrization, limit)
    prefactor = lorentz_factor(energy) * wavelength(energy) / 2
    return prefactor * _interpolate(g.ravel(), table).reshape(g.shape)


@lru_cache(maxsize=1024)
def _diffuse_table(
    number: int, debye_waller: float, parametrization: Parametrization, limit: int
) -> NDArray[np.float64]:
    """Return `_diffuse_integral` at g = -1, 0, 1, ... grid steps, to two steps past the limit."""
    g = np.arange(-1, limit * STEPS_PER_UNIT + 3) / STEPS_PER_UNIT
    return _diffuse_integral(
        lambda q: scattering_factor(number, q, parametrization), g, debye_waller
    )


def _diffuse_integral(
    f: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    g: NDArray[np.float64],
    debye_waller: float,
) -> NDArray[np.float64]:
    """Return the integral in `absorptive_factor` over the plane, for g of shape (G,), as (G,).

    f has a peak at q = 0 and one at q = g, which elliptic coordinates with these foci make smooth:
    with semi-axes a and b, a^2 = b^2 + g^2/4, and eccentric anomaly nu, |q| and |g - q| are
    a +- (g/2) cos nu, and d^2q = |q| |g - q| / a db dnu. By symmetry one quadrant of nu is enough.
    """
    x, weight = np.polynomial.legendre.leggauss(RADIAL_NODES)
    b = (RADIAL_SCALE * (1 + x) / (1 - x))[:, None]
    db = (RADIAL_SCALE * 2 * weight / (1 - x) ** 2)[:, None]
    nu = np.pi / 2 * (np.arange(ANGULAR_NODES) + 0.5) / ANGULAR_NODES
    half = g[:, None, None] / 2
    a, shift = np.sqrt(b**2 + half**2), half * np.cos(nu)
    near, far = a - shift, a + shift
    damping = np.exp(-debye_waller * half**2) - np.exp(-debye_waller * (near**2 + far**2) / 4)
    area = near * far * (db / a * 2 * np.pi / ANGULAR_NODES)
    return (f(near) * f(far) * damping * area).sum((1, 2))


@numba.njit(cache=True, error_model="numpy")
def _interpolate(g: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cubic through the four entries of `_diffuse_table` around each g, shape (G,)."""
    result = np.empty(len(g))
    for i in range(len(g)):
        position = g[i] * STEPS_PER_UNIT
        k = int(position)
        u = position - k
        result[i] = (
            -u * (u - 1) * (u - 2) * table[k]
            + 3 * (u + 1) * (u - 1) * (u - 2) * table[k + 1]
            - 3 * (u + 1) * u * (u - 2) * table[k + 2]
            + (u + 1) * u * (u - 1) * table[k + 3]
        ) / 6
    return result
