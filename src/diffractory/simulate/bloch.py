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

from diffractory.simulate.beams import Beams, index_bounds
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.potential import potential_coefficients
from diffractory.simulate.propagation import pattern_memory, propagate
from diffractory.simulate.scattering import Parametrization, wavelength

IMAGINARY_TOLERANCE = 1e-6
"""Imaginary parts of U_g below this fraction of the largest U_g count as zero."""


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
    table = potential.ravel() * (wavelength(beams.energy) / 2)
    is_complex = np.abs(table.imag).max() > IMAGINARY_TOLERANCE * np.abs(table).max()
    parts = [table.real, table.imag] if is_complex else [table.real]
    strides = np.array([potential.shape[1] * potential.shape[2], potential.shape[2], 1])
    start = np.flatnonzero((beams.hkl == 0).all(axis=1)) - beams.offsets[:-1]
    problem = (
        np.array(parts, dtype=np.float32),
        bool(absorption and is_complex),  # atoms at rest absorb nothing
        int(bounds @ strides),
        beams.offsets,
        (beams.hkl @ strides).astype(np.int32),
        start,
        (beams.excitation_error * beams.obliquity).astype(np.float32),
        np.sqrt(beams.obliquity).astype(np.float32),
        np.asarray(thicknesses, dtype=np.float64),
    )
    if device != "cpu":
        from diffractory.simulate.propagation_torch import propagate_batches  # imports torch

        return propagate_batches(*problem, device, memory * 2**30)
    largest = pattern_memory(np.diff(beams.offsets).max())
    workers = min(numba.get_num_threads(), int(memory * 2**30 / largest))
    return propagate(*problem, max(workers, 1))
