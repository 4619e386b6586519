"""Dynamical diffraction: Bloch waves, propagated by a Chebyshev expansion.

With psi(r) = sum_g psi_g(z) exp(2 pi i (k + g).r) and the flux amplitudes
phi_g = sqrt(1 + g_z/K) psi_g, the wave equation without backscattering is

    d phi / dz = 2 pi i H phi,    H_gh = m_g m_h (2 K s_g delta_gh + U_{g-h}) / (2 K),

m_g = 1 / sqrt(1 + g_z/K). H is Hermitian, so that sum_g |phi_g|^2 is conserved, and
phi(t) = exp(2 pi i t H) e_0. The exponential is applied to e_0 as a sum of Chebyshev polynomials
of H with Bessel functions as coefficients (H. Tal-Ezer and R. Kosloff, J. Chem. Phys. 81, 3967
(1984)).
"""

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.beams import Beams, index_bounds
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.scattering import potential_coefficients, wavelength

Real32 = NDArray[np.float32]
Real64 = NDArray[np.float64]
Integers = NDArray[np.int64]

IMAGINARY_TOLERANCE = 1e-6
"""Imaginary parts of U_g below this fraction of the largest U_g count as zero."""


def bloch_intensities(
    crystal: Crystal,
    beams: Beams,
    thicknesses: NDArray[np.float64],
    g_max: float,
    debye_waller: float,
) -> NDArray[np.float32]:
    """Return the intensities of all beams, as fractions of the incident beam's flux.

    Parameters
    ----------
    thicknesses
        In angstrom, shape (T,).
    g_max
        The one that the beams were selected with, 1/angstrom.
    debye_waller
        Isotropic factor B of every atom, square angstrom.

    Returns
    -------
    Shape (T, B); they sum to 1 over the beams of a pattern.
    """
    bounds = index_bounds(crystal, 2 * g_max)
    potential = potential_coefficients(crystal, bounds, beams.energy, 2 * g_max, debye_waller)
    wave_number = 1 / wavelength(beams.energy)
    metric = 1 / np.sqrt(1 + beams.g[:, 2] / wave_number)
    scaled = potential / (2 * wave_number)
    is_complex = np.abs(scaled.imag).max() > IMAGINARY_TOLERANCE * np.abs(scaled).max()
    return _propagate(
        np.ascontiguousarray(scaled.real, dtype=np.float32),
        np.ascontiguousarray(scaled.imag, dtype=np.float32),
        bool(is_complex),
        bounds,
        beams.offsets,
        beams.hkl,
        (beams.excitation_error * metric**2).astype(np.float32),
        metric.astype(np.float32),
        np.asarray(thicknesses, dtype=np.float64),
    )


@numba.njit(cache=True)
def _bessel(x: float, terms: int) -> Real64:
    """Return J_0(x) .. J_{terms-1}(x) by Miller's downward recurrence, for terms > x."""
    values = np.zeros(terms + 30)
    values[-2] = 1e-30
    norm = 0.0
    for k in range(len(values) - 2, 0, -1):
        values[k - 1] = 2 * k / x * values[k] - values[k + 1]
        if abs(values[k - 1]) > 1e100:
            values[k - 1 :] *= 1e-100
    for k in range(2, len(values), 2):
        norm += 2 * values[k]
    return values[:terms] / (norm + values[0])  # J_0 + 2 (J_2 + J_4 + ...) = 1


@numba.njit(cache=True, fastmath=True)
def _structure_matrix(
    table_re: Real32,
    table_im: Real32,
    is_complex: bool,
    bounds: Integers,
    hkl: Integers,
    diagonal: Real32,
    metric: Real32,
) -> tuple[Real32, Real32]:
    """Return real and imaginary part of H, each of shape (N, N)."""
    n = len(hkl)
    real = np.empty((n, n), dtype=np.float32)
    imag = np.empty((n, n) if is_complex else (0, 0), dtype=np.float32)
    for i in range(n):
        for j in range(n):
            h = hkl[i, 0] - hkl[j, 0] + bounds[0]
            k = hkl[i, 1] - hkl[j, 1] + bounds[1]
            l = hkl[i, 2] - hkl[j, 2] + bounds[2]
            weight = metric[i] * metric[j]
            real[i, j] = table_re[h, k, l] * weight
            if is_complex:
                imag[i, j] = table_im[h, k, l] * weight
        real[i, i] = diagonal[i]
    return real, imag


@numba.njit(cache=True, fastmath=True)
def _spectral_interval(real: Real32, imag: Real32) -> tuple[float, float]:
    """Return centre and half width of an interval that holds all eigenvalues (Gershgorin)."""
    low, high = np.inf, -np.inf
    for i in range(len(real)):
        radius = 0.0
        for j in range(len(real)):
            if i != j:
                radius += np.hypot(real[i, j], imag[i, j]) if len(imag) else abs(real[i, j])
        low = min(low, real[i, i] - radius)
        high = max(high, real[i, i] + radius)
    return (low + high) / 2, max((high - low) / 2, 1e-6)


@numba.njit(cache=True, fastmath=True)
def _multiply(
    real: Real32, imag: Real32, x_re: Real32, x_im: Real32, y_re: Real32, y_im: Real32
) -> None:
    """Write H x to y, with as little arithmetic as the matrix asks for."""
    n = len(real)
    for i in range(n):
        re = np.float32(0.0)
        im = np.float32(0.0)
        if len(imag):
            for j in range(n):
                re += real[i, j] * x_re[j] - imag[i, j] * x_im[j]
                im += real[i, j] * x_im[j] + imag[i, j] * x_re[j]
        else:  # e_0 is real, and so is every vector that a real H makes of it
            for j in range(n):
                re += real[i, j] * x_re[j]
        y_re[i] = re
        y_im[i] = im


@numba.njit(cache=True, parallel=True, fastmath=True)
def _propagate(
    table_re: Real32,
    table_im: Real32,
    is_complex: bool,
    bounds: Integers,
    offsets: Integers,
    hkl: Integers,
    diagonal: Real32,
    metric: Real32,
    thicknesses: Real64,
) -> Real32:
    """Return |phi_g|^2 of every beam at every thickness, one pattern per thread."""
    intensities = np.empty((len(thicknesses), len(hkl)), dtype=np.float32)
    for p in numba.prange(len(offsets) - 1):
        start, stop = offsets[p], offsets[p + 1]
        n = stop - start
        real, imag = _structure_matrix(
            table_re, table_im, is_complex, bounds,
            hkl[start:stop], diagonal[start:stop], metric[start:stop],
        )  # fmt: skip
        centre, half_width = _spectral_interval(real, imag)
        for i in range(n):
            real[i, i] -= np.float32(centre)  # a phase common to all beams

        argument = 2 * np.pi * half_width * thicknesses
        terms = int(argument.max() + 8 * argument.max() ** (1 / 3) + 12)
        coefficients = np.empty((len(thicknesses), terms))
        for t in range(len(thicknesses)):
            coefficients[t] = _bessel(argument[t], terms)

        now_re, now_im = np.zeros(n, np.float32), np.zeros(n, np.float32)
        last_re, last_im = np.zeros(n, np.float32), np.zeros(n, np.float32)
        next_re, next_im = np.zeros(n, np.float32), np.zeros(n, np.float32)
        for i in range(n):
            if hkl[start + i, 0] == 0 and hkl[start + i, 1] == 0 and hkl[start + i, 2] == 0:
                now_re[i] = 1.0
        phi_re = np.zeros((len(thicknesses), n))
        phi_im = np.zeros((len(thicknesses), n))
        scale = np.float32(1 / half_width)
        for k in range(terms):
            for t in range(len(thicknesses)):
                c = coefficients[t, k] * (1.0 if k == 0 else 2.0)
                # i^k: 1, i, -1, -i
                if k % 4 == 2 or k % 4 == 3:
                    c = -c
                if k % 2 == 0:
                    phi_re[t] += c * now_re
                    phi_im[t] += c * now_im
                else:
                    phi_re[t] -= c * now_im
                    phi_im[t] += c * now_re
            _multiply(real, imag, now_re, now_im, next_re, next_im)
            factor = scale if k == 0 else 2 * scale
            for i in range(n):
                next_re[i] = factor * next_re[i] - last_re[i]
                next_im[i] = factor * next_im[i] - last_im[i]
            last_re, now_re, next_re = now_re, next_re, last_re
            last_im, now_im, next_im = now_im, next_im, last_im
        for t in range(len(thicknesses)):
            for i in range(n):
                intensities[t, start + i] = phi_re[t, i] ** 2 + phi_im[t, i] ** 2
    return intensities
