"""Dynamical diffraction: Bloch waves.

With psi(r) = sum_g psi_g(z) exp(2 pi i (k + g).r), z along the foil normal n, and the flux
amplitudes phi_g = sqrt((K_n + g_n) / K_n) psi_g, the wave equation without backscattering is

    d phi / dz = 2 pi i H phi,    H_gh = m_g m_h (2 K s_g delta_gh + U_{g-h}) / (2 K),

with the obliquities m_g^2 = K / (K_n + g_n). Without absorption H is Hermitian, so that
sum_g |phi_g|^2 is conserved. The exit wave is phi(t) = exp(2 pi i t H) e_0. See docs/physics.md.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.beams import Beams
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.potential import potential_coefficients
from diffractory.simulate.propagation import pattern_memory, propagate
from diffractory.simulate.reciprocal import index_bounds
from diffractory.simulate.scattering import Parametrization, wavelength

ROUNDING = 1e-9
"""U_g below this fraction of the largest count as zero."""

IMAGINARY_TOLERANCE = 5e-5
"""Imaginary parts of U_g below this fraction of the largest U_g count as zero.

Rounded coordinates make as much, which changes intensities by less than 2e-5 at 200 angstrom.
"""


def bloch_intensities(
    crystal: Crystal,
    beams: Beams,
    thicknesses: NDArray[np.float64],
    g_max: float,
    parametrization: Parametrization = "lobato",
    absorption: bool = False,
    device: str = "cpu",
    memory: float = 2.0,
) -> NDArray[np.float32]:
    """Return the intensities of all beams, as fractions of the incident beam's flux.

    Parameters
    ----------
    thicknesses
        Along the foil normal, angstrom, shape (T,).
    g_max
        The one that the beams were selected with, 1/angstrom.
    absorption
        Whether thermal diffuse scattering takes electrons away.
    device
        ``cpu`` for compiled code on all of Numba's threads, or a device of torch's.
    memory
        How much the matrices that are solved at a time may take, GiB.

    Returns
    -------
    Shape (T, B); without absorption they sum to 1 over the beams of a pattern.
    """
    bounds = index_bounds(crystal, 2 * g_max)
    potential = potential_coefficients(
        crystal.centred(), bounds, beams.energy, 2 * g_max, parametrization, absorption
    )
    mean = potential[tuple(bounds)].real  # the largest of all
    table, imaginary = _as_table(potential.ravel(), wavelength(beams.energy) / 2, ROUNDING * mean)
    is_complex = imaginary > IMAGINARY_TOLERANCE * mean
    strides = np.array([potential.shape[1] * potential.shape[2], potential.shape[2], 1])
    obliquity = beams.obliquity
    index = (beams.hkl @ strides).astype(np.int32)
    problem = (
        table if is_complex else table[:1],
        bool(absorption and is_complex),  # atoms at rest absorb nothing
        int(bounds @ strides),
        beams.offsets,
        index,
        np.flatnonzero(index == 0) - beams.offsets[:-1],
        (beams.excitation_error * obliquity).astype(np.float32),
        np.sqrt(obliquity).astype(np.float32),
        np.asarray(thicknesses, dtype=np.float64),
    )
    if device != "cpu":
        from diffractory.simulate.propagation_torch import propagate_batches  # imports torch

        return propagate_batches(*problem, device, memory * 2**30)
    largest = pattern_memory(np.diff(beams.offsets).max())
    workers = min(numba.get_num_threads(), int(memory * 2**30 / largest))
    return propagate(*problem, max(workers, 1))


@numba.njit(cache=True)
def _as_table(
    values: NDArray[np.complex128], scale: float, smallest: float
) -> tuple[NDArray[np.float32], float]:
    """Return scaled real and imaginary parts, shape (2, L), and the largest imaginary part.

    What rounding leaves of extinct reflections would make denormal numbers, which are slow.
    """
    table = np.zeros((2, len(values)), dtype=np.float32)
    imaginary = 0.0
    for i in range(len(values)):
        re, im = values[i].real, values[i].imag
        if abs(re) > smallest:
            table[0, i] = scale * re
        if abs(im) > smallest:
            table[1, i] = scale * im
        imaginary = max(imaginary, abs(im))
    return table, imaginary
